"""`apply`: the only function that moves parameters.

Training, catching up, late joining, resuming and replay all call it with the same records, so whoever replays a
trajectory holds bit-identical weights. It reads no losses and makes no decisions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..space import ALL_TENSORS, Space, Weights
from . import noise
from .noise import Distribution

_KEYS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Update:
    """theta <- theta + sum_k coefficients[k] z(keys[k]), rounded to storage once, at the end.

    keys: 64-bit, [K]; their order is the order of the float32 additions.
    coefficients: float32 [K]; a NaN marks a skipped step and moves nothing.
    rounding_key: draws the stochastic rounding of 16-bit storage; unused by float32.
    tensors: mask of those that move (`Space.part`). Updates of one step move tensors of their own each, and share the
        rounding key.
    """

    keys: tuple[int, ...]
    coefficients: np.ndarray
    rounding_key: int
    tensors: int = ALL_TENSORS


def apply(space: Space, weights: Weights, updates: Iterable[Update], distribution: Distribution) -> None:
    """Moves `weights` in place, update after update.

    Guarantees: the result depends on the arguments' values alone: not on processor, kernel, thread count, or on how a
    list of updates is cut into calls.

    Raises:
        ValueError: an update with other than one coefficient a key, or an infinite one; weights not contiguous. Updates
            before it may be made.

    Cost: directions are generated once each; weights are read and written once for all updates of a block, which has
    up to about 65,536 keys. No copy of the weights.
    """
    for block in _blocks(updates):
        parts: dict[frozenset[int], _Part] = {}
        for i, spec in enumerate(space.tensors):
            masks = frozenset(update.tensors for update in block if update.tensors >> i & 1)
            if masks not in parts:
                parts[masks] = _part([update for update in block if update.tensors in masks])
            if len((part := parts[masks]).keys):
                noise.accumulate_updates(
                    weights[spec.name], spec.start, part.keys, part.coefficients, part.ends, part.rounding_keys,
                    distribution,
                )  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """Updates of one set of tensors as `noise.accumulate_updates` takes them, without what was skipped."""

    keys: np.ndarray
    coefficients: np.ndarray
    ends: list[int]
    rounding_keys: list[int]


def _blocks(updates: Iterable[Update]) -> Iterator[list[Update]]:
    block, num_keys = [], 0
    for update in updates:
        if len(update.keys) != len(update.coefficients):
            raise ValueError(
                f"update of {len(update.keys)} keys has {len(update.coefficients)} coefficients: one a key"
            )
        block.append(update)
        num_keys += len(update.keys)
        if num_keys >= _KEYS_AT_ONCE:
            yield block
            block, num_keys = [], 0
    yield block


def _part(updates: list[Update]) -> _Part:
    keys: list[int] = []
    coefficients: list[float] = []
    ends, rounding_keys = [], []
    for update in updates:
        kept = np.flatnonzero(~np.isnan(update.coefficients))
        if len(kept):
            keys.extend(update.keys[k] for k in kept)
            coefficients.extend(update.coefficients[kept])
            ends.append(len(keys))
            rounding_keys.append(update.rounding_key)
    return _Part(np.array(keys, np.uint64), np.array(coefficients, np.float32), ends, rounding_keys)
