"""What every policy of `POLICIES` promises; a new one is tested by being there."""

import itertools
from typing import get_args

import numpy as np
import pytest
from small_federation import recipe

from seedtune.fed.personalise import POLICIES, Rates, by_signals
from seedtune.sections import PersonaliseConfig

NUM_ROUNDS = 9
NAN, INF = float("nan"), float("inf")
SIGNALS = {
    "plain": lambda rng, n: rng.lognormal(size=n),
    "equal": lambda rng, n: np.full(n, 0.1),
    "skipped": lambda rng, n: np.where(rng.random(n) < 0.5, NAN, rng.lognormal(size=n)),
    "infinite": lambda rng, n: rng.choice([1.0, INF, -INF, NAN], n),
    "huge": lambda rng, n: rng.choice([1e308, -1e308, 5e-324, 1.0], n),
    "none": lambda rng, n: np.full(n, NAN),
}


def settings(policy, num_clients, **personalise):
    return recipe(partition={"num_clients": num_clients}, personalise={"policy": policy, **personalise})


def rounds(num_clients, participation, signals):
    """What clients say in each round: losses, and distances of the same kind."""
    rng = np.random.default_rng([num_clients, len(signals)])
    for _ in range(NUM_ROUNDS):
        clients = np.flatnonzero(rng.random(num_clients) < participation).tolist()
        draws = (SIGNALS[signals](rng, len(clients)).tolist() for _ in range(2))
        losses, distances = (dict(zip(clients, draw, strict=True)) for draw in draws)
        yield losses, lambda distances=distances: distances


def factors(rates, round_):
    return [rates.factor(round_, client) for client in range(len(rates.signals))]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_clients", [1, 2, 3, 17])
@pytest.mark.parametrize("participation", [1.0, 0.3])
@pytest.mark.parametrize("signals", SIGNALS)
def test_rates_stay_within_alpha_and_the_fold_equals_the_run(policy, num_clients, participation, signals):
    start = Rates.of(settings(policy, num_clients, alpha=0.9))
    state, records, live = start, [], []
    for round_, heard in enumerate(rounds(num_clients, participation, signals)):
        live.append(factors(state, round_))
        records.append(state.measured(*heard))
        state = state.after(records[-1])

    assert np.abs(np.array(live) - 1).max() <= 0.9 + 1e-15
    assert all(
        np.isfinite(list(record.values())).all() and record.keys() <= set(range(num_clients)) for record in records
    )

    states = itertools.accumulate(records, Rates.after, initial=Rates.of(settings(policy, num_clients, alpha=0.9)))
    assert [factors(rebuilt, round_) for round_, rebuilt in zip(range(NUM_ROUNDS), states, strict=False)] == live


@pytest.mark.parametrize("policy", POLICIES)
def test_a_round_without_replies_changes_nothing(policy):
    state = Rates.of(settings(policy, 3)).after({})
    for heard in rounds(3, 1.0, "plain"):
        state = state.after(state.measured(*heard))
    later = state.after(state.measured({}, dict))
    assert factors(later, NUM_ROUNDS) == factors(state, NUM_ROUNDS)


@pytest.mark.parametrize("policy", [name for name, policy in POLICIES.items() if policy.phi is by_signals])
@pytest.mark.parametrize("num_clients", [1, 2, 3, 17])
def test_clients_that_agree_have_the_rate_of_the_schedule_to_the_bit(policy, num_clients):
    state = Rates.of(settings(policy, num_clients))
    for round_, heard in enumerate(rounds(num_clients, 1.0, "equal")):
        assert factors(state, round_) == [1.0] * num_clients
        state = state.after(state.measured(*heard))


@pytest.mark.parametrize("policy", POLICIES)
def test_without_room_for_them_rates_are_the_schedules(policy):
    state = Rates.of(settings(policy, 3, alpha=0.0))
    for heard in rounds(3, 1.0, "plain"):
        state = state.after(state.measured(*heard))
    assert factors(state, NUM_ROUNDS) == [1.0] * 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("unit", ["relative", "absolute"])
def test_rates_lie_around_eta(policy, unit):
    """eta_0 is 0.01; with the same alpha in either unit rates are the same."""
    state = Rates.of(settings(policy, 3, alpha=0.4 if unit == "relative" else 0.004, alpha_unit=unit))
    for heard in rounds(3, 1.0, "plain"):
        state = state.after(state.measured(*heard))
    found = 0.01 * np.array(factors(state, NUM_ROUNDS))
    assert ((found > 0.006 * (1 - 1e-12)) & (found < 0.014 * (1 + 1e-12))).all()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_averages_rounds_exactly_if_it_reads_them(policy):
    assert (policy.num_rounds > 0) == (policy.signal is not None)


def test_config_names_exactly_these_policies():
    assert set(get_args(PersonaliseConfig.model_fields["policy"].annotation)) == set(POLICIES)
