"""The noise contract for CPU tensors, in C, built when the package is installed: see `compiled.c`.

Every thread of `threads.run` calls the same function with the address of one task, and takes chunks of it until none is
left. Tensors travel as addresses: making arrays of them would cost more than the noise of a small tensor. Arguments are
those of `seedtune.zo.noise`, checked there.

Raises on import:
    ImportError: the library was not built, as there was no C compiler.
"""

import ctypes
import struct
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import torch

from . import threads

_FLOAT32, _BFLOAT16, _FLOAT16, _NO_WEIGHTS = 0, 1, 2, 3
_CODES = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16, torch.float16: _FLOAT16}
_BLOCK = 2048
_TASK = struct.Struct("@16qQf4x")  # `Task` of compiled.c
_NAME = "_compiled"


def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        if (path := folder / f"{_NAME}{suffix}").exists():
            return ctypes.CDLL(str(path))
    raise ImportError(f"{folder} holds no {_NAME} library: install seedtune where there is a C compiler")


def entries(width: int = 0):
    """`perturb`, `perturb_rows` and `accumulate` for vectors of 4, 8 or 16 floats, 0 the widest of this processor.

    Raises:
        ValueError: this processor, or this library, has no such vectors.
    """
    find = _library().seedtune_entry
    find.restype, find.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    addresses = [find(name, width) for name in (b"perturb", b"perturb_rows", b"accumulate")]
    if None in addresses:
        raise ValueError(f"no vectors of {width} floats on this processor")
    return tuple(threads.entry(address) for address in addresses)


_perturb, _perturb_rows, _accumulate = entries()


def values(out: torch.Tensor, key: int, start: int, gaussian: bool) -> None:
    count = out.numel()
    _run(_perturb, count, gaussian, out.data_ptr(), 0, 0, start, count, _NO_WEIGHTS, key=key, scale=1.0)


def perturb(out: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, gaussian: bool) -> None:
    perturb_both(out, None, weights, key, start, mu, gaussian)


def perturb_both(
    above: torch.Tensor,
    below: torch.Tensor | None,
    weights: torch.Tensor,
    key: int,
    start: int,
    mu: float,
    gaussian: bool,
) -> None:
    count = weights.numel()
    tensors = above.data_ptr(), 0 if below is None else below.data_ptr(), weights.data_ptr()
    _run(_perturb, count, gaussian, *tensors, start, count, _CODES[weights.dtype], key=key, scale=mu)


def perturb_rows(
    out: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, key: int, start: int, mu: float, gaussian: bool
) -> None:
    count, width = out.shape
    tensors, chunk = (out.data_ptr(), 0, table.data_ptr()), max(1, 4 * _BLOCK // max(width, 1))
    _run(
        _perturb_rows, count * width, gaussian, *tensors, start, count, _CODES[table.dtype], rows.data_ptr(), width,
        key=key, scale=mu, chunk=chunk,
    )  # fmt: skip


def accumulate(
    weights: torch.Tensor,
    start: int,
    keys: np.ndarray,
    factors: np.ndarray,
    ends: np.ndarray,
    rounding_keys: np.ndarray,
    gaussian: bool,
) -> None:
    count, address = weights.numel(), weights.data_ptr()
    _run(
        _accumulate, count * max(len(keys), 1), gaussian, address, 0, address, start, count, _CODES[weights.dtype],
        0, 0, keys.ctypes.data, factors.ctypes.data, ends.ctypes.data, rounding_keys.ctypes.data, len(ends),
    )  # fmt: skip


def _run(
    entry, num_values: int, gaussian: bool, out: int, below: int, weights: int, start: int, count: int, dtype: int,
    rows: int = 0, width: int = 0, keys: int = 0, factors: int = 0, ends: int = 0, rounding_keys: int = 0,
    num_updates: int = 0, *, key: int = 0, scale: float = 0.0, chunk: int = 0,
) -> None:  # fmt: skip
    """Runs a task of compiled.c on as many threads as `num_values` are worth."""
    packed = _TASK.pack(
        0, chunk or _chunk_size(count), out, below, weights, start, count, dtype, gaussian, rows, width, keys, factors,
        ends, rounding_keys, num_updates, key, scale,
    )  # fmt: skip
    memory = ctypes.create_string_buffer(packed, _TASK.size)
    threads.run(entry, ctypes.addressof(memory), num_values * (0.6 if gaussian else 0.1))


def _chunk_size(count: int) -> int:
    """Coordinates that a thread takes at a time: enough to read long stretches, few enough that all end together."""
    return _BLOCK * min(max(count // (64 * _BLOCK), 1), 128)
