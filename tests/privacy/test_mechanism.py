"""What the guarantee stands on: bounded contributions, noise of the stated size, samples of the stated chance."""

from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from private_recipes import sampling_clients, sampling_examples
from scipy import stats

from seedtune.errors import DataError
from seedtune.privacy.clipping import clipped
from seedtune.privacy.noise import gaussian, noisy, power_of_two_below
from seedtune.privacy.plan import Plan
from seedtune.privacy.sampling import sampled, secret_batch, secret_cohort
from seedtune.privacy.secrets import words

SECRET = bytes(range(32))
FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)
ROWS = st.integers(1, 6).flatmap(
    lambda d: st.integers(1, 8).flatmap(lambda n: arrays(np.float64, (n, d), elements=FLOATS))
)
BOUNDS = st.floats(1e-6, 1e6)


@given(ROWS, BOUNDS, st.data())
@settings(max_examples=150, deadline=None)
def test_no_unit_moves_the_sum_beyond_its_bound(rows, bound, data):
    """Whatever a unit holds: one that is taken away moves it by the bound, one that is replaced by twice the bound."""
    changed = rows.copy()
    unit = data.draw(st.integers(0, len(rows) - 1))
    changed[unit] = data.draw(arrays(np.float64, rows.shape[1], elements=FLOATS))
    each, other = clipped(rows, bound), clipped(changed, bound)
    total = each.sum(0)
    assert np.isfinite(total).all()
    assert np.linalg.norm(total - np.delete(each, unit, 0).sum(0)) <= bound
    assert np.linalg.norm(total - other.sum(0)) <= 2 * bound
    assert (total == each[::-1].cumsum(0)[-1]).all()  # exact in any order


def test_short_contributions_keep_their_value_up_to_the_grid():
    rows = np.array([[0.3, -0.4], [30.0, -40.0], [np.nan, 0.0], [np.inf, 1.0]])
    expected = [[0.3, -0.4], [0.6, -0.8], [0, 0], [0, 0]]
    assert np.abs(clipped(rows, 1.0) - expected).max() <= 2.0**-12


def test_noise_is_gaussian_of_the_stated_size():
    """400,000 draws: the standard deviation within 4 standard errors, and the shape by Kolmogorov and Smirnov."""
    num, deviation = 400_000, 0.37
    drawn = noisy(np.full(num, 2.0), deviation, words(SECRET, "noise", 2 * num, 5)) - 2.0
    assert abs(drawn.std() / deviation - 1) < 4 / sqrt(2 * num)
    assert abs(drawn.mean()) < 4 * deviation / sqrt(num)
    assert stats.kstest(drawn[:20_000] / deviation, "norm").pvalue > 1e-3


def test_noise_reaches_far_and_is_never_infinite():
    tops = gaussian(np.array([0, 2**64 - 1, 0, 2**63], np.uint64))
    assert tops[0] == pytest.approx(9.49, abs=0.01) and np.isfinite(tops).all()


def test_what_is_released_lies_on_a_grid_that_does_not_tell_the_sum():
    step = power_of_two_below(0.7 * 2.0**-10)
    released = noisy(np.array([0.1, 1 / 3, 1e-9]), 0.7, words(SECRET, "noise", 6))
    assert (released / step == np.rint(released / step)).all()


def test_streams_differ_by_secret_purpose_numbers_and_what_is_given():
    drawn = [
        words(SECRET, "noise", 4, 1), words(SECRET[::-1], "noise", 4, 1), words(SECRET, "other", 4, 1),
        words(SECRET, "noise", 4, 2), words(SECRET, "noise", 4, 1, 0), words(SECRET, "noise", 4, 1, given=b"x"),
    ]  # fmt: skip
    assert all((one != other).any() for i, one in enumerate(drawn) for other in drawn[:i])
    assert (words(SECRET, "noise", 4, 1) == drawn[0]).all()


@pytest.mark.parametrize("kind", ["poisson", "fixed-size"])
def test_each_unit_is_drawn_with_the_chance_that_is_accounted(kind):
    """Of 2,000 rounds: every client's count, and that of two clients together, within 4.5 standard errors."""
    plan, num = Plan.of(sampling_clients(kind)), 2_000
    cohorts = [secret_cohort(plan, SECRET, round_) for round_ in range(num)]
    counts = np.bincount([client for cohort in cohorts for client in cohort], minlength=20)
    assert (np.abs(counts / num - 0.2) < 4.5 * sqrt(0.2 * 0.8 / num)).all()
    both = sum({3, 7} <= set(cohort) for cohort in cohorts) / num
    expected = 0.04 if kind == "poisson" else 0.2 * 3 / 19
    assert abs(both - expected) < 4.5 * sqrt(expected / num)
    sizes = {len(cohort) for cohort in cohorts}
    assert sizes == {4} if kind == "fixed-size" else len(sizes) > 5
    assert all(a < b for cohort in cohorts for a, b in pairwise(cohort))


@pytest.mark.parametrize("kind", ["poisson", "fixed-size"])
def test_a_client_with_more_examples_uses_each_less_often(kind):
    plan = Plan.of(sampling_examples(kind))
    drawn = [secret_batch(plan, SECRET, 100, 7, round_, 2, 0) for round_ in range(2_000)]
    assert np.mean([len(batch) for batch in drawn]) == pytest.approx(5, abs=0.25)
    assert np.bincount(np.concatenate(drawn), minlength=100).max() / 2_000 < 0.05 + 4.5 * sqrt(0.05 / 2_000)


def test_a_client_with_fewer_examples_than_accounted_for_is_refused():
    with pytest.raises(DataError, match="11 examples, but privacy is accounted for at least 12"):
        secret_batch(Plan.of(sampling_examples("poisson")), SECRET, 11, 0)


def test_a_whole_population_is_not_sampled():
    assert sampled(SECRET, "cohort", "poisson", 3, 3).tolist() == [0, 1, 2]
