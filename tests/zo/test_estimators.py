"""What sets the estimators apart: formulas, costs and truncation errors. What they share is in tests/conformance."""

import math

import numpy as np
import pytest
import torch

from seedtune.space import space_of
from seedtune.zo.estimators import one_by_one, one_sided, two_point
from seedtune.zo.noise import Distribution, values
from seedtune.zo.perturb import Perturbation, Perturber

GAUSSIAN, RADEMACHER = Distribution.GAUSSIAN, Distribution.RADEMACHER


class Recorded:
    """exp(mu + key / 8): a loss along one line for each key, that notes where it was asked."""

    def __init__(self):
        self.points = []

    def __call__(self, point):
        self.points.append(point)
        return 1.0 if point is None else math.exp(point.mu) + point.key / 8 * point.mu


def test_two_point_looks_on_both_sides():
    loss = Recorded()
    probe = two_point(one_by_one(loss), [4, 9], 0.25, GAUSSIAN)
    expected = {Perturbation(key, mu, GAUSSIAN) for key in (4, 9) for mu in (0.25, -0.25)}
    assert set(loss.points) == expected and len(loss.points) == probe.num_forwards == 4
    slope = math.sinh(0.25) / 0.25
    np.testing.assert_allclose(probe.scalars, [slope + 4 / 8, slope + 9 / 8], rtol=1e-6)
    assert probe.loss == pytest.approx(math.cosh(0.25))


def test_one_sided_looks_here_and_above():
    loss = Recorded()
    probe = one_sided(one_by_one(loss), [4, 9], 0.25, RADEMACHER)
    assert loss.points.count(None) == 1 and len(loss.points) == probe.num_forwards == 3
    assert {point for point in loss.points if point} == {Perturbation(key, 0.25, RADEMACHER) for key in (4, 9)}
    slope = math.expm1(0.25) / 0.25
    np.testing.assert_allclose(probe.scalars, [slope + 4 / 8, slope + 9 / 8], rtol=1e-6)
    assert probe.loss == 1.0


@pytest.mark.parametrize(("estimate", "order", "constant"), [(two_point, 2, 1 / 6), (one_sided, 1, 1 / 2)])
def test_the_order_of_the_truncation_error(estimate, order, constant):
    """exp has all derivatives 1: the error is mu^2 / 6 central, mu / 2 forward, to the next order."""
    for mu in (0.2, 0.1, 0.05):
        error = float(estimate(one_by_one(Recorded()), [0], mu, GAUSSIAN).scalars[0]) - 1.0
        assert error == pytest.approx(constant * mu**order, rel=0.5 * mu)


@pytest.mark.parametrize(("estimate", "num_directions", "forwards"), [(two_point, 7, 14), (one_sided, 7, 8)])
def test_the_cost(estimate, num_directions, forwards):
    assert estimate(one_by_one(Recorded()), range(num_directions), 1e-3, GAUSSIAN).num_forwards == forwards


@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("estimate", [two_point, one_sided])
def test_scalars_of_a_network_are_its_directional_derivatives(estimate, distribution):
    with torch.random.fork_rng(devices=[]):
        module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    for k, parameter in enumerate(module.parameters()):
        parameter.data.copy_(values(k, 0, parameter.numel(), GAUSSIAN).view(parameter.shape))
    space, inputs = space_of(module, [name for name, _ in module.named_parameters()]), values(9, 0, 12, GAUSSIAN)
    perturber = Perturber(module, space)

    def loss() -> torch.Tensor:
        return module(inputs.view(4, 3)).square().mean()

    def loss_at(point) -> float:
        with perturber.at(point):
            return loss().item()

    loss().backward()
    parameters = dict(module.named_parameters())
    slopes = []
    for key in (1, 2, 3):
        z = {s.name: values(key, s.start, s.num_elements, distribution).view(s.shape) for s in space.tensors}
        slopes.append(sum((parameters[name].grad * direction).sum().item() for name, direction in z.items()))
    mu = 1e-3
    probe = estimate(one_by_one(loss_at), [1, 2, 3], mu, distribution)
    np.testing.assert_allclose(probe.scalars, slopes, atol=0.03, rtol=0.01)
