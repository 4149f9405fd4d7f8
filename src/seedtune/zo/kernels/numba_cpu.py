"""The noise contract for CPU tensors, compiled by Numba: a block of coordinates at a time, in a scratch of 16 KiB.

Every operation is: load a block as float32 into scratch, add c * z to it for one or more keys, store it rounded. Inner
loops run over a fixed number of neighbouring float32 so that they vectorise; no fastmath, hence no fused multiply-add,
hence the same floats everywhere. Compiled code is cached on disk, so only the first process ever compiles.

Every thread of `threads.run` calls the same compiled function with the address of one task, and takes chunks of it
until none is left. Tensors travel as addresses: making arrays of them would cost more than the noise of a small tensor.
Arguments are those of `seedtune.zo.noise`, checked there.
"""

import ctypes
import struct

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, float32, int32, njit, types, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from . import constants as c
from . import threads
from .numba_floats import (
    bits,
    float_of,
    from_float16,
    inline,
    to_bfloat16,
    to_bfloat16_stochastic,
    to_float16,
    to_float16_stochastic,
)

function = njit(error_model="numpy")

# _NO_WEIGHTS: -0 in their place, as -0 + z is z for every z, and float32 out.
_FLOAT32, _BFLOAT16, _FLOAT16, _NO_WEIGHTS = 0, 1, 2, 3
_CODES = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16, torch.float16: _FLOAT16}

_GRANULE = c.GRANULE
_BLOCK = 32 * _GRANULE
_BATCH = 16  # counters at a time for Rademacher values: a short row needs few
_LANES = c.GAUSSIAN_LANES
_ROUNDING_LANES = c.ROUNDING_LANES

_M0, _M1, _W0, _W1 = uint64(c.PHILOX_M0), uint64(c.PHILOX_M1), uint32(c.PHILOX_W0), uint32(c.PHILOX_W1)
_RADEMACHER, _GAUSSIAN, _ROUNDING = (uint32(s) for s in (c.RADEMACHER_STREAM, c.GAUSSIAN_STREAM, c.ROUNDING_STREAM))


# One call's work. `taken` counts the chunks given out; a chunk is `chunk` coordinates, or rows.
_INTEGERS = ("taken", "chunk", "out", "weights", "start", "count", "dtype", "gaussian")
_INTEGERS += ("rows", "width", "keys", "factors", "num_keys")
_TASK = np.dtype([(name, np.int64) for name in _INTEGERS] + [("key", np.uint64), ("scale", np.float32)], align=True)
_TASK_LAYOUT = struct.Struct(f"@{len(_INTEGERS)}qQf4x")


def _compiled(function):
    """The address-taking C function of `function(task)`, for `threads.run`."""
    signature = types.void(types.voidptr)
    try:
        compiled = cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to cache in can be written
        compiled = cfunc(signature, error_model="numpy")(function)
    return threads.entry(compiled.address)


def _pointer(item):
    @intrinsic
    def pointer(_typing, address):
        def generate(_context, builder, _signature, arguments):
            return builder.inttoptr(arguments[0], _context.get_value_type(types.CPointer(item)))

        return types.CPointer(item)(types.int64), generate

    return pointer


@intrinsic
def _take(_typing, task, amount):
    """Adds `amount` to the first field of the task, for all threads at once; returns what was there."""

    def generate(_context, builder, _signature, arguments):
        counter = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, arguments[1], "monotonic")

    return types.int64(types.voidptr, types.int64), generate


@intrinsic
def _stack_words(_typing):
    """Room for the words of a batch, on the stack: the compiler then knows that nothing else points there."""

    def generate(_context, builder, _signature, _arguments):
        return builder.bitcast(
            cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(32), 4 * _BATCH)), ir.IntType(32).as_pointer()
        )

    return types.CPointer(types.uint32)(), generate


_pointer_f32, _pointer_u16, _pointer_i64, _pointer_u64 = (
    _pointer(item) for item in (types.float32, types.uint16, types.int64, types.uint64)
)


