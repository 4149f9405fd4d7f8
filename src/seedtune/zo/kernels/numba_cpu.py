"""The noise contract for CPU tensors, compiled by Numba: a block of coordinates at a time, in a scratch of 16 KiB.

Every operation is: load a block as float32 into scratch, add c * z to it for one or more keys, store it rounded. Inner
loops run over a fixed number of neighbouring float32 so that they vectorise; no fastmath, hence no fused multiply-add,
hence the same floats everywhere. Compiled code is cached on disk, so only the first process ever compiles.

Tensors travel as addresses: making arrays of them would cost more than the noise of a small tensor. Arguments are
those of `seedtune.zo.noise`, checked there.
"""

import numpy as np
import torch
from llvmlite import ir
from numba import carray, float32, int32, njit, types, uint16, uint32, uint64
from numba.extending import intrinsic

from . import constants as c

_FLOAT32, _BFLOAT16, _FLOAT16 = 0, 1, 2
_CODES = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16, torch.float16: _FLOAT16}

_GRANULE = c.GRANULE
_BLOCK = 32 * _GRANULE
_LANES = c.GAUSSIAN_LANES
_ROUNDING_LANES = c.ROUNDING_LANES

_M0, _M1, _W0, _W1 = uint64(c.PHILOX_M0), uint64(c.PHILOX_M1), uint32(c.PHILOX_W0), uint32(c.PHILOX_W1)
_RADEMACHER, _GAUSSIAN, _ROUNDING = (uint32(s) for s in (c.RADEMACHER_STREAM, c.GAUSSIAN_STREAM, c.ROUNDING_STREAM))


def _compiled(signature):
    def decorate(function):
        try:
            return njit(signature, cache=True, nogil=True, error_model="numpy")(function)
        except RuntimeError:  # no folder to cache in can be written
            return njit(signature, nogil=True, error_model="numpy")(function)

    return decorate


_inline = njit(inline="always", error_model="numpy")


@intrinsic
def _bits(_typing, x):
    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _float(_typing, x):
    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _pointer(item):
    @intrinsic
    def pointer(_typing, address):
        def generate(_context, builder, _signature, arguments):
            return builder.inttoptr(arguments[0], _context.get_value_type(types.CPointer(item)))

        return types.CPointer(item)(types.int64), generate

    return pointer


_pointer_f32, _pointer_u16, _pointer_i64, _pointer_u64 = (
    _pointer(item) for item in (types.float32, types.uint16, types.int64, types.uint64)
)


@_inline
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


@_inline
def _counter(counter, stream, k0, k1):
    return _philox(uint32(counter), uint32(uint64(counter) >> uint64(32)), stream, uint32(0), k0, k1)


@_compiled("void(uint32[::1], uint32[::1])")
def _philox_in_place(words, key):
    words[0], words[1], words[2], words[3] = _philox(words[0], words[1], words[2], words[3], key[0], key[1])


@_inline
def _radius(a):
    u = (float32(int32(a >> uint32(1))) + float32(0.5)) * float32(4.656612873077393e-10)
    bits = _bits(u)
    exponent = int32(bits - int32(c.SQRT_HALF_BITS)) >> int32(23)
    f = _float(int32(bits - int32(exponent << int32(23)))) - float32(1.0)
    poly = float32(c.LOG[0])
    for n in range(1, 9):
        poly = poly * f + float32(c.LOG[n])
    log = f * f * f * poly - float32(0.5) * f * f + f + float32(exponent) * float32(c.LN2)
    return np.sqrt(float32(-2.0) * log)


@_inline
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


@_inline
def _add_rademacher(scratch, granule, first, last, k0, k1, scale):
    """scratch += scale * z for the granules first <= g < last of the block whose first granule is `granule`."""
    words = np.empty((32, 4), np.uint32)
    bits = _bits(scale)
    for g in range(32):
        words[g, 0], words[g, 1], words[g, 2], words[g, 3] = _counter(granule + g, _RADEMACHER, k0, k1)
    for g in range(first, last):
        for q in range(4):
            word = words[g, q]
            part = scratch[g * 128 + q * 32 : g * 128 + q * 32 + 32]
            for p in range(32):
                sign = int32((word << uint32(31 - p)) & uint32(0x80000000))
                part[p] += _float(bits ^ sign)


@_inline
def _add_gaussian(scratch, granule, first, last, k0, k1, scale):
    for g in range(first, last):
        counter = (granule + g) * _LANES
        row0 = scratch[g * 128 : g * 128 + 32]
        row1 = scratch[g * 128 + 32 : g * 128 + 64]
        row2 = scratch[g * 128 + 64 : g * 128 + 96]
        row3 = scratch[g * 128 + 96 : g * 128 + 128]
        for p in range(32):
            w0, w1, w2, w3 = _counter(counter + p, _GAUSSIAN, k0, k1)
            z0, z1 = _box_muller(w0, w1)
            z2, z3 = _box_muller(w2, w3)
            row0[p] += scale * z0
            row1[p] += scale * z1
            row2[p] += scale * z2
            row3[p] += scale * z3


