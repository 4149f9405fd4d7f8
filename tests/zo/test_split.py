"""The split estimator on losses whose gradients are known: formulas, cost, bias and variance of each reading."""

import itertools
import math

import numpy as np
import pytest

from seedtune.zo.estimators import one_by_one, one_sided, two_point
from seedtune.zo.expansion import Split, moves
from seedtune.zo.noise import Distribution, derive_key, values
from seedtune.zo.perturb import Perturbation
from seedtune.zo.split import probe

NAN, INF = float("nan"), float("inf")
GAUSSIAN, RADEMACHER = Distribution.GAUSSIAN, Distribution.RADEMACHER
SIZES = 7, 5  # of block 1 and block 2
GRADIENT = np.random.default_rng(1).standard_normal(sum(SIZES))
HALF = np.random.default_rng(2).standard_normal((sum(SIZES), sum(SIZES)))
HESSIAN = HALF @ HALF.T / sum(SIZES)
FIRST, SECOND = np.split(GRADIENT, SIZES[:1])
P1, P2 = 2, 3
READINGS = {
    "nested": Split("nested", P1, P2, "none", 1.0, "1"),
    "leave-one-out": Split("nested", P1, P2, "leave-one-out", 1.0, "1"),
    "clean-prefix": Split("clean-prefix", P1, P2, "none", 1.0, "1"),
}
every_reading = pytest.mark.parametrize("split", READINGS.values(), ids=READINGS)
every_difference = pytest.mark.parametrize("is_central", [True, False], ids=["central", "one-sided"])
every_distribution = pytest.mark.parametrize("distribution", Distribution)


def linear(at) -> float:
    return 0.7 + GRADIENT @ at


def quadratic(at) -> float:
    return 0.7 + GRADIENT @ at + at @ HESSIAN @ at / 2


def smooth(at) -> float:
    """All its derivatives differ from zero."""
    return math.exp(GRADIENT @ at / 9) + np.sin(at + 1).sum()


class Toy:
    """A loss of (x, y) around 0 in two blocks, which notes what was asked of it."""

    def __init__(self, function):
        self.function, self.prefixes, self.evaluated = function, [], []

    def prefix(self, first):
        self.prefixes.append(first)
        return first, along(first, 0)

    def losses(self, first, seconds, kept):
        assert kept[0] == first, "block 1 was evaluated elsewhere"
        return [self.loss(first, second, kept) for second in seconds]

    def loss(self, first, second, kept):
        self.evaluated.append((first, second))
        return self.function(np.concatenate([kept[1], along(second, 1)]))


def along(point: Perturbation | None, block: int) -> np.ndarray:
    return np.zeros(SIZES[block]) if point is None else point.mu * direction(point.key, block, point.distribution)


def direction(key: int, block: int, distribution) -> np.ndarray:
    """A block's part of a keyed direction: its tensors lie at coordinates of their own."""
    return values(key, 1_000 * block, SIZES[block], distribution).numpy().astype(np.float64)


def keys_of(split: Split, step: int = 0) -> tuple[int, ...]:
    return tuple(derive_key(5, "test", step=step, direction=p) for p in range(split.num_scalars))


def estimates(split: Split, keys, scalars, distribution) -> list[np.ndarray]:
    """Each block's gradient estimate, as `apply` would use it: the sum over its directions, divided by S."""
    return [
        sum(c * direction(key, block, distribution) for key, c in zip(move.keys, move.coefficients, strict=True))
        / split.num_scalars
        for block, move in enumerate(moves(split, keys, scalars))
    ]


def at(key: int, mu: float) -> Perturbation:
    return Perturbation(key, mu, GAUSSIAN)


# What is evaluated


def test_nested_looks_at_both_blocks_at_once():
    toy, split, keys = Toy(quadratic), READINGS["nested"], keys_of(READINGS["nested"])
    found = probe(toy, split, True, keys, 0.25, GAUSSIAN)
    assert toy.prefixes == [at(keys[p * P2], mu) for mu in (0.25, -0.25) for p in range(P1)]
    assert toy.evaluated == [
        (at(keys[p * P2], mu), at(keys[p * P2 + q], mu)) for mu in (0.25, -0.25) for p in range(P1) for q in range(P2)
    ]
    assert found.num_forwards == 2 * P1 * P2 and found.keys == keys


