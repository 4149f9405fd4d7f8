"""A number with the interval that it is known to lie in, and the two ways by which probes come to one.

The level is that of the studies' bands, 90 %. What an interval covers is the randomness of a probe's own draws; that
examples were drawn from a task is not part of it unless a probe says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.keyed import generator
from .estimates import LEVEL, estimate


@dataclass(frozen=True)
class Interval:
    """A value, and between which bounds it lies; None where nothing is known of them."""

    value: float
    low: float | None = None
    high: float | None = None

    def over(self, divisor: float) -> "Interval":
        """Value and bounds divided by a positive number, taken as exact."""
        bounds = (None if bound is None else bound / divisor for bound in (self.low, self.high))
        return Interval(self.value / divisor, *bounds)

    def contains(self, value: float) -> bool:
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def student(samples: Sequence[float] | np.ndarray) -> Interval:
    """The mean of independent samples, and its 90 % interval by Student's t.

    Exact for normal samples; for others as good as the mean of so many is normal. No bounds for one sample.

    >>> found = student([1.0, 2.0, 3.0])
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (2.0, 0.314, 3.686)
    """
    samples = np.asarray(samples, np.float64)
    found = estimate(samples.tolist())
    if found is None or found.half_width is None:
        return Interval(float(samples.mean()))
    return Interval(found.mean, found.low, found.high)


def bootstrap(statistic: Callable[[np.ndarray], float], num_units: int, key: int, num_resamples: int = 500) -> Interval:
    """statistic(all units), and its 90 % percentile interval over resamples of the units (Efron 1979).

    `statistic` is given indices of units, int64 [num_units], drawn with replacement by `key`. Resamples for which it is
    not finite, as a correlation of equal numbers, are left out; no bounds where these are more than half.
    """
    rng, value = generator(key), statistic(np.arange(num_units))
    drawn = np.array([statistic(rng.integers(0, num_units, num_units)) for _ in range(num_resamples)])
    finite = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or len(finite) * 2 < num_resamples:
        return Interval(float(value))
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
