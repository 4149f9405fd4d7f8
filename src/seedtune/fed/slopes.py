"""What one local step tells of learning rates: its loss half-way, at its end, and on examples that it has not seen.

Where a round is asked to (`auto.is_due`), a client evaluates its first step D, block by block, on the step's own batch
at theta, theta + D / 2 and theta + D; a parabola through the three gives

    gain    how fast the loss falls at first, in nats per unit of the block's learning rate
    bend    the curvature that the step meets, D^T H D in nats per squared unit

and the whole step on a fresh batch, at its beginning and its end:

    fresh   the gain of all blocks there, in nats per unit of block 1's rate: what is no noise of the first batch

No derivative is formed, and no assumption made on how the step was estimated. What is made of it is `auto`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..space import Weights
from ..zo import noise
from ..zo.meter import WHOLE, Tally
from ..zo.update import Update, apply

if TYPE_CHECKING:
    from .client import Site
    from .messages import Order

LOST_BEND = 40.0
"""Of a step whose loss is not finite, in nats where its gain is 1: what would make the loss rise by 19."""


@dataclass(frozen=True)
class Measured:
    """slopes: gain and bend of each block, then fresh; forwards made and their floating-point operations."""

    slopes: tuple[float, ...] = ()
    num_forwards: int = 0
    num_flops: int = 0


def along(
    site: "Site", order: "Order", batch: Any, weights: Weights, updates: Sequence[Update], start: float | None = None
) -> Measured:
    """Makes a step, whose `updates` are one a block, in two halves each, and tells what it meets on the way.

    A step that has nothing to say, since it was skipped or moves nothing, is made and measured as zeros.

    Args:
        start: the loss of the step's batch before it, where it is known.

    Cost: 2 forwards a block on the step's batch, 1 more without a `start`, and 2 on a fresh one; no memory beyond the
    weights that move.
    """
    seed, client = site.header.seed, order.client
    fresh = site.batch(client, noise.derive_key(seed, "fresh batch", round=order.round, client=client))

    def move(update: Update, half: int) -> None:
        key = noise.derive_key(seed, "half step", round=order.round, client=client, step=half)
        halved = replace(update, coefficients=update.coefficients / np.float32(2), rounding_key=key)
        apply(site.perturber.space, weights, (halved,), site.header.distribution)

    split = site.header.split_at(order.rate_ratio)
    rates = (order.rate, order.rate * split.rate_ratio) if split else (order.rate,)
    of_batch, of_fresh = Losses(site, batch), Losses(site, fresh, site.frozen_flops(fresh))
    before, losses = of_fresh(), [of_batch() if start is None else start]
    for half, update in enumerate(update for update in updates for _ in (0, 1)):
        move(update, half)
        losses.append(of_batch())
    slopes = slopes_of(losses, before - of_fresh(), rates)
    return Measured(slopes, of_batch.num_forwards + of_fresh.num_forwards, of_batch.tally.flops + of_fresh.tally.flops)


class Losses:
    """The loss of one batch at the weights bound, counted."""

    def __init__(self, site: "Site", batch: Any, num_frozen_flops: int = 0):
        self._loss = partial(site.loss, batch)
        self.tally = Tally(site.meter, site.shape(batch), num_frozen_flops)

    @property
    def num_forwards(self) -> int:
        return self.tally.runs[WHOLE]

    def __call__(self) -> float:
        return float(self.tally.counted(WHOLE, self._loss))


def slopes_of(losses: Sequence[float], fresh_fall: float, rates: Sequence[float]) -> tuple[float, ...]:
    """Gain and bend of each block, then fresh, from the losses at the beginning, middle and end of each block's step of
    length `rates`, one's end being the next one's beginning, and from how much all of it lowers a fresh batch's loss.

    >>> slopes_of([1.0, 0.625, 0.5], 0.25, [0.5])
    (2.0, 4.0, 1.5)
    """
    if not isfinite(losses[0]):
        return (0.0,) * (2 * len(rates) + 1)
    if not all(map(isfinite, (*losses, fresh_fall))):
        return (*(number for rate in rates for number in (1 / rate, LOST_BEND / rate**2)), 0.0)
    falls = zip(losses[:-2:2], losses[1::2], losses[2::2], rates, strict=True)
    slopes = [number for start, middle, end, rate in falls for number in _parabola(start - middle, start - end, rate)]
    curved = sum(bend * rate**2 / 2 for bend, rate in zip(slopes[1::2], rates, strict=True))
    return (*slopes, (fresh_fall + curved) / rates[0])


def _parabola(half: float, whole: float, rate: float) -> tuple[float, float]:
    """(gain, bend) of a step of length `rate` after whose half, and at whose end, the loss has fallen so far."""
    return (4 * half - whole) / rate, 4 * (2 * half - whole) / rate**2
