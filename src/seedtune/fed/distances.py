"""How far each client's update lies from the clients' mean update: the signal of `model-diff` rates.

    s_i = sum over tensors of || Delta_i - mean_j Delta_j ||_2        (FedMeZO, arXiv 2402.05926, and its code)

Delta_i is what client i's local steps added to the tuned tensors; the mean counts all clients alike. This module moves
no weights and does not know what the distances are used for.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Protocol

import numpy as np
import torch

from ..space import Space, Weights
from ..zo import noise
from ..zo.noise import Distribution

Moves = tuple[Sequence[int], np.ndarray]
"""A client's update as scalars: keys [K], and how far it went along each direction, [K]; NaN where it did not."""


class ManyWeights(Sized, Iterable[Weights], Protocol):
    """Clients' weights, each made when its turn comes."""


_CHUNK_VALUES = 2**18  # of all clients together: 2 MiB in float64, which a processor's cache holds
_SMALLEST_CHUNK = 2**11  # coordinates: with fewer, calls take longer than the noise
_KEYS_AT_ONCE = 16

_Rows = Callable[[int, int], torch.Tensor]
"""start, count -> a chunk of all clients' updates, float64 [n, count]."""


def from_scalars(space: Space, updates: Sequence[Moves], distribution: Distribution) -> np.ndarray:
    """s_i of each client, float64 [n], where Delta_i = sum_k coefficients_i[k] z(keys_i[k]).

    This is the update that the scalars tell, before any rounding to storage. Relative error: some 1e-7 where clients
    have keys of their own (float32 sums over k), some 1e-15 where all have the same.

    Raises:
        ValueError: other than one coefficient a key, or an infinite one.

    Cost: for each tuned parameter n K values of directions, as many as `apply` makes of the round's record, or where
    all clients have the same keys K of them and n K multiplications. Memory: about 10 MiB, and 24 kB a client beyond
    128, whatever the number of parameters.
    """
    _check(updates)
    if len(updates) < 2:
        return np.zeros(len(updates))
    keys = [tuple(keys) for keys, _ in updates]
    coefficients = [np.where(np.isnan(c), 0.0, np.asarray(c, np.float64)) for _, c in updates]
    scale = _power_of_two_below(max(np.abs(c).max(initial=0.0) for c in coefficients))
    scaled = [c / scale for c in coefficients]
    same = len(set(keys)) == 1
    rows = _shared(keys[0], np.stack(scaled), distribution) if same else _own(keys, scaled, distribution)
    return scale * _summed_norms(space, len(updates), rows)


def from_weights(after: ManyWeights) -> np.ndarray:
    """s_i of each client, float64 [n], from the clients' weights after their local steps.

    The weights before them cancel: Delta_i - mean_j Delta_j = theta_i - mean_j theta_j.

    Args:
        after: each client's weights, with the same tensors. Iterated twice, one client at a time, so that it may make
            them anew from the messages that brought them.

    Cost: two passes. Memory: the mean and one tensor in float64, besides what holds `after`. That is a copy of the
    weights a client: the mean is not known before the last of them, and inner products of pairs, from which the
    distances follow too, need the pairs and lose half of the digits.
    """
    mean: dict[str, torch.Tensor] = {}
    for weights in after:
        for name, tensor in weights.items():
            if name not in mean:
                mean[name] = torch.zeros_like(tensor, dtype=torch.float64)
            mean[name] += tensor
    for total in mean.values():
        total /= len(after)
    return np.array([sum(float((w[name].double() - mean[name]).norm()) for name in mean) for w in after])


def _check(updates: Sequence[Moves]) -> None:
    for number, (keys, coefficients) in enumerate(updates):
        if np.shape(coefficients) != (len(keys),):
            raise ValueError(
                f"update {number} of {len(keys)} keys has coefficients {list(np.shape(coefficients))}: one a key"
            )
        if np.isinf(coefficients).any():
            raise ValueError(f"update {number} has an infinite coefficient: must be finite, or NaN for a skipped step")


def _power_of_two_below(largest: float) -> float:
    """By which coefficients can be divided without rounding, so that float32 sums neither overflow nor vanish."""
    return float(np.ldexp(1.0, np.frexp(largest)[1] - 1))


def _own(keys: Sequence[tuple[int, ...]], coefficients: Sequence[np.ndarray], distribution: Distribution) -> _Rows:
    def rows(start: int, count: int) -> torch.Tensor:
        out = torch.zeros(len(keys), count)
        for row, own, factors in zip(out, keys, coefficients, strict=True):
            noise.accumulate(row, start, own, factors, distribution, rounding_key=0)
        return out.double()

    return rows


def _shared(keys: tuple[int, ...], coefficients: np.ndarray, distribution: Distribution) -> _Rows:
    """The mean is taken of the coefficients: where they agree, nothing is left of the directions' values."""
    factors = torch.from_numpy(coefficients - coefficients.mean(0))

    def rows(start: int, count: int) -> torch.Tensor:
        out = torch.zeros(len(factors), count, dtype=torch.float64)
        for first in range(0, len(keys), _KEYS_AT_ONCE):
            part = slice(first, first + _KEYS_AT_ONCE)
            directions = [noise.values(key, start, count, distribution) for key in keys[part]]
            out.addmm_(factors[:, part], torch.stack(directions).double())
        return out

    return rows


def _summed_norms(space: Space, num_clients: int, rows: _Rows) -> np.ndarray:
    """Sum over tensors of the norms of the rows less their mean, float64 [n]."""
    chunk = max(_CHUNK_VALUES // max(num_clients, _KEYS_AT_ONCE), _SMALLEST_CHUNK)
    total = torch.zeros(num_clients, dtype=torch.float64)
    for spec in space.tensors:
        squares = torch.zeros_like(total)
        for first in range(0, spec.num_elements, chunk):
            squares += _squares(rows(spec.start + first, min(chunk, spec.num_elements - first)))
        total += squares.sqrt()
    return total.numpy()


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """Squared distance of each row from the mean row; overwrites them."""
    return rows.sub_(rows.mean(0)).square_().sum(1)
