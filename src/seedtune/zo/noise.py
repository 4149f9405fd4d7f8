"""Directions as pure functions: key and coordinate in, value out. Contracts 1 and 2 of the package.

    >>> key = derive_key(17, "direction", round=3, client=5)
    >>> z = values(key, 1000, 8, Distribution.RADEMACHER)
    >>> bool((values(key, 1003, 2, Distribution.RADEMACHER) == z[3:5]).all())
    True

Layout, version 1. Everything that is needed to write another kernel:

    philox(key, counter, stream) = Philox4x32-10 (Salmon et al., SC 2011) of
        key words      k0 = key mod 2^32, k1 = key div 2^32                   (64-bit key)
        counter words  c0 = counter mod 2^32, c1 = counter div 2^32, c2 = stream, c3 = 0
        result         four 32-bit words w0..w3

    Coordinate i (0 <= i < 2^62) lies in granule g = i div 128 at place p = i mod 128. No value needs another granule.

    Rademacher, stream 0:  counter g;             bit (p mod 32) of w[p div 32]: 0 is +1, 1 is -1
    Gaussian, stream 1:    counter 32 g + p mod 32;  row = p div 32
                           rows 0 and 1 are the Box-Muller pair of (w0, w1), rows 2 and 3 that of (w2, w3)
    rounding, stream 2:    counter 16 g + p mod 16;  h = p div 16
                           r = the low (h even) or high (h odd) half of w[h div 2]

    Box-Muller pair of (a, b), all in float32, each operation rounded to nearest even, none fused:
        u = (float(a div 2) + 0.5) * 2^-31                       in [2^-32, 1], so |z| <= 6.66
        e, f:  u = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)):   e = (bits(u) - 0x3f3504f3) >> 23 (arithmetic),
               f = float_of_bits(bits(u) - (e << 23)) - 1
        P = Horner in f of LOG, highest power first
        log u = ((((f * f) * f) * P - (0.5 * f) * f) + f) + float(e) * LN2
        r = sqrt(-2 * log u)                                     correctly rounded
        x = (float(signed(b) >> 8) * 2^-23) * (pi / 4);  s = x * x
        sin = x * (1 + s * (SIN[0] + s * (SIN[1] + s * SIN[2])))
        cos = (1 - 0.5 * s) + (s * s) * (COS[0] + s * (COS[1] + s * COS[2]))
        b mod 4:  0: r * sin, r * cos    1: r * cos, r * -sin    2: -r * sin, -r * cos    3: -r * cos, -r * -sin
    The constants stand in `seedtune.zo.kernels.constants`. Logarithm: Cephes `logf`; sine and cosine: Cephes `sinf`.

    perturb:     out = nearest_even(float32(w) + mu * z), mu in float32, one multiply and one add
    accumulate:  a = float32(w); for each key in order: a = a + c * z (one multiply, one add); then one rounding:
                 float32: none. bfloat16, float16: stochastic, r as above under the rounding key.
        bfloat16: magnitude bits m of a; (m + r) >> 16
        float16:  |a| >= 2^-14: ((m + (r >> 3)) >> 13) less 112 << 10;  below: (int(|a| * 2^37) + (r >> 3)) >> 13
        Then sign; a result beyond the largest finite number becomes that number. What nearest rounding would call
        infinite is infinite. NaN stays NaN (its payload is nobody's business).
        Unbiased for |a| up to the largest finite number; float16 below 2^-14 within 2^-37.

Autograd sees nothing of this. This module does not know parameters or models, and makes no noise itself: it checks
arguments and hands them to a kernel.
"""

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b

import numpy as np
import torch

from .kernels import kernel_for

VERSION = 1
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST = torch.finfo(torch.float32).max


class Distribution(StrEnum):
    """What the coordinates of a direction are drawn from; both have mean 0 and variance 1."""

    RADEMACHER = "rademacher"
    GAUSSIAN = "gaussian"


def derive_key(
    run_seed: int,
    purpose: str,
    *,
    round: int = 0,
    client: int | None = None,
    step: int = 0,
    direction: int = 0,
    block: int = 0,
) -> int:
    """The 64-bit key for one use of randomness: what is not drawn from such a key is not random.

    key = blake2b, 8 bytes, read as a little-endian integer, of: length of `purpose` in UTF-8 (8 bytes), `purpose`, then
    run_seed, round, client, step, direction, block as 8-byte little-endian two's complement, client None as -1.
    The packing can be undone, so different arguments collide only if blake2b does (2^-64 a pair).

    Args:
        purpose: what it is for, e.g. "direction", "batch", "cohort"; keeps uses apart.
        client: index of the client; None where all clients share the key.

    Raises:
        ValueError: an integer below 0 or from 2^63 on, or an empty purpose.
    """
    fields = {"run_seed": run_seed, "round": round, "step": step, "direction": direction, "block": block}
    if client is not None:
        fields["client"] = client
    for name, value in fields.items():
        if not 0 <= value < 2**63:
            raise ValueError(f"derive_key: {name} = {value}: must be from 0 to 2^63 - 1")
    if not purpose:
        raise ValueError("derive_key: purpose is empty: say what the key is for")
    label = purpose.encode()
    integers = (run_seed, round, -1 if client is None else client, step, direction, block)
    packed = len(label).to_bytes(8, "little") + label + np.array(integers, "<i8").tobytes()
    return int.from_bytes(blake2b(packed, digest_size=8).digest(), "little")


