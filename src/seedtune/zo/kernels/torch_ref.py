"""The noise contract in plain torch: reads as its definition and runs on any device.

Unsigned 32-bit words live in int64 tensors. Slow on a CPU (that is what `compiled` is for), bounded in memory.
Arguments are those of `seedtune.zo.noise`, checked there; `gaussian` tells the distribution. Not a place for new ideas:
every other kernel is tested against this one.
"""

from collections.abc import Iterator

import numpy as np
import torch

from . import constants as c

_MASK = 0xFFFFFFFF
_PIECE = 2**20


def philox(counter: torch.Tensor, stream: int, key: int) -> tuple[torch.Tensor, ...]:
    """Four words, int64 in [0, 2^32), for each 64-bit counter (int64, any shape)."""
    zero = torch.zeros_like(counter)
    return philox4x32((counter & _MASK, (counter >> 32) & _MASK, zero + stream, zero), (key & _MASK, key >> 32))


def philox4x32(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 of Salmon et al. (SC 2011): four counter words and two key words to four words."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = x0 * c.PHILOX_M0, x2 * c.PHILOX_M1
        x0, x1, x2, x3 = (high >> 32 & _MASK) ^ x1 ^ k0, high & _MASK, (low >> 32 & _MASK) ^ x3 ^ k1, low & _MASK
        k0, k1 = (k0 + c.PHILOX_W0) & _MASK, (k1 + c.PHILOX_W1) & _MASK
    return x0, x1, x2, x3


def direction(key: int, start: int, count: int, gaussian: bool, device: torch.device) -> torch.Tensor:
    """z(key, start) ... as float32 [count]."""
    first, last = start // c.GRANULE, -(-(start + count) // c.GRANULE)
    granules = torch.arange(first, last, dtype=torch.int64, device=device)
    whole = _gaussian(key, granules) if gaussian else _rademacher(key, granules)
    return whole.reshape(-1)[start - first * c.GRANULE :][:count]


def _rademacher(key: int, granules: torch.Tensor) -> torch.Tensor:
    words = torch.stack(philox(granules, c.RADEMACHER_STREAM, key), dim=-1)
    bits = words.unsqueeze(-1) >> torch.arange(32, device=words.device) & 1
    return (1 - 2 * bits).to(torch.float32)


def _gaussian(key: int, granules: torch.Tensor) -> torch.Tensor:
    lanes = torch.arange(c.GAUSSIAN_LANES, device=granules.device)
    words = philox(granules.unsqueeze(-1) * c.GAUSSIAN_LANES + lanes, c.GAUSSIAN_STREAM, key)
    return torch.stack((*box_muller(words[0], words[1]), *box_muller(words[2], words[3])), dim=-2)


def box_muller(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent normal values, float32, from two words."""
    radius = _radius(a)
    sine, cosine = _sine_cosine(b)
    odd = (b & 1) != 0
    signed = torch.where((b & 2) != 0, -radius, radius)
    return signed * torch.where(odd, cosine, sine), signed * torch.where(odd, -sine, cosine)


def _radius(a: torch.Tensor) -> torch.Tensor:
    u = ((a >> 1).to(torch.float32) + 0.5) * 2.0**-31
    bits = u.view(torch.int32)
    exponent = (bits - c.SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    poly = torch.full_like(f, c.LOG[0])
    for coefficient in c.LOG[1:]:
        poly = poly * f + coefficient
    log = f * f * f * poly - 0.5 * f * f + f + exponent.to(torch.float32) * c.LN2
    # By way of float64 the root is correctly rounded whatever the device's float32 root is.
    return (-2.0 * log).to(torch.float64).sqrt().to(torch.float32)


def _sine_cosine(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    signed = (b >> 8) - ((b >> 31) << 24)
    x = signed.to(torch.float32) * 2.0**-23 * c.QUARTER_PI
    s = x * x
    sine = x * (1.0 + s * (c.SIN[0] + s * (c.SIN[1] + s * c.SIN[2])))
    cosine = 1.0 - 0.5 * s + s * s * (c.COS[0] + s * (c.COS[1] + s * c.COS[2]))
    return sine, cosine


def rounding_bits(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """r of coordinates start ...: int64 [count], uniform on [0, 2^16)."""
    first, last = start // c.GRANULE, -(-(start + count) // c.GRANULE)
    granules = torch.arange(first, last, dtype=torch.int64, device=device)
    lanes = torch.arange(c.ROUNDING_LANES, device=device)
    words = philox(granules.unsqueeze(-1) * c.ROUNDING_LANES + lanes, c.ROUNDING_STREAM, key)
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-2)
    return halves.reshape(-1)[start - first * c.GRANULE :][:count]


def round_stochastic(x: torch.Tensor, r: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 x to `dtype`, up with probability of the part cut off; r from `rounding_bits`."""
    if dtype == torch.float32:
        return x
    nearest = x.to(dtype)
    magnitude = (x.view(torch.int32) & 0x7FFFFFFF).to(torch.int64)
    if dtype == torch.bfloat16:
        bits = ((magnitude + r) >> 16).clamp(max=0x7F7F)
    else:
        normal = (((magnitude + (r >> 3)) >> 13) - (112 << 10)).clamp(max=0x7BFF)
        small = ((x.abs().clamp(max=2.0**-14) * 2.0**37).to(torch.int64) + (r >> 3)) >> 13
        bits = torch.where(magnitude < 0x38800000, small, normal)
    rounded = (bits | (torch.signbit(x).to(torch.int64) << 15)).to(torch.int16).view(dtype)
    return torch.where(nearest.isfinite(), rounded, nearest)


def values(out: torch.Tensor, key: int, start: int, gaussian: bool) -> None:
    for piece in _pieces(out.numel()):
        out[piece] = direction(key, start + piece.start, piece.stop - piece.start, gaussian, out.device)


def perturb(out: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, gaussian: bool) -> None:
    flat_out, flat_weights = out.detach().view(-1), weights.detach().view(-1)
    scale = torch.tensor(mu, dtype=torch.float32, device=out.device)
    for piece in _pieces(out.numel()):
        z = direction(key, start + piece.start, piece.stop - piece.start, gaussian, out.device)
        flat_out[piece] = (flat_weights[piece].to(torch.float32) + scale * z).to(out.dtype)


def perturb_both(
    above: torch.Tensor, below: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, gaussian: bool
) -> None:
    perturb(above, weights, key, start, mu, gaussian)
    perturb(below, weights, key, start, -mu, gaussian)


def perturb_rows(
    out: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, key: int, start: int, mu: float, gaussian: bool
) -> None:
    for i, row in enumerate(rows.tolist()):
        if 0 <= row < len(table):
            perturb(out[i], table[row], key, start + row * table.shape[1], mu, gaussian)
        else:
            out[i] = torch.nan


def accumulate(
    weights: torch.Tensor,
    start: int,
    keys: np.ndarray,
    factors: np.ndarray,
    ends: np.ndarray,
    rounding_keys: np.ndarray,
    gaussian: bool,
) -> None:
    flat = weights.detach().view(-1)
    scales, bounds = torch.from_numpy(factors).to(weights.device), [0, *ends.tolist()]
    for piece in _pieces(flat.numel()):
        at, count = start + piece.start, piece.stop - piece.start
        for first, last, rounding_key in zip(bounds, bounds[1:], rounding_keys.tolist(), strict=False):
            total = flat[piece].to(torch.float32)
            for key, scale in zip(keys[first:last].tolist(), scales[first:last], strict=True):
                total = total + scale * direction(key, at, count, gaussian, flat.device)
            r = rounding_bits(rounding_key, at, count, flat.device)
            flat[piece] = round_stochastic(total, r, weights.dtype)


def _pieces(count: int) -> Iterator[slice]:
    return (slice(at, min(at + _PIECE, count)) for at in range(0, count, _PIECE))
