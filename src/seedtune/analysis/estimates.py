"""What several seeds say together: a mean, its band, and whether two cases differ; and the line through points.

Bands are 90 % intervals of the mean by Student's t. Two cases differ where their bands do not overlap: stricter than a
test of the difference, so "within the band" is no proof that they are equal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.90
DIGITS = 3
"""Decimals that are shown of a mean."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its band: None where there is one seed."""

    mean: float
    half_width: float | None
    num_seeds: int

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean and its 90 % interval, mean ± t s / sqrt(n): s the sample's standard deviation (n - 1), t the 95 %
    quantile of Student's t with n - 1 degrees of freedom (Student 1908, "The probable error of a mean").

    None where a value is not finite: such a mean says nothing.

    >>> estimate([1.0, 2.0, 3.0]).mean, round(estimate([1.0, 2.0, 3.0]).half_width, 3)
    (2.0, 1.686)
    """
    count = len(values)
    if not count or not all(math.isfinite(value) for value in values):
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count), count)


def verdict(one: Estimate, other: Estimate) -> str:
    """Whether `one` is "lower" or "higher" than `other`, or they are "within the band" of each other.

    Without a band (one seed) the plain order, or "equal" where what is shown of them (`DIGITS`) is.
    """
    if one.half_width is None or other.half_width is None:
        apart = round(one.mean - other.mean, DIGITS)
        return "equal" if not apart else "lower" if apart < 0 else "higher"
    if one.high < other.low:
        return "lower"
    return "higher" if one.low > other.high else "within the band"


@dataclass(frozen=True)
class Fitted:
    """A straight line, intercept + slope x, and half the widths of the 90 % intervals of both: None for two points."""

    intercept: float
    slope: float
    intercept_half_width: float | None
    slope_half_width: float | None

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def line_through(x: Sequence[float], y: Sequence[float]) -> Fitted:
    """By ordinary least squares; intervals by Student's t with n - 2 degrees of freedom, as if the points lay around
    the line with one normal deviation.

    >>> found = line_through([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    >>> found.intercept, found.slope, found.slope_half_width
    (1.0, 2.0, 0.0)
    """
    count = len(x)
    middle_x, middle_y = math.fsum(x) / count, math.fsum(y) / count
    spread = math.fsum((one - middle_x) ** 2 for one in x)
    slope = math.fsum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True)) / spread
    intercept = middle_y - slope * middle_x
    if count < 3:
        return Fitted(intercept, slope, None, None)
    from scipy.special import stdtrit

    rest = math.fsum((other - intercept - slope * one) ** 2 for one, other in zip(x, y, strict=True))
    width = float(stdtrit(count - 2, (1 + LEVEL) / 2)) * math.sqrt(rest / (count - 2))
    return Fitted(
        intercept, slope, width * math.sqrt(1 / count + middle_x**2 / spread), width / math.sqrt(spread)
    )  # fmt: skip
