"""The noise contract for CUDA tensors, compiled by Triton: one launch a call, weights read and written once.

A program makes a few thousand neighbouring coordinates: a tile of granules by 32 lanes for each of a granule's four
rows, since one counter of a Gaussian direction gives a value to each row. No call waits for the device.

Equality to the bit rests on three things. Nothing is fused (`enable_fp_fusion` off), the root is correctly rounded, and
everything else is integer arithmetic: words, conversions to and from 16 bits, signs (Triton's unary minus is 0 - x,
which loses that of zero). Scalars arrive as the patterns of float32 numbers.

Under TRITON_INTERPRET=1, set before this module is imported, the same kernels run on CPU tensors, slowly.
Arguments are those of `seedtune.zo.noise`, checked there, but for `rows`, which lie on the device.
"""

import struct
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl

from . import constants as c

_FLOAT32, _BFLOAT16, _FLOAT16, _NO_WEIGHTS = (tl.constexpr(kind) for kind in range(4))
_KINDS = {torch.float32: _FLOAT32.value, torch.bfloat16: _BFLOAT16.value, torch.float16: _FLOAT16.value}

_GRANULES, _GRANULES_OF_LOOKUP = 32, 16  # a program's: 4,096 coordinates, 2,048 where rows may be short
_OPTIONS = {"enable_fp_fusion": False, "num_warps": 4}

_GRANULE = tl.constexpr(c.GRANULE)
_LANES, _ROUNDING_LANES = tl.constexpr(c.GAUSSIAN_LANES), tl.constexpr(c.ROUNDING_LANES)
_RADEMACHER, _GAUSSIAN = tl.constexpr(c.RADEMACHER_STREAM), tl.constexpr(c.GAUSSIAN_STREAM)
_ROUNDING = tl.constexpr(c.ROUNDING_STREAM)
_M0, _M1 = tl.constexpr(c.PHILOX_M0), tl.constexpr(c.PHILOX_M1)
_W0, _W1 = tl.constexpr(c.PHILOX_W0), tl.constexpr(c.PHILOX_W1)
_SQRT_HALF_BITS, _LN2, _QUARTER_PI = (tl.constexpr(x) for x in (c.SQRT_HALF_BITS, c.LN2, c.QUARTER_PI))
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (tl.constexpr(x) for x in c.LOG)
_S0, _S1, _S2, _C0, _C1, _C2 = (tl.constexpr(x) for x in c.SIN + c.COS)


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float_of(pattern):
    return pattern.to(tl.float32, bitcast=True)


@triton.jit
def _with_sign(x, word):
    """x where bit 31 of the uint32 word is 0, -x where it is 1."""
    return _float_of(_bits(x) ^ (word & 0x80000000).to(tl.int32, bitcast=True))


@triton.jit
def _philox(counter, k0, k1, STREAM: tl.constexpr):
    """Four words, uint32, for each int64 counter; the key as two uint32."""
    x0 = counter.to(tl.uint32)
    x1 = (counter >> 32).to(tl.uint32)
    x2 = (x0 & 0) | STREAM
    x3 = x0 & 0
    for _ in tl.static_range(10):
        y0 = tl.umulhi(x2, _M1) ^ x1 ^ k0
        y2 = tl.umulhi(x0, _M0) ^ x3 ^ k1
        x1 = x2 * _M1
        x3 = x0 * _M0
        x0 = y0
        x2 = y2
        k0 = k0 + _W0
        k1 = k1 + _W1
    return x0, x1, x2, x3


