"""Which code makes the noise: C for tensors on a CPU, plain torch elsewhere. All kernels give the same bits.

A kernel is a module with `values`, `perturb`, `perturb_both`, `perturb_rows` and `accumulate`; arguments as in
`seedtune.zo.noise`, already checked, with the distribution as `gaussian: bool`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch

Name = Literal["auto", "compiled", "torch"]
_MODULES = {"compiled": "compiled", "torch": "torch_ref"}
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
        ValueError: "compiled" was chosen and the tensor is not on a CPU, or the library is not there.
    """
    name = _chosen.get()
    if name == "compiled" and not tensor.is_cpu:
        raise ValueError(f"kernel 'compiled' works on CPU tensors, not on {tensor.device}: choose 'auto' or 'torch'")
    if name == "auto":
        return _fastest_on_cpu() if tensor.is_cpu else _load("torch")
    try:
        return _load(name)
    except ImportError as error:
        raise ValueError(f"kernel {name!r}: {error}") from error


def found() -> tuple[str, ...]:
    """The kernels for a CPU that this installation has."""
    try:
        _load("compiled")
    except ImportError:
        return ("torch",)
    return ("compiled", "torch")


@cache
def _fastest_on_cpu() -> ModuleType:
    try:
        return _load("compiled")
    except ImportError as error:
        warnings.warn(f"{error}; until then torch makes the directions, many times slower", stacklevel=4)
        return _load("torch")


@cache
def _load(name: str) -> ModuleType:
    return import_module(f".{_MODULES[name]}", __name__)
