"""What one local step tells of learning rates: its loss half-way, at its end, and on examples that it has not seen.

Where a round is asked to (`auto.is_due`), a client evaluates its first step D, block by block: on the step's own batch
at theta, theta + D / 2 and theta + D, on a fresh batch at theta and theta + D. A parabola through the first three gives

    gain    how fast the loss falls at first, in nats per unit of learning rate
    bend    the curvature that the step meets, D^T H D in nats per squared unit
    fresh   the gain on the fresh batch: what is no noise of the first one

No derivative is formed, and no assumption made on how the step was estimated. What is made of it is `auto`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..space import Weights
from ..zo import noise
from ..zo.meter import WHOLE, Tally
from ..zo.reuse import Found, Prefix
from ..zo.update import Update, apply

if TYPE_CHECKING:
    from .client import Site
    from .messages import Order

LOST_BEND = 40.0
"""Of a step whose loss is not finite, in nats where its gain is 1: what would make the loss rise by 19."""


@dataclass(frozen=True)
class Measured:
    """slopes: (gain, bend, fresh) of each block; forwards made and their floating-point operations."""

    slopes: tuple[float, ...] = ()
    num_forwards: int = 0
    num_flops: int = 0


def along(site: "Site", order: "Order", batch: Any, weights: Weights, updates: Sequence[Update]) -> Measured:
    """Makes a step, whose `updates` are one a block, in two halves each, and tells what it meets on the way.

    A step that has nothing to say, since it was skipped or moves nothing, is made and measured as (0, 0, 0).

    Cost: 3 forwards on the step's batch and 2 on a fresh one, for two blocks 5 and 3, the frozen prefix of each batch
    once; no memory beyond the weights that move.
    """
    seed, client = site.header.seed, order.client
    fresh = site.batch(client, noise.derive_key(seed, "fresh batch", round=order.round, client=client))

    def move(update: Update, half: int) -> None:
        key = noise.derive_key(seed, "half step", round=order.round, client=client, step=half)
        halved = replace(update, coefficients=update.coefficients / np.float32(2), rounding_key=key)
        apply(site.perturber.space, weights, (halved,), site.header.distribution)

    split = site.header.split_at(order.rate_ratio)
    rates = (order.rate, order.rate * split.rate_ratio) if split else (order.rate,)
    with site.perturber.one_batch() as prefix:
        seen, unseen = (Losses(site, of, prefix) for of in (batch, fresh))
        slopes = tuple(number for block in _blocks(updates, rates, seen, unseen, move) for number in block)
    return Measured(slopes, seen.num_forwards + unseen.num_forwards, seen.tally.flops + unseen.tally.flops)


class Losses:
    """The loss of one of several batches that take turns within the `Perturber.one_batch` of `prefix`, counted."""

    def __init__(self, site: "Site", batch: Any, prefix: Prefix):
        self._prefix, self._found, self._loss = prefix, Found(), partial(site.loss, batch)
        self.tally = Tally(site.meter, site.shape(batch), prefix)

    @property
    def num_forwards(self) -> int:
        return self.tally.runs[WHOLE]

    def __call__(self) -> float:
        self._prefix.turn_to(self._found)
        return float(self.tally.counted(WHOLE, self._loss))


def _blocks(
    updates: Sequence[Update],
    rates: Sequence[float],
    of_batch: Callable[[], float],
    of_fresh: Callable[[], float],
    move: Callable[[Update, int], None],
) -> Iterator[tuple[float, float, float]]:
    here, unseen = of_batch(), of_fresh()
    for block, (update, rate) in enumerate(zip(updates, rates, strict=True)):
        losses = [here]
        for half in (0, 1):
            move(update, 2 * block + half)
            losses.append(of_batch())
        before, unseen = unseen, of_fresh()
        here = losses[-1]
        yield parabola(losses, before - unseen, rate)


def parabola(losses: Sequence[float], fresh_fall: float, rate: float) -> tuple[float, float, float]:
    """(gain, bend, fresh) of a step of length `rate`, from the losses at its beginning, middle and end, and by how much
    it lowers the loss of a fresh batch.

    >>> parabola([1.0, 0.625, 0.5], 0.25, 0.5)
    (2.0, 4.0, 1.5)
    """
    start, middle, end = losses
    if not all(map(isfinite, (*losses, fresh_fall))):
        return (1 / rate, LOST_BEND / rate**2, 0.0) if isfinite(start) else (0.0, 0.0, 0.0)
    half, whole = start - middle, start - end
    curved = 2 * (2 * half - whole)
    return (4 * half - whole) / rate, 2 * curved / rate**2, (fresh_fall + curved) / rate