def test_nested_one_sided_looks_at_theta_once():
    toy, split, keys = Toy(quadratic), READINGS["nested"], keys_of(READINGS["nested"])
    found = probe(toy, split, False, keys, 0.25, GAUSSIAN)
    assert toy.prefixes == [None, at(keys[0], 0.25), at(keys[P2], 0.25)]
    assert toy.evaluated[0] == (None, None) and len(toy.evaluated) == found.num_forwards == P1 * P2 + 1
    assert found.loss == quadratic(np.zeros(sum(SIZES)))


@every_difference
def test_clean_prefix_looks_at_one_block_at_a_time(is_central):
    toy, split, keys = Toy(quadratic), READINGS["clean-prefix"], keys_of(READINGS["clean-prefix"])
    found = probe(toy, split, is_central, keys, 0.25, GAUSSIAN)
    scales = (0.25, -0.25) if is_central else (0.25,)
    assert toy.prefixes == [None, *(at(key, mu) for mu in scales for key in keys[:P1])]
    first = [(at(key, mu), None) for mu in scales for key in keys[:P1]]
    second = [(None, at(key, mu)) for mu in scales for key in keys[P1:]]
    expected = first + second + ([] if is_central else [(None, None)])
    assert sorted(toy.evaluated, key=repr) == sorted(expected, key=repr)
    assert found.num_forwards == len(expected) and found.keys == keys


@pytest.mark.parametrize("is_central, estimate", [(True, two_point), (False, one_sided)])
def test_one_direction_nested_is_an_estimator_of_the_whole_to_the_bit(is_central, estimate):
    split = Split("nested", 1, 1, "none", 1.0, "1")
    found = probe(Toy(smooth), split, is_central, [7], 1e-3, GAUSSIAN)
    losses_at = one_by_one(lambda point: smooth(np.concatenate([along(point, 0), along(point, 1)])))
    whole = estimate(losses_at, [7], 1e-3, GAUSSIAN)
    assert found.scalars.tobytes() == whole.scalars.tobytes()
    assert (found.keys, found.loss, found.num_forwards) == (whole.keys, whole.loss, 2)
    first, second = moves(split, found.keys, found.scalars)
    assert first.keys == second.keys == (7,)
    assert first.coefficients.tobytes() == second.coefficients.tobytes() == np.float64(whole.scalars).tobytes()


@every_reading
@every_difference
@every_distribution
@pytest.mark.parametrize("mu", [1e-3, 0.5])
def test_linear_losses_are_measured_exactly(split, is_central, distribution, mu):
    keys = keys_of(split)
    found = probe(Toy(linear), split, is_central, keys, mu, distribution).scalars
    slopes = [[direction(key, block, distribution) @ g for key in keys] for block, g in enumerate((FIRST, SECOND))]
    if split.reading == "nested":
        expected = [slopes[0][p * P2] + slopes[1][p * P2 + q] for p in range(P1) for q in range(P2)]
    else:
        expected = [*slopes[0][:P1], *slopes[1][P1:]]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


# Bias


@every_reading
@every_difference
@every_distribution
def test_both_blocks_meet_their_gradients_on_average(split, is_central, distribution):
    """The mean over steps, mu = 0.5 on a quadratic, lies within 4.5 standard errors in each coordinate; these are
    below 0.17 in block 1 and 0.17 in block 2."""
    found = [[], []]
    for step in range(700):
        keys = keys_of(split, step)
        scalars = probe(Toy(quadratic), split, is_central, keys, 0.5, distribution).scalars
        for block, estimate in enumerate(estimates(split, keys, scalars, distribution)):
            found[block].append(estimate)
    for each, gradient in zip(map(np.array, found), (FIRST, SECOND), strict=True):
        standard_errors = each.std(axis=0, ddof=1) / math.sqrt(len(each))
        assert standard_errors.max() < 0.17
        assert (abs(each.mean(axis=0) - gradient) < 4.5 * standard_errors).all()