@_inline
def _add(scratch, granule, first, last, key, scale, gaussian):
    k0 = uint32(key)
    k1 = uint32(key >> uint64(32))
    if gaussian:
        _add_gaussian(scratch, granule, first, last, k0, k1, scale)
    else:
        _add_rademacher(scratch, granule, first, last, k0, k1, scale)


@_inline
def _from_float16(h):
    magnitude = int32(h & uint16(0x7FFF))
    small = float32(magnitude) * float32(5.9604644775390625e-08)
    shifted = int32(magnitude << int32(13))
    special = shifted | int32(0x7F800000)
    normal = shifted + int32(0x38000000)
    value = small if magnitude < 0x400 else _float(special if magnitude >= 0x7C00 else normal)
    return -value if (h & uint16(0x8000)) != uint16(0) else value


@_inline
def _to_bfloat16(x):
    bits = _bits(x)
    magnitude = int32(bits & int32(0x7FFFFFFF))
    sign = int32(bits >> int32(16)) & int32(0x8000)
    nearest = int32(magnitude + int32(0x7FFF) + (int32(magnitude >> int32(16)) & int32(1))) >> int32(16)
    return uint16(sign | (int32(0x7FC0) if magnitude > int32(0x7F800000) else nearest))


@_inline
def _to_float16(x):
    bits = _bits(x)
    magnitude = int32(bits & int32(0x7FFFFFFF))
    sign = int32(bits >> int32(16)) & int32(0x8000)
    normal = int32(magnitude + int32(0xFFF) + (int32(magnitude >> int32(13)) & int32(1))) >> int32(13)
    normal = min(int32(normal - int32(112 << 10)), int32(0x7C00))
    # At 0.5 a float32 steps by 2^-24, the step of a small float16: the addition rounds.
    small = int32(_bits(abs(x) + float32(0.5)) - int32(0x3F000000))
    finite = small if magnitude < int32(0x38800000) else normal
    return uint16(sign | (int32(0x7E00) if magnitude > int32(0x7F800000) else finite))


@_inline
def _to_bfloat16_stochastic(x, r):
    bits = _bits(x)
    magnitude = int32(bits & int32(0x7FFFFFFF))
    sign = int32(bits >> int32(16)) & int32(0x8000)
    rounded = min(int32(uint32(magnitude + r) >> uint32(16)), int32(0x7F7F))
    return uint16(sign | rounded) if magnitude < int32(0x7F7F8000) else _to_bfloat16(x)


@_inline
def _to_float16_stochastic(x, r):
    bits = _bits(x)
    magnitude = int32(bits & int32(0x7FFFFFFF))
    sign = int32(bits >> int32(16)) & int32(0x8000)
    part = r >> int32(3)
    normal = min(int32(int32(uint32(magnitude + part) >> uint32(13)) - int32(112 << 10)), int32(0x7BFF))
    fixed = int32(min(abs(x), float32(6.103515625e-05)) * float32(137438953472.0))
    small = int32(fixed + part) >> int32(13)
    rounded = small if magnitude < int32(0x38800000) else normal
    return uint16(sign | rounded) if magnitude < int32(0x477FF000) else _to_float16(x)


@_inline
def _load(scratch, address, count, code):
    if code == _FLOAT32:
        source = carray(_pointer_f32(address), (count,))
        for n in range(count):
            scratch[n] = source[n]
    else:
        halves = carray(_pointer_u16(address), (count,))
        if code == _BFLOAT16:
            for n in range(count):
                scratch[n] = _float(int32(uint32(halves[n]) << uint32(16)))
        else:
            for n in range(count):
                scratch[n] = _from_float16(halves[n])


@_inline
def _store(scratch, address, count, code):
    if code == _FLOAT32:
        target = carray(_pointer_f32(address), (count,))
        for n in range(count):
            target[n] = scratch[n]
    else:
        halves = carray(_pointer_u16(address), (count,))
        if code == _BFLOAT16:
            for n in range(count):
                halves[n] = _to_bfloat16(scratch[n])
        else:
            for n in range(count):
                halves[n] = _to_float16(scratch[n])


@_inline
def _store_stochastic(scratch, r, address, count, code):
    halves = carray(_pointer_u16(address), (count,))
    if code == _BFLOAT16:
        for n in range(count):
            halves[n] = _to_bfloat16_stochastic(scratch[n], r[n])
    else:
        for n in range(count):
            halves[n] = _to_float16_stochastic(scratch[n], r[n])