def values(
    key: int, start: int, count: int, distribution: Distribution, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """z(key, start), ..., z(key, start + count - 1): float32 [count] on `device`.

    Raises:
        ValueError: key outside 64 bits, or coordinates outside [0, 2^62).
    """
    out = torch.empty(count if count > 0 else 0, dtype=torch.float32, device=device)
    _check_key(key)
    _check_range(start, count)
    kernel_for(out).values(out, key, start, Distribution(distribution) == Distribution.GAUSSIAN)
    return out


def perturb(
    out: torch.Tensor, weights: torch.Tensor, key: int, start: int, mu: float, distribution: Distribution
) -> None:
    """out := nearest_even(float32(weights) + mu * z(start ...)), coordinates in row-major order.

    Args:
        out, weights: contiguous, same shape, dtype (float32, bfloat16 or float16) and device, memory not shared.
        mu: perturbation scale, rounded to float32; negative for the other side.

    Raises:
        ValueError: tensors unlike that, mu not finite, key outside 64 bits, coordinates outside [0, 2^62).

    Cost: one pass over both tensors; no memory beyond a few kilobytes a thread.
    """
    _check_tensor("out", out)
    _check_tensor("weights", weights)
    if out.shape != weights.shape:
        raise ValueError(f"perturb: out is {list(out.shape)} but weights is {list(weights.shape)}: shapes must match")
    _check_pair("weights", out, weights)
    _check_key(key)
    _check_scale(mu)
    _check_range(start, weights.numel())
    kernel_for(weights).perturb(out, weights, key, start, mu, Distribution(distribution) == Distribution.GAUSSIAN)


def perturb_both(
    above: torch.Tensor,
    below: torch.Tensor,
    weights: torch.Tensor,
    key: int,
    start: int,
    mu: float,
    distribution: Distribution,
) -> None:
    """above := theta + mu z and below := theta - mu z, each as `perturb` would make it, from one generation of z.

    Args:
        above, below, weights: as `out` and `weights` of `perturb`, three buffers of their own.

    Raises:
        ValueError: as `perturb`.

    Cost: that of one `perturb`, and the second buffer's writing.
    """
    for name, out in (("above", above), ("below", below)):
        _check_tensor(name, out)
        if out.shape != weights.shape:
            raise ValueError(f"{name} is {list(out.shape)} but weights is {list(weights.shape)}: shapes must match")
    _check_tensor("weights", weights)
    for name, out, other in (("weights", above, weights), ("weights", below, weights), ("above", below, above)):
        _check_pair(name, out, other)
    _check_key(key)
    _check_scale(mu)
    _check_range(start, weights.numel())
    gaussian = Distribution(distribution) == Distribution.GAUSSIAN
    kernel_for(weights).perturb_both(above, below, weights, key, start, mu, gaussian)


def perturb_rows(
    out: torch.Tensor,
    table: torch.Tensor,
    rows: torch.Tensor,
    key: int,
    start: int,
    mu: float,
    distribution: Distribution,
) -> None:
    """out[i] := what `perturb` would make of row rows[i] of `table`, whose first coordinate is `start`.

    An embedding's look-up at perturbed weights: costs as much as the rows that are asked for, not the table.

    Args:
        out: [m, d], contiguous, dtype and device of table, memory not shared.
        table: [n, d], contiguous.
        rows: int64 [m], each from 0 to n - 1; may repeat. On a GPU nobody waits to see them: one outside the table
            reads nothing and becomes NaN, and with it the loss.

    Raises:
        ValueError: tensors unlike that, mu not finite, key outside 64 bits, coordinates outside [0, 2^62).
    """
    _check_tensor("out", out)
    _check_tensor("table", table)
    _check_pair("table", out, table)
    if rows.dtype != torch.int64 or rows.dim() != 1 or rows.device != table.device or not rows.is_contiguous():
        raise ValueError(
            f"perturb_rows: rows is {rows.dtype} {list(rows.shape)} on {rows.device}: must be contiguous int64 [m] on "
            f"{table.device}"
        )
    if table.dim() != 2 or out.shape != (rows.shape[0], table.shape[1]):
        raise ValueError(
            f"perturb_rows: out is {list(out.shape)} for {rows.shape[0]} rows of a table {list(table.shape)}: "
            "must be [rows, row length]"
        )
    _check_rows(rows, table.shape[0])
    _check_key(key)
    _check_scale(mu)
    _check_range(start, table.numel())
    gaussian = Distribution(distribution) == Distribution.GAUSSIAN
    kernel_for(table).perturb_rows(out, table, rows, key, start, mu, gaussian)


def accumulate(
    weights: torch.Tensor,
    start: int,
    keys: Sequence[int],
    coefficients: Sequence[float] | np.ndarray | torch.Tensor,
    distribution: Distribution,
    rounding_key: int,
) -> None:
    """weights := round(float32(weights) + sum_k coefficients[k] * z(keys[k], start ...)), in place.

    The one update of `accumulate_updates`, as there.
    """
    accumulate_updates(weights, start, keys, coefficients, [len(keys)], [rounding_key], distribution)


def accumulate_updates(
    weights: torch.Tensor,
    start: int,
    keys: Sequence[int] | np.ndarray,
    coefficients: Sequence[float] | np.ndarray | torch.Tensor,
    ends: Sequence[int],
    rounding_keys: Sequence[int],
    distribution: Distribution,
) -> None:
    """Several updates one after another: number u adds coefficients[k] * z(keys[k], start ...) for the k from
    ends[u - 1] (0 for the first) to ends[u] and rounds the sum to storage, all in place.

    An update's sum runs in float32 in the order of `keys`, zero coefficients included; the one rounding at its end is
    keyed and stochastic for bfloat16 and float16 (module docstring), the identity for float32.

    Guarantees: the same bits for any kernel, thread count and slicing of `weights`, and for one call with many updates
    as for one call each; for float32, one update with many keys equals many with one.

    Args:
        weights: contiguous, float32, bfloat16 or float16.
        keys: 64-bit; as an array, uint64 [K].
        coefficients: as many as keys, rounded to float32.
        ends: rising to the number of keys.
        rounding_keys: one an update, new for each that is meant to be independent; float32 does not use them.

    Raises:
        ValueError: tensors unlike that, lengths that differ, a coefficient not finite, a key outside 64 bits,
            coordinates outside [0, 2^62). Nothing is moved then.

    Cost: reads and writes weights once, whatever the number of keys; no memory beyond a few kilobytes a thread.
    """
    _check_tensor("weights", weights)
    factors = np.ascontiguousarray(coefficients, dtype=np.float32)
    if factors.shape != (len(keys),):
        raise ValueError(f"accumulate: coefficients is {list(factors.shape)} for {len(keys)} keys: one for each key")
    if not np.isfinite(factors).all():
        raise ValueError(f"accumulate: coefficients hold {factors[~np.isfinite(factors)][0]}: must be finite")
    _check_ends(ends, len(rounding_keys), len(keys))
    _check_range(start, weights.numel())
    packed, rounding, bounds = _packed(keys), _packed(rounding_keys), np.array(ends, np.int64)
    gaussian = Distribution(distribution) == Distribution.GAUSSIAN
    kernel_for(weights).accumulate(weights, start, packed, factors, bounds, rounding, gaussian)


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}: must be float32, bfloat16 or float16")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} {list(tensor.shape)} has strides {tensor.stride()}: must be contiguous")


