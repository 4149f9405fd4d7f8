import math

import pytest

from seedtune.analysis.estimates import Estimate, estimate, verdict


def test_the_band_is_students():
    """Five values, worked by hand: mean 10, s = sqrt(10 / 4), t(0.95, 4) = 2.131847 (any table)."""
    band = estimate([8.0, 9.0, 10.0, 11.0, 12.0])
    assert band.mean == 10.0 and band.num_seeds == 5
    assert band.half_width == pytest.approx(2.131847 * math.sqrt(10 / 4) / math.sqrt(5), rel=1e-6)
    assert (band.low, band.high) == (10.0 - band.half_width, 10.0 + band.half_width)


def test_three_seeds_need_the_wide_quantile():
    """t(0.95, 2) = 2.919986, not the normal 1.645."""
    assert estimate([1.0, 2.0, 3.0]).half_width == pytest.approx(2.919986 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_band_and_equal_values_a_band_of_nothing():
    assert estimate([2.0]) == Estimate(2.0, None, 1)
    assert estimate([2.0, 2.0]) == Estimate(2.0, 0.0, 2)


def test_a_mean_of_what_diverged_is_none():
    assert estimate([1.0, math.inf]) is None and estimate([math.nan]) is None and estimate([]) is None


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (Estimate(1.0, 0.1, 3), Estimate(2.0, 0.1, 3), "lower"),
        (Estimate(2.0, 0.1, 3), Estimate(1.0, 0.1, 3), "higher"),
        (Estimate(1.0, 0.6, 3), Estimate(2.0, 0.6, 3), "within the band"),
        (Estimate(1.0, 0.5, 3), Estimate(2.0, 0.5, 3), "within the band"),
        (Estimate(1.0, None, 1), Estimate(2.0, None, 1), "lower"),
        (Estimate(2.0, None, 1), Estimate(2.0, None, 1), "equal"),
        (Estimate(2.0001, None, 1), Estimate(2.0, None, 1), "equal"),
    ],
)
def test_two_cases_differ_where_their_bands_do_not_touch(one, other, said):
    assert verdict(one, other) == said
