from math import sqrt

import numpy as np
import pytest
from small_subjects import experiment_of

from seedtune.analysis.gradients import noise_ratio
from seedtune.analysis.intervals import Interval
from seedtune.analysis.rate_bound import (
    ClientNoise,
    RateOptions,
    constants,
    largest_noise,
    rate_bound,
    rate_bounds,
)


def test_constants_have_the_orders_that_the_theory_states():
    """gamma = Theta(r / n), zeta = Theta(1 / (r d)), Gamma = Theta(1 / r)."""
    d, r = 10**6, 50.0
    found = constants(d, r, 1)
    assert found.gamma == pytest.approx(r, rel=0.03) and found.zeta == pytest.approx(1 / (r * d), rel=0.03)
    assert found.big_gamma == pytest.approx(1 / r, rel=0.03)
    assert constants(d, r, 10).gamma == pytest.approx(found.gamma / 10)


def test_bounds_are_the_theorems():
    assert rate_bounds(400, 8, 5, 2.0, 4.0) == (1 / (3 * 5 * 2 * 40), 8 / (3 * 4 * 5 * 2), 1 / 25)
    assert rate_bounds(400, 8, 5, 0.0, 4.0)[:2] == (np.inf, np.inf)


def test_noise_of_gradients_is_not_mistaken_for_gradient():
    """Unit mean, noise of variance 0.5 in each of 6 dimensions: the squared norm is 1 + 3."""
    rng, signal = np.random.default_rng(0), np.eye(6)[0]
    drawn = signal + sqrt(0.5) * rng.standard_normal((3000, 6))
    assert noise_ratio(drawn @ drawn.T, np.arange(3000)) == pytest.approx(4, rel=0.05)
    assert np.isnan(noise_ratio(np.eye(3) - 1, np.arange(3)))
    assert np.isnan(noise_ratio(np.eye(3), np.array([1, 1, 1])))


def test_constants_of_noise_bound_every_client():
    """E|g_B|^2 <= c_g |g|^2 + sigma_g^2 at both ends of the definition; unknown where one client's noise is."""
    noises = [ClientNoise(Interval(3.0), 2.0), ClientNoise(Interval(1.5), 4.0)]
    assert largest_noise(noises) == (Interval(3.0), 4.0)
    for squared, found in ((1.0, noises[0]), (8.0, noises[1])):
        second_moment = squared * found.ratio.value
        assert second_moment <= 3.0 * squared and second_moment <= squared + 4.0
    assert np.isnan(largest_noise([*noises, ClientNoise(Interval(float("nan")), 1.0)])[0].value)


def test_the_printed_gamma_lacks_one():
    """E[g^T H g] for n directions on the sphere, H of rank r with all eigenvalues L, the gradient within its range."""
    d, r, n = 24, 4, 2
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60_000, n, d))
    z *= sqrt(d) / np.linalg.norm(z, axis=2, keepdims=True)
    estimates = (z[:, :, :1] * z).mean(1)  # of the gradient e_0
    measured = (estimates[:, :r] ** 2).sum(1).mean()
    assert measured == pytest.approx(constants(d, r, n).gamma + 1, rel=0.03)


def test_a_recipe_is_held_against_the_bounds_of_its_own_sizes(tiny_recipe):
    experiment = experiment_of(tiny_recipe, federation={"local_steps": 3, "cohort_size": 2, "batch_size": 8})
    found = rate_bound(experiment, RateOptions(4, 8, 6))
    values = found.values
    assert [values[name] for name in ("d", "N", "H", "T", "n")] == [576, 2, 3, 3, 1]
    noise, smooth = values["c_g, here"].value, values["L, here"].value
    assert noise > 0.9 and values["bound of the rate"] == pytest.approx(
        min(1 / (9 * smooth * sqrt(noise * 576)), 2 / (9 * noise * smooth), 1 / 9)
    )
    assert values["rate / bound"] == pytest.approx(1e-2 / values["bound of the rate"])
    assert values["1 / sqrt(d)"] == 1 / 24
    assert all(row["gamma"] == constants(576, row["value"], 1).gamma for row in found.tables["by rank"])
    assert found.cost["mini-batch gradients"] == 6 * len(experiment.clients)
    assert values["sigma_g^2 if c_g = 1"] >= 0
    row = found.tables["by rank"][0]
    assert row["order of the IID rate"] == pytest.approx(row["value"] ** 1.5 / sqrt(2 * 3 * 3))
