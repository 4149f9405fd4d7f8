"""What every estimator of `ESTIMATORS` promises; a new one is tested by being there."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from seedtune.zo.estimators import ESTIMATORS
from seedtune.zo.noise import Distribution, derive_key, values
from seedtune.zo.perturb import Perturbation

DIMENSION = 12
LINEAR = np.random.default_rng(1).standard_normal(DIMENSION)
HALF = np.random.default_rng(2).standard_normal((DIMENSION, DIMENSION))
HESSIAN = HALF @ HALF.T / DIMENSION
KEYS = tuple(derive_key(5, "test", direction=p) for p in range(2_000))

pytestmark = [
    pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS),
    pytest.mark.parametrize("distribution", Distribution),
]


class Loss:
    """A loss of theta = 0 in float64 that counts its evaluations; `function` maps displacement to loss."""

    def __init__(self, function):
        self.function, self.points = function, []

    def __call__(self, points: Sequence[Perturbation | None]) -> list[float]:
        return [self._at(point) for point in points]

    def _at(self, point: Perturbation | None) -> float:
        self.points.append(point)
        return self.function(np.zeros(DIMENSION) if point is None else point.mu * direction(point))


def direction(point: Perturbation) -> np.ndarray:
    return values(point.key, 0, DIMENSION, point.distribution).numpy().astype(np.float64)


def directions(keys, distribution) -> np.ndarray:
    return np.stack([direction(Perturbation(key, 1.0, distribution)) for key in keys])


def linear(x) -> float:
    return 0.7 + LINEAR @ x


def quadratic(x) -> float:
    return 0.7 + LINEAR @ x + x @ HESSIAN @ x / 2


def smooth(x) -> float:
    """All its derivatives differ from zero."""
    return math.exp(LINEAR @ x / 6) + np.sin(x + 1).sum()


def test_a_probe_is_complete(estimate, distribution):
    loss = Loss(quadratic)
    probe = estimate(loss, KEYS[:5], 1e-3, distribution)
    assert probe.keys == KEYS[:5]
    assert probe.scalars.dtype == np.float32 and probe.scalars.shape == (5,)
    assert isinstance(probe.loss, float) and probe.loss == pytest.approx(0.7, abs=0.05)
    assert probe.num_forwards == len(loss.points)
    assert {point.distribution for point in loss.points if point} == {distribution}


def test_a_probe_can_be_made_again(estimate, distribution):
    first, second = (estimate(Loss(smooth), KEYS[:4], 1e-3, distribution) for _ in range(2))
    assert (first.keys, first.loss, first.num_forwards) == (second.keys, second.loss, second.num_forwards)
    assert first.scalars.tobytes() == second.scalars.tobytes()


@pytest.mark.parametrize("mu", [1e-3, 0.5])
def test_linear_functions_are_measured_exactly(estimate, distribution, mu):
    probe = estimate(Loss(linear), KEYS[:8], mu, distribution)
    np.testing.assert_allclose(probe.scalars, directions(KEYS[:8], distribution) @ LINEAR, rtol=1e-6, atol=1e-9)


def test_constants_have_no_gradient(estimate, distribution):
    probe = estimate(Loss(lambda x: 0.7), KEYS[:3], 1e-3, distribution)
    assert not probe.scalars.any() and probe.loss == pytest.approx(0.7)


@pytest.mark.parametrize("mu", [1e-3, 0.5])
def test_the_gradient_of_a_quadratic_is_met_on_average(estimate, distribution, mu):
    """Third moments of directions vanish, so the mean of g z is the gradient whatever mu: within 4.5 standard errors
    in each of 12 coordinates, which are below 0.12."""
    probe = estimate(Loss(quadratic), KEYS, mu, distribution)
    estimates = probe.scalars[:, None] * directions(KEYS, distribution)
    standard_errors = estimates.std(axis=0, ddof=1) / math.sqrt(len(KEYS))
    assert standard_errors.max() < 0.12
    assert (abs(estimates.mean(axis=0) - LINEAR) < 4.5 * standard_errors).all()


def test_smaller_steps_are_truer(estimate, distribution):
    """The error is of order mu at least."""
    gradient = math.exp(0) * LINEAR / 6 + math.cos(1)
    true = directions(KEYS[:20], distribution) @ gradient
    errors = [np.linalg.norm(estimate(Loss(smooth), KEYS[:20], mu, distribution).scalars - true) for mu in (0.2, 0.05)]
    assert errors[1] < errors[0] / 3.5


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e300])
def test_one_loss_that_is_not_finite_makes_no_half_step(estimate, distribution, broken):
    """1e300 is finite, but a scalar made of it is beyond float32."""
    for at in range(estimate(Loss(linear), KEYS[:3], 1e-3, distribution).num_forwards):
        losses = Loss(lambda x, at=at: broken if len(losses.points) == at + 1 else linear(x))  # noqa: B023
        probe = estimate(losses, KEYS[:3], 1e-3, distribution)
        assert np.isnan(probe.scalars).all() and probe.scalars.shape == (3,)
        assert probe.num_forwards == len(losses.points)


def test_losses_that_are_all_infinite_make_no_warning(estimate, distribution):
    probe = estimate(Loss(lambda x: math.inf), KEYS[:3], 1e-3, distribution)
    assert np.isnan(probe.scalars).all() and not math.isfinite(probe.loss)
    signs = iter([math.inf, -math.inf] * 10)
    assert np.isnan(estimate(Loss(lambda x: next(signs)), KEYS[:3], 1e-3, distribution).scalars).all()
