"""Which code makes the noise: C for tensors on a CPU, Triton for those on an NVIDIA GPU, plain torch elsewhere.

All kernels give the same bits.

A kernel is a module with `values`, `perturb`, `perturb_both`, `perturb_rows` and `accumulate`; arguments as in
`seedtune.zo.noise`, already checked, with the distribution as `gaussian: bool`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch

Name = Literal["auto", "compiled", "triton", "torch"]
_MODULES = {"compiled": "compiled", "triton": "triton_cuda", "torch": "torch_ref"}
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
        ValueError: a kernel was chosen that does not work on this device, or that is not there.
    """
    name = _chosen.get()
    if name == "auto":
        return _fastest_on_cpu() if tensor.is_cpu else _fastest_elsewhere(tensor.is_cuda)
    if name == "compiled" and not tensor.is_cpu:
        raise ValueError(f"kernel 'compiled' works on CPU tensors, not on {tensor.device}: choose 'auto' or 'torch'")
    if name == "triton" and not (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError(f"kernel 'triton' works on CUDA tensors, not on {tensor.device}: choose 'auto' or 'torch'")
    try:
        return _load(name)
    except ImportError as error:
        raise ValueError(f"kernel {name!r}: {error}") from error


def found() -> tuple[Name, ...]:
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
def _fastest_elsewhere(is_cuda: bool) -> ModuleType:
    if not is_cuda or torch.version.hip:  # on an AMD GPU tensors are "CUDA" too: the floats were not proved there
        return _load("torch")
    try:
        return _load("triton")
    except ImportError:
        return _load("torch")


@cache
def _load(name: str) -> ModuleType:
    return import_module(f".{_MODULES[name]}", __name__)
