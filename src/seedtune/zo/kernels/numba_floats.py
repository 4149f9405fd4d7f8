"""Float formats for Numba: float32 bits, and bfloat16 and float16 by integer arithmetic, as nothing else is portable.

Conversions vectorise: no branch, no table. float16 never passes through float32 numbers below 2^-126, so that a thread
that flushes those to zero gives the same bits. Numba's disk cache notices changes in `numba_cpu.py` only: touch that
file after changing this one.
"""

from llvmlite import ir
from numba import float32, int32, njit, types, uint16, uint32
from numba.extending import intrinsic

inline = njit(inline="always", error_model="numpy")


@intrinsic
def bits(_typing, x):
    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def float_of(_typing, x):
    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@inline
def from_float16(h):
    magnitude = int32(h & uint16(0x7FFF))
    small = float32(magnitude) * float32(5.9604644775390625e-08)
    shifted = int32(magnitude << int32(13))
    special = shifted | int32(0x7F800000)
    normal = shifted + int32(0x38000000)
    value = small if magnitude < 0x400 else float_of(special if magnitude >= 0x7C00 else normal)
    return -value if (h & uint16(0x8000)) != uint16(0) else value


@inline
def to_bfloat16(x):
    pattern = bits(x)
    magnitude = int32(pattern & int32(0x7FFFFFFF))
    sign = int32(pattern >> int32(16)) & int32(0x8000)
    nearest = int32(magnitude + int32(0x7FFF) + (int32(magnitude >> int32(16)) & int32(1))) >> int32(16)
    return uint16(sign | (int32(0x7FC0) if magnitude > int32(0x7F800000) else nearest))


@inline
def to_float16(x):
    pattern = bits(x)
    magnitude = int32(pattern & int32(0x7FFFFFFF))
    sign = int32(pattern >> int32(16)) & int32(0x8000)
    normal = int32(magnitude + int32(0xFFF) + (int32(magnitude >> int32(13)) & int32(1))) >> int32(13)
    normal = min(int32(normal - int32(112 << 10)), int32(0x7C00))
    # At 0.5 a float32 steps by 2^-24, the step of a small float16: the addition rounds.
    small = int32(bits(abs(x) + float32(0.5)) - int32(0x3F000000))
    finite = small if magnitude < int32(0x38800000) else normal
    return uint16(sign | (int32(0x7E00) if magnitude > int32(0x7F800000) else finite))


@inline
def to_bfloat16_stochastic(x, r):
    pattern = bits(x)
    magnitude = int32(pattern & int32(0x7FFFFFFF))
    sign = int32(pattern >> int32(16)) & int32(0x8000)
    rounded = min(int32(uint32(magnitude + r) >> uint32(16)), int32(0x7F7F))
    return uint16(sign | rounded) if magnitude < int32(0x7F7F8000) else to_bfloat16(x)


@inline
def to_float16_stochastic(x, r):
    pattern = bits(x)
    magnitude = int32(pattern & int32(0x7FFFFFFF))
    sign = int32(pattern >> int32(16)) & int32(0x8000)
    part = r >> int32(3)
    normal = min(int32(int32(uint32(magnitude + part) >> uint32(13)) - int32(112 << 10)), int32(0x7BFF))
    fixed = int32(min(abs(x), float32(6.103515625e-05)) * float32(137438953472.0))
    small = int32(fixed + part) >> int32(13)
    rounded = small if magnitude < int32(0x38800000) else normal
    return uint16(sign | rounded) if magnitude < int32(0x477FF000) else to_float16(x)