@every_reading
@pytest.mark.parametrize("is_central, order", [(True, 2), (False, 1)])
def test_the_order_of_the_error(split, is_central, order):
    keys = keys_of(split)
    gradient = math.exp(0) * GRADIENT / 9 + math.cos(1)

    def slope(at) -> float:
        return gradient @ at

    true = probe(Toy(slope), split, is_central, keys, 1.0, GAUSSIAN).scalars
    errors = [
        np.linalg.norm(probe(Toy(smooth), split, is_central, keys, mu, GAUSSIAN).scalars - true) for mu in (0.08, 0.04)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_one_sided_with_leave_one_out_needs_no_loss_at_theta():
    """What all directions of block 2 have in common, and F(0, 0) is common to all, does not move block 2."""
    split, keys = READINGS["leave-one-out"], keys_of(READINGS["leave-one-out"])
    scalars = probe(Toy(quadratic), split, False, keys, 0.1, GAUSSIAN).scalars.astype(np.float64)
    shifted = scalars + np.repeat([3.0, -40.0], P2)
    (_, second), (_, moved) = moves(split, keys, scalars), moves(split, keys, shifted)
    np.testing.assert_allclose(moved.coefficients, second.coefficients, atol=1e-12)


# Variance, of a linear loss: the formulas of docs/fedspzo.md


def variances(split: Split, distribution) -> tuple[float, float]:
    """E |estimate - gradient|^2 of block 1 and block 2, by the formulas. k: 2 for Gaussians, 0 for signs."""
    (n1, n2), k = SIZES, 2 if distribution == GAUSSIAN else 0
    g1, g2 = FIRST @ FIRST, SECOND @ SECOND
    if split.reading == "clean-prefix":
        return (n1 + k - 1) * g1 / P1, (n2 + k - 1) * g2 / P2
    first = ((n1 + k - 1) * g1 + n1 * g2 / P2) / P1
    if split.baseline == "none":
        return first, (n2 * g1 + (n2 + k - 1) * g2) / (P1 * P2)
    return first, ((n2 + k - 1) / (P2 - 1) + (2 - k) / (P2 * (P2 - 1))) * g2 / P1


@every_reading
@every_distribution
def test_variances_are_those_of_the_formulas(split, distribution):
    """Over 12,000 steps within 6 %, more than 4 standard errors."""
    num_steps = 12_000
    rng = np.random.default_rng(3)
    draw = rng.standard_normal if distribution == GAUSSIAN else lambda shape: rng.choice([-1.0, 1.0], shape)
    z1, z2 = (draw((num_steps, split.num_scalars, size)) for size in SIZES)
    own1, own2 = split.directions
    slopes1, slopes2 = z1 @ FIRST, z2 @ SECOND
    if split.reading == "nested":
        scalars = np.repeat(slopes1[:, own1], P2, axis=1) + slopes2
    else:
        scalars = np.concatenate([slopes1[:, own1], slopes2[:, own2]], axis=1)
    for z, along_z, gradient, expected in zip(
        (z1[:, own1], z2[:, own2]), split.coefficients(scalars), (FIRST, SECOND), variances(split, distribution),
        strict=True,
    ):  # fmt: skip
        found = np.einsum("sd,sdi->si", along_z, z) / split.num_scalars - gradient
        assert (found**2).sum(1).mean() == pytest.approx(expected, rel=0.06)


def test_leave_one_out_pays_where_block_1_is_steeper_than_its_share():
    """n2 |g1|^2 / P2 against what the baseline's smaller sample costs: here by more than a half."""
    plain, less = variances(READINGS["nested"], RADEMACHER)[1], variances(READINGS["leave-one-out"], RADEMACHER)[1]
    assert FIRST @ FIRST > SECOND @ SECOND / (P2 - 1) and less < plain / 2


# Losses that are not finite


@every_reading
@every_difference
@pytest.mark.parametrize("broken", [NAN, INF, -INF, 1e300])
def test_one_loss_that_is_not_finite_makes_no_half_step(split, is_central, broken):
    num_losses = probe(Toy(linear), split, is_central, keys_of(split), 1e-3, GAUSSIAN).num_forwards
    for place in range(num_losses):
        toy = Toy(lambda x, place=place: broken if len(toy.evaluated) == place + 1 else linear(x))  # noqa: B023
        found = probe(toy, split, is_central, keys_of(split), 1e-3, GAUSSIAN)
        assert np.isnan(found.scalars).all() and found.scalars.shape == (split.num_scalars,)
        assert all(np.isnan(move.coefficients).all() for move in moves(split, found.keys, found.scalars))


@every_reading
def test_losses_that_are_all_infinite_make_no_warning(split):
    for losses in (itertools.repeat(INF), itertools.cycle([INF, -INF])):
        toy = Toy(lambda x, losses=losses: next(losses))
        assert np.isnan(probe(toy, split, True, keys_of(split), 1e-3, GAUSSIAN).scalars).all()
