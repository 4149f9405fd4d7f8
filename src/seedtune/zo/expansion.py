"""What the scalars of a split step say: one set of projected gradients, coefficients for two blocks' directions.

FedSPZO (arXiv 2502.10239) cuts a model in two and gives the second block more directions. Nested and clean-prefix are
our readings of it (docs/fedspzo.md). What is sent and recorded are the raw projected gradients; this module says which
directions they move how far, the same for a client's local steps, the server and whoever replays. P1 directions of
block 1, P2 of block 2; g as `zo.split` measures it:

    nested          S = P1 P2, key (p, q) is that of direction p P2 + q
                    block 1: sum_q g_pq / S along the direction of key (p, 0)
                    block 2: r g'_pq / S along the direction of key (p, q)
                    baseline none:          g'_pq = g_pq
                    baseline leave-one-out: g'_pq = g_pq - mean of g_pq' over q' != q = P2 / (P2 - 1) (g_pq - mean_q)
    clean-prefix    S = P1 + P2, block 1's keys first
                    block 1: g_p / P1;    block 2: r g_q / P2

r is block 2's learning rate as a multiple of block 1's. The division by S is left to the caller (a record's factors
hold it, as they hold P of other estimators). A direction of a block is the restriction of a keyed direction to the
block's tensors. So block 1 and the first direction of block 2 share a key and are independent nevertheless, and
P1 = P2 = 1 is the two-point estimator to the bit. No model, no loss and no file here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..space import ALL_TENSORS, Space
from .update import Update

READINGS = ("nested", "clean-prefix")
BASELINES = ("none", "leave-one-out")
_MOST_DIRECTIONS = 100_000


@dataclass(frozen=True)
class Split:
    """How steps of a run are told in scalars; as plain data a part of a trajectory's header.

    num_prefix, num_suffix: P1, P2. block1: mask of block 1's tuned tensors, in hex: bit i is the space's tensor i.

    Raises:
        ValueError: a field out of its range, of another type, or a baseline that has nothing to work on.
    """

    reading: str
    num_prefix: int
    num_suffix: int
    baseline: str
    rate_ratio: float
    block1: str

    def __post_init__(self) -> None:
        fits = {
            "reading": self.reading in READINGS,
            "num_prefix": _is_count(self.num_prefix),
            "num_suffix": _is_count(self.num_suffix),
            "baseline": self.baseline in BASELINES and (self.baseline == "none" or self._has_siblings),
            "rate_ratio": type(self.rate_ratio) is float and 0 < self.rate_ratio <= 1e6,
            "block1": type(self.block1) is str and re.fullmatch("[1-9a-f][0-9a-f]*", self.block1),
        }
        for name, holds in fits.items():
            if not holds:
                raise ValueError(f"split.{name} = {getattr(self, name)!r}")

    @property
    def num_scalars(self) -> int:
        """S: projected gradients a step."""
        counts = self.num_prefix, self.num_suffix
        return counts[0] * counts[1] if self.reading == "nested" else sum(counts)

    @property
    def directions(self) -> tuple[slice, slice]:
        """Which of a step's S keys are block 1's, and which block 2's."""
        if self.reading == "nested":
            return slice(0, None, self.num_suffix), slice(0, None)
        return slice(0, self.num_prefix), slice(self.num_prefix, None)

    def coefficients(self, scalars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of block 1 and of block 2, times S, from projected gradients, float64 [..., S].

        >>> split = Split("nested", 1, 2, "leave-one-out", 0.5, "3")
        >>> [along.tolist() for along in split.coefficients(np.array([3.0, 1.0]))]
        [[4.0], [1.0, -1.0]]
        """
        first, second = (self._nested if self.reading == "nested" else self._clean)(scalars)
        return first, self.rate_ratio * second

    def at(self, rate_ratio: float | None) -> "Split":
        """With another ratio of rates; None: its own."""
        return self if rate_ratio is None else replace(self, rate_ratio=rate_ratio)

    def fits(self, space: Space) -> bool:
        """Whether block 1 is some of the space's tensors, with some left for block 2."""
        return int(self.block1, 16) < 2 ** len(space.tensors) - 1

    @property
    def _has_siblings(self) -> bool:
        return self.reading == "nested" and self.num_suffix != 1

    def _nested(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        each = values.reshape(*values.shape[:-1], self.num_prefix, self.num_suffix)
        total = each[..., 0]
        for q in range(1, self.num_suffix):  # in this order, so that the bits are the same on any machine
            total = total + each[..., q]
        if self.baseline == "leave-one-out":
            each = self.num_suffix / (self.num_suffix - 1) * (each - (total / self.num_suffix)[..., None])
        return total, each.reshape(values.shape)

    def _clean(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = (values[..., part] for part in self.directions)
        return first * (self.num_scalars / self.num_prefix), second * (self.num_scalars / self.num_suffix)


@dataclass(frozen=True)
class Move:
    """How far steps go along directions, in some tensors: keys [K], coefficients float64 [K], NaN where a step was
    skipped. tensors: the mask of those that move (`Space.part`)."""

    tensors: int
    keys: tuple[int, ...]
    coefficients: np.ndarray


def moves(split: Split | None, keys: Sequence[int], scalars: np.ndarray) -> tuple[Move, ...]:
    """What the scalars of some steps say: one move of all tensors, or one for each block, of tensors of its own.

    Guarantee: linear in the scalars, and the same bits on any machine.

    Args:
        keys: one for each scalar, in the same order.
        scalars: [..., S], one row a step; float64 arithmetic.
    """
    values = np.asarray(scalars, np.float64)
    if split is None:
        return (Move(ALL_TENSORS, tuple(keys), values.reshape(-1)),)
    steps = [keys[first : first + split.num_scalars] for first in range(0, len(keys), split.num_scalars)]
    mask = int(split.block1, 16)
    return tuple(
        Move(tensors, tuple(key for step in steps for key in step[own]), along.reshape(-1))
        for tensors, own, along in zip((mask, ~mask), split.directions, split.coefficients(values), strict=True)
    )


def updates_of(split: Split | None, keys: Sequence[int], scalars: np.ndarray, rounding_key: int) -> tuple[Update, ...]:
    """What `apply` does for the scalars of some steps, which hold -rate / S already; infinite where float32 ends."""
    with np.errstate(over="ignore"):
        return tuple(
            Update(move.keys, move.coefficients.astype(np.float32), rounding_key, move.tensors)
            for move in moves(split, keys, scalars)
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST_DIRECTIONS
