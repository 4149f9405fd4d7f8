"""Projected gradients from loss values alone.

An estimator asks for the losses at its points of theta + mu z, all at once, and returns one scalar a direction; it
never sees weights, batches or models, nor which points share a forward. E[z z^T] = I for every distribution here, so
sum_p g_p z_p / P estimates the gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .noise import Distribution
from .perturb import Perturbation

LossAt = Callable[[Perturbation | None], float]
"""The loss of one fixed batch at a point; `None` is theta itself. One forward pass a call."""

LossesAt = Callable[[Sequence[Perturbation | None]], Sequence[float]]
"""The losses of one fixed batch at some points, one forward pass a point, or several points in one."""

MAY_BE_INFINITE = np.errstate(invalid="ignore", over="ignore")  # losses may be: `Probe.of` makes NaN of it, no warning

Estimator = Callable[[LossesAt, Sequence[int], float, Distribution], "Probe"]


@dataclass(frozen=True)
class Probe:
    """What one step learned.

    keys: one 64-bit key a direction, [P].
    scalars: projected gradients, float32 [P]; all NaN where a loss was not finite, so that no half step is made.
    loss: mean of the losses seen, an estimate of F(theta) with an error of order mu^2 (one-sided: F(theta) itself).
    num_forwards: forward passes made.
    """

    keys: tuple[int, ...]
    scalars: np.ndarray
    loss: float
    num_forwards: int

    @classmethod
    def of(cls, keys: Sequence[int], scalars: np.ndarray, loss: float, num_forwards: int) -> "Probe":
        """Of scalars in float64, [P]: all are NaN where one is not a finite float32."""
        scalars = scalars.astype(np.float32)
        if not np.isfinite(scalars).all():
            scalars = np.full_like(scalars, np.nan)
        return cls(tuple(keys), scalars, loss, num_forwards)


def one_by_one(loss_at: LossAt) -> LossesAt:
    """Each point in a forward of its own."""
    return lambda points: [loss_at(point) for point in points]


@MAY_BE_INFINITE
def two_point(losses_at: LossesAt, keys: Sequence[int], mu: float, distribution: Distribution) -> Probe:
    """g_p = [F(theta + mu z_p) - F(theta - mu z_p)] / 2 mu: central differences, error O(mu^2).

    Both sides of a direction are asked for side by side: they share its bits.

    Cost: 2 P forwards. Source: Spall 1992 (SPSA); MeZO, arXiv 2305.17333, Definition 1.

    >>> losses_at = one_by_one(lambda at: 3.0 + 2.0 * at.mu)
    >>> probe = two_point(losses_at, [1, 2], 1e-3, Distribution.RADEMACHER)
    >>> probe.scalars.round(3), probe.num_forwards
    (array([2., 2.], dtype=float32), 4)
    """
    losses = losses_at([Perturbation(key, signed, distribution) for key in keys for signed in (mu, -mu)])
    above, below = np.array(losses).reshape(-1, 2).T
    return Probe.of(keys, (above - below) / (2 * mu), float(np.mean([above, below])), 2 * len(keys))


@MAY_BE_INFINITE
def one_sided(losses_at: LossesAt, keys: Sequence[int], mu: float, distribution: Distribution) -> Probe:
    """g_p = [F(theta + mu z_p) - F(theta)] / mu: forward differences, error O(mu).

    Cost: P + 1 forwards. Source: FedZO (Fang et al. 2022); BAFFLE, arXiv 2301.12195.
    """
    here, *above = losses_at([None, *(Perturbation(key, mu, distribution) for key in keys)])
    return Probe.of(keys, (np.array(above) - here) / mu, here, len(keys) + 1)


ESTIMATORS: dict[str, Estimator] = {"two-point": two_point, "one-sided": one_sided}
