"""Which code makes the noise: Numba for tensors on a CPU, plain torch elsewhere. All kernels give the same bits.

A kernel is a module with `values`, `perturb`, `perturb_rows` and `accumulate`; arguments as in `seedtune.zo.noise`,
already checked, with the distribution as `gaussian: bool`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch

Name = Literal["auto", "numba", "torch"]
_MODULES = {"numba": "numba_cpu", "torch": "torch_ref"}
_chosen: ContextVar[Name] = ContextVar("kernel", default="auto")


@contextmanager
def using(name: Name) -> Iterator[None]:
    """Makes the noise with the named kernel inside the block, in this thread (or task) only.

    Raises:
        ValueError: a name that is not a kernel.
    """
    if name not in ("auto", *_MODULES):
        raise ValueError(f"kernel {name!r}: must be one of auto, {', '.join(_MODULES)}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def kernel_for(tensor: torch.Tensor) -> ModuleType:
    """The kernel that works on this tensor.

    Raises:
        ValueError: "numba" was chosen and the tensor is not on a CPU.
    """
    name = _chosen.get()
    on_cpu = tensor.is_cpu
    if name == "numba" and not on_cpu:
        raise ValueError(f"kernel 'numba' works on CPU tensors, not on {tensor.device}: choose 'auto' or 'torch'")
    return _load("torch" if name == "torch" or not on_cpu else "numba")


@cache
def _load(name: str) -> ModuleType:
    # Numba takes longer to import than most commands need to run.
    return import_module(f".{_MODULES[name]}", __name__)
