"""`apply`: the only function that moves parameters.

Training, catching up, late joining, resuming and replay all call it with the same records, so whoever replays a
trajectory holds bit-identical weights. It reads no losses and makes no decisions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..space import ALL_TENSORS, Space, Weights
from . import noise
from .noise import Distribution


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
        ValueError: an update with other than one coefficient a key, or an infinite one; weights not contiguous.
            Updates before it are made.

    Cost: weights are read and written once an update, directions generated once each; no copy of the weights.
    """
    for update in updates:
        if len(update.keys) != len(update.coefficients):
            raise ValueError(
                f"update of {len(update.keys)} keys has {len(update.coefficients)} coefficients: one a key"
            )
        kept = np.flatnonzero(~np.isnan(update.coefficients))
        if not len(kept):
            continue
        keys = tuple(update.keys[k] for k in kept)
        coefficients = np.ascontiguousarray(update.coefficients[kept], np.float32)
        for spec in space.part(update.tensors).tensors:
            tensor = weights[spec.name]
            noise.accumulate(tensor, spec.start, keys, coefficients, distribution, update.rounding_key)