@inline
def _philox(x0, x1, x2, x3, k0, k1):
    for _ in range(10):
        low = _M0 * uint64(x0)
        high = _M1 * uint64(x2)
        y0 = uint32(high >> uint64(32)) ^ x1 ^ k0
        y2 = uint32(low >> uint64(32)) ^ x3 ^ k1
        x1 = uint32(high)
        x3 = uint32(low)
        x0 = y0
        x2 = y2
        k0 = uint32(k0 + _W0)
        k1 = uint32(k1 + _W1)
    return x0, x1, x2, x3


@inline
def _words(first, lane, stream, k0, k1):
    """Words of counter first + lane; first is a multiple of a power of two above lane, hence no carry."""
    return _philox(uint32(first) + uint32(lane), uint32(uint64(first) >> uint64(32)), stream, uint32(0), k0, k1)


@inline
def _radius(a):
    u = (float32(int32(a >> uint32(1))) + float32(0.5)) * float32(4.656612873077393e-10)
    pattern = bits(u)
    exponent = int32(pattern - int32(c.SQRT_HALF_BITS)) >> int32(23)
    f = float_of(int32(pattern - int32(exponent << int32(23)))) - float32(1.0)
    poly = float32(c.LOG[0])
    for n in range(1, 9):
        poly = poly * f + float32(c.LOG[n])
    log = f * f * f * poly - float32(0.5) * f * f + f + float32(exponent) * float32(c.LN2)
    return np.sqrt(float32(-2.0) * log)


@inline
def _box_muller(a, b):
    radius = _radius(a)
    x = float32(int32(b) >> int32(8)) * float32(1.1920928955078125e-07) * float32(c.QUARTER_PI)
    s = x * x
    sine = x * (float32(1.0) + s * (float32(c.SIN[0]) + s * (float32(c.SIN[1]) + s * float32(c.SIN[2]))))
    cosine = (float32(1.0) - float32(0.5) * s) + s * s * (
        float32(c.COS[0]) + s * (float32(c.COS[1]) + s * float32(c.COS[2]))
    )
    odd = (b & uint32(1)) != uint32(0)
    signed = -radius if (b & uint32(2)) != uint32(0) else radius
    return signed * (cosine if odd else sine), signed * (-sine if odd else cosine)