@triton.jit
def _radius(a):
    u = ((a >> 1).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    exponent = (_bits(u) - _SQRT_HALF_BITS) >> 23
    f = _float_of(_bits(u) - (exponent << 23)) - 1.0
    poly = f * _L0 + _L1
    poly = poly * f + _L2
    poly = poly * f + _L3
    poly = poly * f + _L4
    poly = poly * f + _L5
    poly = poly * f + _L6
    poly = poly * f + _L7
    poly = poly * f + _L8
    log = f * f * f * poly - 0.5 * f * f + f + exponent.to(tl.float32) * _LN2
    return tl.sqrt_rn(log * -2.0)


@triton.jit
def _box_muller(a, b):
    x = (b.to(tl.int32, bitcast=True) >> 8).to(tl.float32) * 1.1920928955078125e-07 * _QUARTER_PI
    s = x * x
    sine = x * (1.0 + s * (_S0 + s * (_S1 + s * _S2)))
    cosine = 1.0 - 0.5 * s + s * s * (_C0 + s * (_C1 + s * _C2))
    odd = (b & 1) != 0
    signed = _with_sign(_radius(a), b << 30)
    return signed * tl.where(odd, cosine, sine), signed * tl.where(odd, _with_sign(sine, b << 31), cosine)


@triton.jit
def _times_z(granule, k0, k1, scale, IS_GAUSSIAN: tl.constexpr):
    """scale * z of the four rows of granules, each [granules, lanes]."""
    lane = tl.arange(0, 32)
    if IS_GAUSSIAN:
        w0, w1, w2, w3 = _philox(granule[:, None] * _LANES + lane[None, :], k0, k1, _GAUSSIAN)
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
        d0, d1, d2, d3 = scale * z0, scale * z1, scale * z2, scale * z3
    else:
        w0, w1, w2, w3 = _philox(granule, k0, k1, _RADEMACHER)
        up = (31 - lane[None, :]).to(tl.uint32)
        d0, d1 = _with_sign(scale, w0[:, None] << up), _with_sign(scale, w1[:, None] << up)
        d2, d3 = _with_sign(scale, w2[:, None] << up), _with_sign(scale, w3[:, None] << up)
    return d0, d1, d2, d3


@triton.jit
def _places(start, count, block, IS_WHOLE: tl.constexpr, GRANULES: tl.constexpr):
    """Of the block of `count` coordinates from `start` on: its granules [granules], where in the tensor the first of
    their rows lies [granules, lanes] (row r 32 r further), and which of the four rows' places exist.

    IS_WHOLE: start and count are multiples of a granule, so the compiler may read 16 bytes at a time.
    """
    lane = tl.arange(0, 32)
    number = block.to(tl.int64) * GRANULES + tl.arange(0, GRANULES)
    granule = start // _GRANULE + number
    if IS_WHOLE:
        index = number[:, None] * _GRANULE + lane[None, :]
        m0 = (number < count // _GRANULE)[:, None] & (lane >= 0)[None, :]
        m1, m2, m3 = m0, m0, m0
    else:
        index = (granule * _GRANULE - start)[:, None] + lane[None, :]
        m0 = (index >= 0) & (index < count)
        m1 = (index >= -32) & (index < count - 32)
        m2 = (index >= -64) & (index < count - 64)
        m3 = (index >= -96) & (index < count - 96)
    return granule, index, m0, m1, m2, m3


@triton.jit
def _load(pointer, index, mask, KIND: tl.constexpr):
    if KIND == _NO_WEIGHTS:  # -0 + z is z for every z
        value = _float_of(tl.full(index.shape, -2147483648, tl.int32))
    elif KIND == _FLOAT32:
        value = tl.load(pointer + index, mask=mask, other=0.0)
    else:
        value = _widened(tl.load(pointer + index, mask=mask, other=0).to(tl.int32) & 0xFFFF, KIND)
    return value


@triton.jit
def _widened(half, KIND: tl.constexpr):
    """float32 of a 16-bit pattern."""
    if KIND == _BFLOAT16:
        pattern = half << 16
    else:
        magnitude = half & 0x7FFF
        small = _bits(magnitude.to(tl.float32) * 5.9604644775390625e-08)
        shifted = magnitude << 13
        large = tl.where(magnitude >= 0x7C00, shifted | 0x7F800000, shifted + 0x38000000)
        pattern = tl.where(magnitude < 0x400, small, large) | ((half & 0x8000) << 16)
    return _float_of(pattern)


@triton.jit
def _nearest(x, KIND: tl.constexpr):
    """The 16-bit pattern, int32, of x rounded to nearest even."""
    magnitude = _bits(x) & 0x7FFFFFFF
    sign = (_bits(x) >> 16) & 0x8000
    if KIND == _BFLOAT16:
        rounded = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
        rounded = tl.where(magnitude > 0x7F800000, 0x7FC0, rounded)
    else:
        normal = tl.minimum(((magnitude + 0xFFF + ((magnitude >> 13) & 1)) >> 13) - 114688, 0x7C00)
        # At 0.5 a float32 steps by 2^-24, the step of a small float16: the addition rounds.
        small = _bits(_float_of(magnitude) + 0.5) - 0x3F000000
        rounded = tl.where(magnitude < 0x38800000, small, normal)
        rounded = tl.where(magnitude > 0x7F800000, 0x7E00, rounded)
    return sign | rounded


@triton.jit
def _stochastic(x, r, KIND: tl.constexpr):
    """The 16-bit pattern, int32, of x rounded up with the probability of the part cut off; r below 2^16."""
    magnitude = _bits(x) & 0x7FFFFFFF
    sign = (_bits(x) >> 16) & 0x8000
    if KIND == _BFLOAT16:
        # Sums stay below 2^31 where they count: infinities and NaN are rounded to nearest.
        rounded = tl.minimum((magnitude + r) >> 16, 0x7F7F)
        result = tl.where(magnitude < 0x7F7F8000, sign | rounded, _nearest(x, KIND))
    else:
        part = r >> 3
        normal = tl.minimum(((magnitude + part) >> 13) - 114688, 0x7BFF)
        is_small = magnitude < 0x38800000
        fixed = (_float_of(tl.where(is_small, magnitude, 0)) * 137438953472.0).to(tl.int32)
        rounded = tl.where(is_small, (fixed + part) >> 13, normal)
        result = tl.where(magnitude < 0x477FF000, sign | rounded, _nearest(x, KIND))
    return result


@triton.jit
def _rounded(a0, a1, a2, a3, granule, k0, k1, KIND: tl.constexpr):
    """The four rows of granules, rounded to 16 bits under the rounding key, as float32."""
    lane = tl.arange(0, 32)
    counter = granule[:, None] * _ROUNDING_LANES + lane[None, :] % _ROUNDING_LANES
    w0, w1, w2, w3 = _philox(counter, k0, k1, _ROUNDING)
    down = (lane[None, :] // _ROUNDING_LANES * 16).to(tl.uint32)
    a0 = _widened(_stochastic(a0, ((w0 >> down) & 0xFFFF).to(tl.int32), KIND), KIND)
    a1 = _widened(_stochastic(a1, ((w1 >> down) & 0xFFFF).to(tl.int32), KIND), KIND)
    a2 = _widened(_stochastic(a2, ((w2 >> down) & 0xFFFF).to(tl.int32), KIND), KIND)
    a3 = _widened(_stochastic(a3, ((w3 >> down) & 0xFFFF).to(tl.int32), KIND), KIND)
    return a0, a1, a2, a3


@triton.jit
def _store(pointer, index, mask, value, KIND: tl.constexpr):
    if KIND == _BFLOAT16 or KIND == _FLOAT16:  # noqa: SIM109
        value = _nearest(value, KIND).to(tl.int16)
    tl.store(pointer + index, value, mask=mask)


@triton.jit(do_not_specialize=range(4, 11))
def _perturb_kernel(
    out, below, weights, rows, start: tl.int64, width: tl.int64, num_rows: tl.int64, num_blocks: tl.int32,
    k0: tl.int32, k1: tl.int32, scale: tl.int32,
    KIND: tl.constexpr, IS_GAUSSIAN: tl.constexpr, IS_LOOKUP: tl.constexpr, IS_WHOLE: tl.constexpr,
    GRANULES: tl.constexpr,
):  # fmt: skip
    """Block `program mod num_blocks` of out's row `program div num_blocks`; `num_rows` and `rows` of a look-up only.

    below: what the other side of the direction makes, or None.
    """
    program = tl.program_id(0)
    scale = _float_of(scale)
    at = (program // num_blocks).to(tl.int64)
    row = at
    if IS_LOOKUP:
        row = tl.load(rows + at)
        is_there = (row >= 0) & (row < num_rows)
        row = tl.where(is_there, row, 0)
        scale = tl.where(is_there, scale, float("nan"))
    if IS_WHOLE:
        width = width // _GRANULE * _GRANULE
    block = program % num_blocks
    granule, index, m0, m1, m2, m3 = _places(start + row * width, width, block, IS_WHOLE, GRANULES)
    source = weights + row * width
    a0 = _load(source, index, m0, KIND)
    a1 = _load(source, index + 32, m1, KIND)
    a2 = _load(source, index + 64, m2, KIND)
    a3 = _load(source, index + 96, m3, KIND)
    key0 = k0.to(tl.uint32, bitcast=True)
    key1 = k1.to(tl.uint32, bitcast=True)
    d0, d1, d2, d3 = _times_z(granule, key0, key1, scale, IS_GAUSSIAN)
    target = out + at * width
    _store(target, index, m0, a0 + d0, KIND)
    _store(target, index + 32, m1, a1 + d1, KIND)
    _store(target, index + 64, m2, a2 + d2, KIND)
    _store(target, index + 96, m3, a3 + d3, KIND)
    if below is not None:
        _store(below, index, m0, a0 - d0, KIND)
        _store(below, index + 32, m1, a1 - d1, KIND)
        _store(below, index + 64, m2, a2 - d2, KIND)
        _store(below, index + 96, m3, a3 - d3, KIND)


@triton.jit(do_not_specialize=range(2, 6))
def _accumulate_kernel(
    weights, plan, start: tl.int64, count: tl.int64, num_updates: tl.int32, num_keys: tl.int32,
    KIND: tl.constexpr, IS_GAUSSIAN: tl.constexpr, IS_WHOLE: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """`plan`, int64: how many keys belong to updates up to each, rounding keys; keys, patterns of their factors."""
    granule, index, m0, m1, m2, m3 = _places(start, count, tl.program_id(0), IS_WHOLE, GRANULES)
    a0 = _load(weights, index, m0, KIND)
    a1 = _load(weights, index + 32, m1, KIND)
    a2 = _load(weights, index + 64, m2, KIND)
    a3 = _load(weights, index + 96, m3, KIND)
    keys = plan + 2 * num_updates
    u, k = num_updates * 0, num_updates * 0
    while u < num_updates:  # no range: the interpreter cannot make one of numbers that arrive as arguments
        end = tl.load(plan + u)
        while k < end:
            key = tl.load(keys + k)
            scale = _float_of(tl.load(keys + num_keys + k).to(tl.int32))
            k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
            d0, d1, d2, d3 = _times_z(granule, k0, k1, scale, IS_GAUSSIAN)
            a0, a1, a2, a3 = a0 + d0, a1 + d1, a2 + d2, a3 + d3
            k += 1
        if KIND != _FLOAT32:
            key = tl.load(plan + num_updates + u)
            k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
            a0, a1, a2, a3 = _rounded(a0, a1, a2, a3, granule, k0, k1, KIND)
        u += 1
    _store(weights, index, m0, a0, KIND)
    _store(weights, index + 32, m1, a1, KIND)
    _store(weights, index + 64, m2, a2, KIND)
    _store(weights, index + 96, m3, a3, KIND)


def values(out: torch.Tensor, key: int, start: int, gaussian: bool) -> None:
    _perturb(out, None, out, None, key, start, 1.0, gaussian, _NO_WEIGHTS.value)


def perturb(out: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, gaussian: bool) -> None:
    _perturb(out, None, weights, None, key, start, mu, gaussian, _KINDS[weights.dtype])


def perturb_both(
    above: torch.Tensor, below: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, gaussian: bool
) -> None:
    _perturb(above, _patterns(below), weights, None, key, start, mu, gaussian, _KINDS[weights.dtype])


def perturb_rows(
    out: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, key: int, start: int, mu: float, gaussian: bool
) -> None:
    _perturb(out, None, table, rows, key, start, mu, gaussian, _KINDS[table.dtype])


def accumulate(
    weights: torch.Tensor,
    start: int,
    keys: np.ndarray,
    factors: np.ndarray,
    ends: np.ndarray,
    rounding_keys: np.ndarray,
    gaussian: bool,
) -> None:
    if not weights.numel():
        return
    patterns = factors.view(np.int32).astype(np.int64)
    plan = np.concatenate((ends, rounding_keys.view(np.int64), keys.view(np.int64), patterns))
    count = weights.numel()
    with _on(weights):
        _accumulate_kernel[(_num_blocks(start, count, _GRANULES),)](
            _patterns(weights), _sent(plan, weights.device), start, count, len(ends), len(keys),
            KIND=_KINDS[weights.dtype], IS_GAUSSIAN=gaussian, IS_WHOLE=_is_whole(start, count), GRANULES=_GRANULES,
            **_OPTIONS,
        )  # fmt: skip


def _perturb(
    out: torch.Tensor, below: torch.Tensor | None, weights: torch.Tensor, rows: torch.Tensor | None, key: int,
    start: int, mu: float, gaussian: bool, kind: int,
) -> None:  # fmt: skip
    if not out.numel():
        return
    num, width = (1, out.numel()) if rows is None else out.shape
    granules = _GRANULES if rows is None else _GRANULES_OF_LOOKUP
    is_anywhere = rows is not None and width % c.GRANULE  # where a row begins in its granule
    num_blocks = _num_blocks(c.GRANULE - 1 if is_anywhere else start, width, granules)
    k0, k1, scale = np.frombuffer(struct.pack("<Qf", key, mu), "<i4").tolist()
    with _on(out):
        _perturb_kernel[(num * num_blocks,)](
            _patterns(out), below, _patterns(weights), rows, start, width, 0 if rows is None else weights.shape[0],
            num_blocks, k0, k1, scale,
            KIND=kind, IS_GAUSSIAN=gaussian, IS_LOOKUP=rows is not None, IS_WHOLE=_is_whole(start, width),
            GRANULES=granules, **_OPTIONS,
        )  # fmt: skip


def _num_blocks(start: int, count: int, granules: int) -> int:
    return -(-(start % c.GRANULE + count) // (granules * c.GRANULE))


def _is_whole(start: int, count: int) -> bool:
    return start % c.GRANULE == 0 and count % c.GRANULE == 0


def _patterns(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, 16-bit floats as integers: their conversions are the contract's own."""
    return tensor.detach() if tensor.dtype == torch.float32 else tensor.detach().view(torch.int16)


def _sent(plan: np.ndarray, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return torch.from_numpy(plan)
    return _sent_once(plan.tobytes(), device, torch.cuda.current_stream(device).cuda_stream)


@lru_cache(maxsize=8)
def _sent_once(plan: bytes, device: torch.device, _stream: int) -> torch.Tensor:
    """The plan on the device, without waiting for it: from pinned memory, which torch keeps until it has arrived.

    An update's tensors have one plan; each stream has its own copy, as it waits for no other.
    """
    return torch.frombuffer(bytearray(plan), dtype=torch.int64).pin_memory().to(device, non_blocking=True)


def _on(tensor: torch.Tensor) -> AbstractContextManager:
    """Within it kernels start on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