def _check_pair(name: str, out: torch.Tensor, other: torch.Tensor) -> None:
    if out.dtype != other.dtype or out.device != other.device:
        raise ValueError(
            f"out is {out.dtype} on {out.device} but {name} is {other.dtype} on {other.device}: must be alike"
        )
    first, second = out.data_ptr(), other.data_ptr()
    size = out.element_size()
    if first < second + other.numel() * size and second < first + out.numel() * size:
        raise ValueError(f"out shares memory with {name}: must be a buffer of its own")


def _check_rows(rows: torch.Tensor, num_rows: int) -> None:
    if rows.is_cuda or not rows.shape[0]:
        return
    low, high = (int(end) for end in rows.aminmax())
    if low < 0 or high >= num_rows:
        raise ValueError(f"perturb_rows: rows go from {low} to {high}: the table has rows 0 to {num_rows - 1}")


def _check_ends(ends: Sequence[int], num_updates: int, num_keys: int) -> None:
    bounds = [0, *ends]
    if len(ends) != num_updates or sorted(bounds) != bounds or bounds[-1] != num_keys:
        raise ValueError(
            f"accumulate: {num_updates} updates of {num_keys} keys end at {list(ends)}: must rise to all "
            "of them, an end an update"
        )


def _check_scale(mu: float) -> None:
    if not abs(mu) <= _LARGEST:
        raise ValueError(f"mu = {mu}: must be a finite float32")


def _check_key(key: int) -> None:
    if not 0 <= key < 2**64:
        raise ValueError(f"key {key}: must be from 0 to 2^64 - 1")


def _packed(keys: Sequence[int] | np.ndarray) -> np.ndarray:
    if not isinstance(keys, np.ndarray):
        for key in keys:
            _check_key(key)
    return np.ascontiguousarray(keys, np.uint64)


def _check_range(start: int, count: int) -> None:
    if not (start >= 0 and count >= 0 and start + count <= 2**62):
        raise ValueError(f"coordinates {start} to {start} + {count}: must lie in 0 to 2^62")
