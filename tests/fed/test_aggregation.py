"""Rules of aggregation, by themselves and in a round with clients that lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_federation import recipe, server, site

from seedtune.engines.in_process import InProcess
from seedtune.fed import aggregation
from seedtune.fed.byzantine import falsified, falsified_slopes, liars
from seedtune.fed.client import local_round
from seedtune.fed.messages import Order
from seedtune.fed.rounds import one_round
from seedtune.fed.seed_scalar import SeedScalar
from seedtune.space import digest

NAN = float("nan")
SHARED = {"keys": "shared", "weighting": "equal"}


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((1, 2, 30), 2), ((1, 2, 4, 50), 3), ((5,), 5), ((NAN, 7, NAN), 7), ((NAN, 1, 9), 5), ((NAN, NAN), NAN)],
)
def test_the_median_is_the_middle_of_those_that_took_the_step(values, expected):
    np.testing.assert_array_equal(aggregation.median(column(*values)), np.full((1, 1), expected, np.float32))


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [((1, 2, 3, 100), 0.25, 2.5), ((1, 2, 3, 100), 0.24, 26.5), ((NAN, 1, 2, 3, 100), 0.25, 2.5), ((4,), 0.49, 4),
     ((1, 2, 3, 4, 90), 0.4, 3), ((NAN,), 0.1, NAN)],
)  # fmt: skip
def test_the_trimmed_mean_leaves_out_as_many_at_each_end(values, fraction, expected):
    out = aggregation.trimmed_mean(column(*values), fraction)
    np.testing.assert_array_equal(out, np.full((1, 1), expected, np.float32))


finite = st.floats(-100, 100, width=32)


@given(st.lists(finite, min_size=3, max_size=9), st.data())
def test_fewer_liars_than_half_stay_between_honest_values(honest, data):
    """Whatever they send; so does a trimmed mean that cuts off as many as there are."""
    lies = data.draw(st.lists(st.floats(allow_infinity=False, width=32), max_size=len(honest) - 1))
    everyone = column(*honest, *lies)
    assert min(honest) <= aggregation.median(everyone).item() <= max(honest)
    cut = data.draw(st.integers(0, (len(everyone) - 1) // 2))
    few = column(*honest, *[lie for lie in lies if not np.isnan(lie)][:cut])
    fraction = min((cut + 0.5) / len(few), 0.49)
    if int(fraction * len(few)) == cut:
        assert min(honest) <= np.float64(aggregation.trimmed_mean(few, fraction).item()) <= max(honest)


@given(st.permutations(range(5)))
def test_the_order_of_clients_does_not_matter(order):
    scalars = np.random.default_rng(3).standard_normal((5, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(aggregation.median(scalars[order]), aggregation.median(scalars))
    np.testing.assert_array_equal(
        aggregation.trimmed_mean(scalars[order], 0.25), aggregation.trimmed_mean(scalars, 0.25)
    )


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "sign-vote"])
def test_a_round_moves_the_weights_by_what_the_rule_gives(rule):
    settings = recipe(federation={**SHARED, "aggregation": rule})
    at, other = site(settings), site(settings)
    replies = [local_round(other, Order(0, client, other.replica.digest, 0.01)) for client in range(4)]
    _, result = one_round(server(at), SeedScalar(), InProcess(at))
    scalars, alike = np.stack([reply.scalars for reply in replies]), np.ones(4)
    expected = {
        "mean": lambda: aggregation.mean(scalars, alike),
        "median": lambda: aggregation.median(scalars),
        "trimmed-mean": lambda: aggregation.trimmed_mean(scalars, 0.25),
        "sign-vote": lambda: aggregation.majority(scalars, alike),
    }[rule]()
    np.testing.assert_array_equal(result.record.scalars[0], expected)
    assert result.record.digest == digest(at.replica.weights) != other.replica.digest


def lying(attack="scale", factor=-10.0, **federation):
    byzantine = {"num_clients": 1, "attack": attack, "factor": factor}
    return recipe(federation={**SHARED, **federation}, byzantine=byzantine)


@pytest.mark.parametrize("attack", ["scale", "noise"])
def test_liars_follow_from_the_seed_and_send_what_they_did_not_find(attack):
    settings = lying(attack)
    (liar,) = liars(settings)
    for client in range(4):
        honest, told = (
            local_round(at, Order(0, client, at.replica.digest, 0.01)).scalars for at in map(site, (recipe(
                federation=SHARED), settings))
        )  # fmt: skip
        assert (honest == told).all() == (client != liar)
        if client == liar and attack == "scale":
            np.testing.assert_array_equal(told, honest * np.float32(-10))
    assert sorted(liars(lying().model_copy(update={"byzantine": settings.byzantine}))) == [liar]
    assert liars(recipe()) == frozenset()


def test_liars_lie_of_what_rates_are_measured_from():
    measured = {"local": {"learning_rate": "auto"}, "auto": {"learning_rate": 0.01}}
    settings = recipe(federation=SHARED, byzantine={"num_clients": 1, "factor": -10.0}, **measured)
    (liar,) = liars(settings)
    at, honest = site(settings), site(recipe(federation=SHARED, **measured))
    for client in range(4):
        told, found = (local_round(one, Order(0, client, one.replica.digest, 0.01)).slopes for one in (at, honest))
        assert told == tuple((-10.0 if client == liar else 1.0) * number for number in found)
    assert falsified_slopes(lying(factor=-1e6), (1e308, -1.0, 0.0)) == (-np.finfo(np.float64).max, 1e6, 0.0)


def test_noise_is_as_large_as_the_factor_says_and_differs_by_round_and_client():
    settings, scalars = lying("noise", 3.0), np.full((1, 40_000), -2.0, np.float32)
    drawn = falsified(settings, 0, 1, scalars)
    assert abs(np.sqrt(np.mean(drawn**2)) / 6 - 1) < 0.02 and abs(drawn.mean()) < 0.1
    assert not (drawn == falsified(settings, 1, 1, scalars)).any()
    assert not (drawn == falsified(settings, 0, 2, scalars)).any()


def test_what_a_liar_sends_is_what_the_server_still_takes():
    """Votes stay votes, the clip is kept, nothing is infinite, and a skipped step stays skipped."""
    for settings in (lying(aggregation="sign-vote"), lying(factor=1e6)):
        at = site(settings)
        _, result = one_round(server(at), SeedScalar(), InProcess(at))
        assert result.failed == {}
    scalars = np.array([[3e38, NAN, -1.0]], np.float32)
    told = falsified(lying(factor=-1e6), 0, 0, scalars)
    np.testing.assert_array_equal(told, np.array([[-np.finfo(np.float32).max, NAN, 1e6]], np.float32))
    np.testing.assert_array_equal(falsified(lying("noise"), 0, 0, np.full((1, 2), NAN, np.float32)), [[NAN, NAN]])


def test_one_loud_liar_carries_the_mean_away_and_not_the_median():
    """Weights after one round, beside those of the honest cohort: the mean goes the other way."""

    def moved(settings):
        at = site(settings)
        before = at.replica.weights["weight"].clone()
        one_round(server(at), SeedScalar(), InProcess(at))
        return (at.replica.weights["weight"] - before).flatten().numpy()

    for rule, agrees in (("mean", False), ("median", True), ("trimmed-mean", True)):
        honest = moved(recipe(federation={**SHARED, "aggregation": rule}))
        attacked = moved(lying(factor=-100.0, aggregation=rule))
        assert (float(honest @ attacked) > 0) == agrees
        assert (np.linalg.norm(attacked) < 3 * np.linalg.norm(honest)) == agrees
