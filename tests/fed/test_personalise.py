"""Rates of the clients' own: the published formula by hand, absent clients, skipped steps, numbers at the edge."""

import json

import numpy as np
import pytest
from small_federation import recipe

from seedtune.fed.personalise import POLICIES, Rates, deviations

NAN = float("nan")


def rates(policy, num_clients=3, **personalise) -> Rates:
    settings = {"policy": policy, **personalise}
    return Rates.of(recipe(partition={"num_clients": num_clients}, personalise=settings))


def not_asked():
    raise AssertionError("distances were computed for a policy that does not use them")


def heard(state: Rates, *rounds) -> Rates:
    """The state after rounds of these losses, or distances."""
    for signals in rounds:
        losses = dict.fromkeys(signals, 1.0) if state.policy is POLICIES["model-diff"] else signals
        state = state.after(state.measured(losses, lambda signals=signals: signals))
    return state


def phis(state: Rates, round_: int) -> list[float]:
    return [(state.factor(round_, client) - 1) / state.alpha for client in range(len(state.signals))]


@pytest.mark.parametrize("policy", ["round-wise", "model-diff"])
def test_the_published_formula_by_hand(policy):
    """Signals 1, 2, 6: mean 3, gaps -2, -1, 3, so Phi is -2/3, -1/3, 1. With the paper's rates, 1e-5 and 5e-6."""
    settings = recipe(
        partition={"num_clients": 3},
        local={"learning_rate": 1e-5},
        personalise={"policy": policy, "alpha": 5e-6, "alpha_unit": "absolute"},
    )
    state = heard(Rates.of(settings), {0: 1.0, 1: 2.0, 2: 6.0})
    found = [1e-5 * state.factor(1, client) for client in range(3)]
    assert found == pytest.approx([1e-5 - 5e-6 * 2 / 3, 1e-5 - 5e-6 / 3, 1.5e-5], rel=1e-12)


def test_five_rounds_are_averaged_by_hand():
    """Client 0's losses 9, 1, 1, 1, 1, 6 count as 2, the mean of the last five; client 1's as 4, client 2's as 12."""
    losses = [9.0, 1.0, 1.0, 1.0, 1.0, 6.0]
    state = heard(rates("five-round"), *({0: loss, 1: 4.0, 2: 12.0} for loss in losses))
    assert phis(state, 6) == pytest.approx([-2 / 3, -1 / 3, 1.0])


def test_alpha_is_a_share_of_the_rate_or_a_rate():
    """The small federation's eta_0 is 0.01."""
    assert rates("round-wise", alpha=0.25).alpha == 0.25
    assert rates("round-wise", alpha=0.0025, alpha_unit="absolute").alpha == pytest.approx(0.25)


@pytest.mark.parametrize("policy, first", [("round-wise", 1), ("five-round", 5), ("model-diff", 1)])
def test_a_policy_acts_from_its_round_on(policy, first):
    state = rates(policy)
    for round_ in range(8):
        assert (phis(state, round_) != [0.0, 0.0, 0.0]) == (round_ >= first)
        state = heard(state, {0: 1.0, 1: 2.0, 2: 6.0})


def test_fixed_rates_are_the_schedules_to_the_bit():
    state = heard(rates("fixed"), {0: 1.0, 1: 2.0, 2: 6.0})
    assert [state.factor(round_, client) for round_ in range(7) for client in range(3)] == [1.0] * 21


def test_random_rates_are_uniform_and_keyed():
    state = rates("random", num_clients=5_000, alpha=1e-3)
    drawn = np.array(phis(state, 0))
    assert abs(drawn.mean()) < 4 / np.sqrt(3 * 5_000) and np.quantile(drawn, 0.25) == pytest.approx(-0.5, abs=0.04)
    assert len(set(drawn.tolist())) == 5_000 and np.abs(drawn).max() <= 1
    other = Rates.of(recipe(partition={"num_clients": 5}, personalise={"policy": "random"}, run={"seed": 12}))
    assert len({state.factor(0, 3), state.factor(1, 3), state.factor(0, 4)}) == 3
    assert phis(rates("random", 5), 0) != phis(other, 0)


def test_only_policies_that_use_distances_ask_for_them():
    losses = {0: 1.0, 2: 3.0}
    assert {name: rates(name).measured(losses, not_asked) for name in POLICIES if name != "model-diff"} == {
        "fixed": {}, "random": {}, "round-wise": losses, "five-round": losses,
    }  # fmt: skip
    assert rates("model-diff").measured(losses, lambda: {0: 5.0, 2: 7.0}) == {0: 5.0, 2: 7.0}