@function
def _add_rademacher(scratch, granule, first, last, k0, k1, scale):
    """scratch += scale * z for the granules first <= g < last of the block whose first granule is `granule`."""
    words = carray(_stack_words(), (4, _BATCH))
    pattern = bits(scale)
    for batch in range(first // _BATCH * _BATCH, last, _BATCH):
        for n in range(_BATCH):
            words[0, n], words[1, n], words[2, n], words[3, n] = _words(granule, batch + n, _RADEMACHER, k0, k1)
        for g in range(max(first, batch), min(last, batch + _BATCH)):
            for q in range(4):
                word = words[q, g - batch]
                row = uint64(g * 128 + q * 32)
                for p in range(32):
                    sign = int32((word << uint32(31 - p)) & uint32(0x80000000))
                    scratch[row + uint64(p)] += float_of(pattern ^ sign)


@function
def _add_gaussian(scratch, granule, first, last, k0, k1, scale):
    for g in range(first, last):
        counter = (granule + g) * _LANES
        row = uint64(g * 128)  # unsigned and no slices: the compiler must see that rows do not overlap
        for p in range(32):
            w0, w1, w2, w3 = _words(counter, p, _GAUSSIAN, k0, k1)
            z0, z1 = _box_muller(w0, w1)
            z2, z3 = _box_muller(w2, w3)
            at = row + uint64(p)
            scratch[at] += scale * z0
            scratch[at + uint64(32)] += scale * z1
            scratch[at + uint64(64)] += scale * z2
            scratch[at + uint64(96)] += scale * z3


@inline
def _add(scratch, granule, first, last, key, scale, gaussian):
    k0 = uint32(key)
    k1 = uint32(key >> uint64(32))
    if gaussian:
        _add_gaussian(scratch, granule, first, last, k0, k1, scale)
    else:
        _add_rademacher(scratch, granule, first, last, k0, k1, scale)


@inline
def _bytes(code):
    return 2 if code in (_BFLOAT16, _FLOAT16) else 4


@function
def _load(scratch, address, count, code):
    if code == _FLOAT32:
        source = carray(_pointer_f32(address), (count,))
        for n in range(count):
            scratch[n] = source[n]
    elif code == _NO_WEIGHTS:
        scratch[:] = float32(-0.0)
    else:
        halves = carray(_pointer_u16(address), (count,))
        if code == _BFLOAT16:
            for n in range(count):
                scratch[n] = float_of(int32(uint32(halves[n]) << uint32(16)))
        else:
            for n in range(count):
                scratch[n] = from_float16(halves[n])


@function
def _store(scratch, address, count, code):
    if _bytes(code) == 4:
        target = carray(_pointer_f32(address), (count,))
        for n in range(count):
            target[n] = scratch[n]
    else:
        halves = carray(_pointer_u16(address), (count,))
        if code == _BFLOAT16:
            for n in range(count):
                halves[n] = to_bfloat16(scratch[n])
        else:
            for n in range(count):
                halves[n] = to_float16(scratch[n])


@function
def _store_stochastic(scratch, r, address, count, code):
    halves = carray(_pointer_u16(address), (count,))
    if code == _BFLOAT16:
        for n in range(count):
            halves[n] = to_bfloat16_stochastic(scratch[n], r[n])
    else:
        for n in range(count):
            halves[n] = to_float16_stochastic(scratch[n], r[n])


@function
def _draw_rounding(r, granule, first, last, key):
    k0 = uint32(key)
    k1 = uint32(key >> uint64(32))
    for g in range(first, last):
        counter = (granule + g) * _ROUNDING_LANES
        row = uint64(g * 128)
        for p in range(16):
            w0, w1, w2, w3 = _words(counter, p, _ROUNDING, k0, k1)
            at = row + uint64(p)
            r[at] = int32(w0 & uint32(0xFFFF))
            r[at + uint64(16)] = int32(w0 >> uint32(16))
            r[at + uint64(32)] = int32(w1 & uint32(0xFFFF))
            r[at + uint64(48)] = int32(w1 >> uint32(16))
            r[at + uint64(64)] = int32(w2 & uint32(0xFFFF))
            r[at + uint64(80)] = int32(w2 >> uint32(16))
            r[at + uint64(96)] = int32(w3 & uint32(0xFFFF))
            r[at + uint64(112)] = int32(w3 >> uint32(16))


@inline
def _chunk(address, task):
    """The next chunk, cut where blocks end: its first coordinate and the end; first >= end if none is left."""
    first = task.start // _BLOCK * _BLOCK + _take(address, task.chunk)
    return max(first, task.start), min(first + task.chunk, task.start + task.count)


@function
def _perturb(scratch, out, weights, start, end, task):
    size = _bytes(task.dtype)
    at = start
    while at < end:
        base = at // _BLOCK * _BLOCK
        stop = min(end, base + _BLOCK)
        low, high, byte = at - base, stop - base, (at - start) * size
        part = scratch[low:high]
        _load(part, weights + byte, high - low, task.dtype)
        _add(scratch, base // 128, low // 128, (high + 127) // 128, task.key, task.scale, task.gaussian)
        _store(part, out + byte, high - low, task.dtype)
        at = stop


@_compiled
def _perturb_task(address):
    task = carray(address, 1, _TASK)[0]
    scratch = np.empty(_BLOCK, np.float32)
    size = _bytes(task.dtype)
    while True:
        first, last = _chunk(address, task)
        if first >= last:
            break
        byte = (first - task.start) * size
        _perturb(scratch, task.out + byte, task.weights + byte, first, last, task)


@_compiled
def _perturb_rows_task(address):
    task = carray(address, 1, _TASK)[0]
    scratch = np.empty(_BLOCK, np.float32)
    rows = carray(_pointer_i64(task.rows), (task.count,))
    step = task.width * _bytes(task.dtype)
    while True:
        first = _take(address, task.chunk)
        if first >= task.count:
            break
        for n in range(first, min(first + task.chunk, task.count)):
            start = task.start + rows[n] * task.width
            _perturb(scratch, task.out + n * step, task.weights + rows[n] * step, start, start + task.width, task)


@function
def _accumulate(scratch, r, start, end, keys, factors, task):
    size = _bytes(task.dtype)
    at = start
    while at < end:
        base = at // _BLOCK * _BLOCK
        stop = min(end, base + _BLOCK)
        low, high, weights = at - base, stop - base, task.weights + (at - task.start) * size
        first, last = low // 128, (high + 127) // 128
        part = scratch[low:high]
        _load(part, weights, high - low, task.dtype)
        for k in range(task.num_keys):
            _add(scratch, base // 128, first, last, keys[k], factors[k], task.gaussian)
        if task.dtype == _FLOAT32:
            _store(part, weights, high - low, _FLOAT32)
        else:
            _draw_rounding(r, base // 128, first, last, task.key)
            _store_stochastic(part, r[low:high], weights, high - low, task.dtype)
        at = stop


@_compiled
def _accumulate_task(address):
    task = carray(address, 1, _TASK)[0]
    scratch = np.empty(_BLOCK, np.float32)
    r = np.empty(_BLOCK, np.int32)
    keys = carray(_pointer_u64(task.keys), (task.num_keys,))
    factors = carray(_pointer_f32(task.factors), (task.num_keys,))
    while True:
        first, last = _chunk(address, task)
        if first >= last:
            break
        _accumulate(scratch, r, first, last, keys, factors, task)


def values(out: torch.Tensor, key: int, start: int, gaussian: bool) -> None:
    count = out.numel()
    fields = (out.data_ptr(), 0, start, count, _NO_WEIGHTS, gaussian, 0, 0, 0, 0, 0, key, 1.0)
    _run(_perturb_task, _chunk_size(count), fields, count, gaussian)


def perturb(out: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, gaussian: bool) -> None:
    count = weights.numel()
    tensors = out.data_ptr(), weights.data_ptr()
    fields = (*tensors, start, count, _CODES[weights.dtype], gaussian, 0, 0, 0, 0, 0, key, mu)
    _run(_perturb_task, _chunk_size(count), fields, count, gaussian)


def perturb_rows(
    out: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, key: int, start: int, mu: float, gaussian: bool
) -> None:
    count, width = out.shape
    tensors = out.data_ptr(), table.data_ptr()
    fields = (*tensors, start, count, _CODES[table.dtype], gaussian, rows.data_ptr(), width, 0, 0, 0, key, mu)
    _run(_perturb_rows_task, max(1, 2 * _BLOCK // max(width, 1)), fields, count * width, gaussian)


def accumulate(
    weights: torch.Tensor, start: int, keys: np.ndarray, factors: np.ndarray, gaussian: bool, rounding_key: int
) -> None:
    count, address = weights.numel(), weights.data_ptr()
    several = keys.ctypes.data, factors.ctypes.data, len(keys)
    fields = (address, address, start, count, _CODES[weights.dtype], gaussian, 0, 0, *several, rounding_key, 0.0)
    _run(_accumulate_task, _chunk_size(count), fields, count * max(len(keys), 1), gaussian)


def _chunk_size(count: int) -> int:
    """Coordinates that a thread takes at a time: enough to read long stretches, few enough that all end together."""
    return _BLOCK * min(max(count // (64 * _BLOCK), 1), 64)


def _run(task, chunk: int, fields: tuple, num_values: int, gaussian: bool) -> None:
    memory = ctypes.create_string_buffer(_TASK_LAYOUT.pack(0, chunk, *fields), _TASK_LAYOUT.size)
    threads.run(task, ctypes.addressof(memory), num_values * (0.6 if gaussian else 0.1))