@_inline
def _draw_rounding(r, granule, first, last, key):
    k0 = uint32(key)
    k1 = uint32(key >> uint64(32))
    for g in range(first, last):
        part = r[g * 128 : g * 128 + 128]
        counter = (granule + g) * _ROUNDING_LANES
        for p in range(16):
            w0, w1, w2, w3 = _counter(counter + p, _ROUNDING, k0, k1)
            part[p] = int32(w0 & uint32(0xFFFF))
            part[p + 16] = int32(w0 >> uint32(16))
            part[p + 32] = int32(w1 & uint32(0xFFFF))
            part[p + 48] = int32(w1 >> uint32(16))
            part[p + 64] = int32(w2 & uint32(0xFFFF))
            part[p + 80] = int32(w2 >> uint32(16))
            part[p + 96] = int32(w3 & uint32(0xFFFF))
            part[p + 112] = int32(w3 >> uint32(16))


@_inline
def _perturb(scratch, out, weights, start, count, key, mu, gaussian, code):
    size = 4 if code == _FLOAT32 else 2
    end = start + count
    at = start
    while at < end:
        base = at // _BLOCK * _BLOCK
        stop = min(end, base + _BLOCK)
        low, high, byte = at - base, stop - base, (at - start) * size
        part = scratch[low:high]
        _load(part, weights + byte, high - low, code)
        _add(scratch, base // 128, low // 128, (high + 127) // 128, key, mu, gaussian)
        _store(part, out + byte, high - low, code)
        at = stop


@_compiled("void(int64, int64, int64, int64, uint64, float32, boolean, int64)")
def _perturb_range(out, weights, start, count, key, mu, gaussian, code):
    _perturb(np.empty(_BLOCK, np.float32), out, weights, start, count, key, mu, gaussian, code)


@_compiled("void(int64, int64, int64, int64, int64, int64, uint64, int64, float32, boolean, int64)")
def _perturb_rows_range(out, table, rows, first, last, width, key, start, mu, gaussian, code):
    scratch = np.empty(_BLOCK, np.float32)
    indices = carray(_pointer_i64(rows), (last,))
    step = width * (4 if code == _FLOAT32 else 2)
    for n in range(first, last):
        row = indices[n]
        _perturb(scratch, out + n * step, table + row * step, start + row * width, width, key, mu, gaussian, code)


@_compiled("void(int64, int64, int64, uint64, boolean)")
def _values_range(out, start, count, key, gaussian):
    scratch = np.empty(_BLOCK, np.float32)
    at = start
    while at < start + count:
        base = at // _BLOCK * _BLOCK
        stop = min(start + count, base + _BLOCK)
        low, high = at - base, stop - base
        scratch[low:high] = float32(-0.0)  # -0 + z is z, even for z = -0
        _add(scratch, base // 128, low // 128, (high + 127) // 128, key, float32(1.0), gaussian)
        _store(scratch[low:high], out + (at - start) * 4, high - low, _FLOAT32)
        at = stop


@_compiled("void(int64, int64, int64, int64, int64, int64, boolean, int64, uint64)")
def _accumulate_range(weights, start, count, keys, factors, num_keys, gaussian, code, rounding_key):
    scratch = np.empty(_BLOCK, np.float32)
    r = np.empty(_BLOCK, np.int32)
    all_keys = carray(_pointer_u64(keys), (num_keys,))
    scales = carray(_pointer_f32(factors), (num_keys,))
    size = 4 if code == _FLOAT32 else 2
    at = start
    while at < start + count:
        base = at // _BLOCK * _BLOCK
        stop = min(start + count, base + _BLOCK)
        low, high, address = at - base, stop - base, weights + (at - start) * size
        first, last = low // 128, (high + 127) // 128
        part = scratch[low:high]
        _load(part, address, high - low, code)
        for k in range(num_keys):
            _add(scratch, base // 128, first, last, all_keys[k], scales[k], gaussian)
        if code == _FLOAT32:
            _store(part, address, high - low, code)
        else:
            _draw_rounding(r, base // 128, first, last, rounding_key)
            _store_stochastic(part, r[low:high], address, high - low, code)
        at = stop


def values(out: torch.Tensor, key: int, start: int, gaussian: bool) -> None:
    _values_range(out.data_ptr(), start, out.numel(), key, gaussian)


def perturb(out: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, gaussian: bool) -> None:
    code = _CODES[weights.dtype]
    _perturb_range(out.data_ptr(), weights.data_ptr(), start, weights.numel(), key, mu, gaussian, code)


def perturb_rows(
    out: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, key: int, start: int, mu: float, gaussian: bool
) -> None:
    code, (count, width) = _CODES[table.dtype], out.shape
    pointers = out.data_ptr(), table.data_ptr(), rows.data_ptr()
    _perturb_rows_range(*pointers, 0, count, width, key, start, mu, gaussian, code)


def accumulate(
    weights: torch.Tensor, start: int, keys: np.ndarray, factors: np.ndarray, gaussian: bool, rounding_key: int
) -> None:
    pointers = keys.ctypes.data, factors.ctypes.data
    code = _CODES[weights.dtype]
    _accumulate_range(weights.data_ptr(), start, weights.numel(), *pointers, len(keys), gaussian, code, rounding_key)