@pytest.mark.parametrize("policy", ["round-wise", "five-round", "model-diff"])
def test_a_client_keeps_its_last_signal_while_absent_or_skipped(policy):
    state = heard(rates(policy), *[{0: 1.0, 1: 2.0, 2: 6.0}] * 5)
    absent = heard(state, {0: 1.0, 2: 6.0})
    skipped = heard(state, {0: 1.0, 1: NAN, 2: 6.0})
    for later in (absent, skipped):
        assert phis(later, 6) == pytest.approx([-2 / 3, -1 / 3, 1.0])


def test_a_distance_says_nothing_where_all_steps_were_skipped():
    assert rates("model-diff").measured({0: NAN, 1: 1.0}, lambda: {0: 3.0, 1: 4.0}) == {1: 4.0}


def test_a_client_never_heard_is_not_in_the_mean():
    assert phis(heard(rates("round-wise", 4), {0: 1.0, 3: 3.0}), 1) == pytest.approx([-1.0, 0.0, 0.0, 1.0])


def test_five_rounds_are_those_in_which_the_client_took_part():
    """Client 1 took part twice: 2 and 4 count as 3. Client 2 once, with 9; client 0 always, with 0."""
    rounds = [{0: 0.0, 1: 2.0}, {0: 0.0}, {0: 0.0}, {0: 0.0, 1: 4.0}, {0: 0.0}, {0: 0.0, 2: 9.0}]
    assert phis(heard(rates("five-round"), *rounds), 6) == pytest.approx([-4 / 5, -1 / 5, 1.0])


@pytest.mark.parametrize("value", [0.1, 0.0, -3.7, 1e308, 5e-324])
@pytest.mark.parametrize("num_clients", [1, 2, 3, 17])
def test_signals_that_agree_change_nothing(num_clients, value):
    np.testing.assert_array_equal(deviations(np.full((num_clients, 1), value)), np.zeros(num_clients))


def test_signals_that_differ_by_rounding_agree():
    """As the distances of two clients may: their order would be an accident, and decide over the full width."""
    np.testing.assert_array_equal(deviations(np.array([[1.0], [1.0 + 2e-16]])), [0.0, 0.0])
    np.testing.assert_array_equal(deviations(np.array([[1.0], [1.0 + 2**-23]])), [-1.0, 1.0])


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 1e30, 1e307])
def test_the_scale_of_the_signals_does_not_matter(scale):
    found = deviations(scale * np.array([[1.0], [2.0], [6.0], [-9.0]]))
    np.testing.assert_allclose(found, [1 / 9, 2 / 9, 6 / 9, -1.0], rtol=1e-12)


def test_a_resumed_run_folds_to_the_same_bits_through_json():
    rng, records = np.random.default_rng(4), []
    state = start = rates("five-round", 17)
    for _ in range(12):
        losses = {int(c): float(rng.lognormal(0, 3)) for c in np.flatnonzero(rng.random(17) < 0.4)}
        records.append(state.measured(losses, not_asked))
        state = state.after(records[-1])
    for line in json.loads(json.dumps(records)):
        start = start.after({int(client): signal for client, signal in line.items()})
    np.testing.assert_array_equal(start.signals, state.signals)
    assert phis(start, 12) == phis(state, 12) and len(set(phis(state, 12))) == 17


def test_a_state_stays_what_it_was():
    before = heard(rates("five-round"), {0: 1.0, 1: 2.0})
    signals, factors = before.signals.copy(), phis(before, 5)
    heard(before, {0: 5.0, 1: 1.0, 2: 0.0})
    np.testing.assert_array_equal(before.signals, signals)
    assert phis(before, 5) == factors


def test_ten_thousand_clients_are_one_array_and_one_computation(monkeypatch):
    calls = []
    monkeypatch.setattr("seedtune.fed.personalise.deviations", lambda s: calls.append(s) or deviations(s))
    state = rates("five-round", 10_000)
    for _ in range(6):
        state = heard(state, {client: float(client % 7) for client in range(0, 10_000, 2)})
    assert len(phis(state, 6)) == 10_000 and len(calls) == 1
    assert state.signals.nbytes == 10_000 * 5 * 8
