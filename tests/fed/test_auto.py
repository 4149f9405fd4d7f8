"""Rates from what clients measure: the fold by itself, and on a quadratic whose best rate is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_federation import protocol, recipe, server, site

from seedtune.fed.answering import Answering
from seedtune.fed.auto import FIRST_ROUNDS, KEPT, LEAST_DISTANCE, MOST_FALL, MOST_GROWTH, AutoRates, is_due
from seedtune.fed.client import local_round
from seedtune.fed.messages import Order
from seedtune.fed.rounds import run_rounds

START = 0.1


def auto(**over):
    local, first = {"learning_rate": "auto", **over.pop("local", {})}, {"learning_rate": START, **over.pop("auto", {})}
    return recipe(local=local, auto=first, **over)


def folded(settings, *rounds):
    rates = AutoRates.of(settings)
    for slopes in rounds:
        rates = rates.after(slopes)
    return rates


def alike(gain, bend, fresh, num_clients=4):
    return dict.fromkeys(range(num_clients), (gain, bend, fresh))


def test_a_rate_tends_to_safety_times_common_share_over_kappa():
    rates = folded(auto(), *[alike(2.0, 10.0, 2.0)] * 400)
    assert rates.rate == pytest.approx(0.5 * 2.0 / 10.0, rel=0.01)
    alone = folded(auto(partition={"num_clients": 1}), *[alike(2.0, 10.0, 0.5, 1)] * 400)
    assert alone.rate == pytest.approx(0.5 * 0.25 * 0.2, rel=0.01)
    together = folded(auto(), *[alike(2.0, 10.0, 0.5)] * 400)
    assert together.rate == pytest.approx(0.5 * (4 * 0.25 / (1 + 3 * 0.25)) * 0.2, rel=0.01)
    assert folded(auto(auto={"safety": 0.25}), *[alike(2.0, 10.0, 2.0)] * 400).rate == pytest.approx(0.05, rel=0.01)


def test_a_rate_grows_and_falls_within_bounds_and_waits_for_a_curvature():
    flat = folded(auto(), alike(1.0, 1e-9, 1.0))
    assert flat.rate == pytest.approx(MOST_GROWTH * START)
    steep = folded(auto(), alike(1.0, 1e9, 1.0))
    assert steep.rate == pytest.approx(START / MOST_FALL)
    bent_down = folded(auto(), alike(1.0, -5.0, 1.0), alike(1.0, -5.0, 1.0))
    assert bent_down.rate == START
    uphill = folded(auto(), alike(-1.0, 5.0, -1.0))
    assert uphill.rate == pytest.approx(START / MOST_GROWTH)


@pytest.mark.parametrize(
    "told", [(1e308, 1e308, 1e308), (-1e308, 1e308, 1.0), (5e-324, 1e308, -1e308), (0.0, 0.0, 0.0)]
)
def test_whatever_clients_tell_rates_stay_finite_and_positive(told):
    rates = folded(auto(), *[dict.fromkeys(range(4), told)] * 200)
    assert 0 < rates.rate < np.inf and rates.factor(0) > 0


def test_estimates_that_disagree_lower_a_rate():
    """By the standard error of kappa, which agreeing ones do not have."""
    agreeing = folded(auto(), *[alike(1.0, 1.0, 1.0)] * 5)
    torn = folded(auto(), *[alike(1.0, bend, 1.0) for bend in (0.2, 1.8, 0.2, 1.8, 1.0)])
    assert torn.rate < agreeing.rate


def test_only_the_last_estimates_count():
    settings = auto()
    ahead = folded(settings, *[alike(1.0, 50.0, 1.0)] * 2, *[alike(1.0, 2.0, 1.0)] * KEPT)
    assert ahead.kept.tolist() == [[[1.0], [2.0]]] * KEPT


def test_blocks_have_rates_of_their_own():
    settings = auto(local={"estimator": "split", "num_directions": 1}, auto={"rate_ratio": 4.0})
    rates = AutoRates.of(settings)
    assert (rates.rate, rates.ratio) == (START, 4.0)
    ahead = folded(settings, *[dict.fromkeys(range(4), (1.0, 10.0, 1.0, 1.0, 2.0))] * 200)
    assert ahead.ratio == pytest.approx(10.0)


def test_a_round_without_slopes_changes_nothing_and_wrong_ones_are_passed_over():
    rates = AutoRates.of(auto())
    assert rates.after({}) is rates
    assert rates.after({0: (1.0, 2.0, 3.0, 4.0, 5.0), 1: (0.0, 0.0, 0.0)}) is rates
    assert AutoRates.of(recipe()) is None


def test_clients_have_rates_of_their_own_where_asked():
    slopes = {0: (1.0, 1.0, 1.0), 1: (1.0, 1.0, 1.0), 2: (1.0, 1.0, 1.0), 3: (1.0, 3.0, 1.0)}
    shared, own = (folded(auto(auto={"per_client": asked}), *[slopes] * KEPT) for asked in (False, True))
    assert [shared.factor(client) for client in range(4)] == [1.0] * 4
    assert own.factor(0) == pytest.approx(1.5) and own.factor(3) == pytest.approx(0.5)
    assert own.factor(7) == 1.0, "never heard"
    assert folded(auto(auto={"per_client": True}), slopes).factor(3) == 1.0, "heard too seldom"


def test_estimates_are_due_in_the_first_rounds_and_then_at_a_cadence():
    often = auto(auto={"every": 7})
    due = [round_ for round_ in range(40) if is_due(often, round_)]
    assert due == [*range(FIRST_ROUNDS), 6, 9, 13, 18, 24, 31, 38]
    assert not any(is_due(recipe(), round_) for round_ in range(40))


@pytest.mark.parametrize(
    ("local", "local_steps", "every"),
    [
        ({"num_directions": 8}, 1, 4),
        ({"num_directions": 1}, 1, 25),
        ({"num_directions": 1}, 5, 5),
        ({"num_directions": 8, "estimator": "one-sided"}, 1, 5),
        ({"estimator": "split"}, 1, 35),
        ({"estimator": "split"}, 7, 5),
        ({"num_directions": 500}, 10, LEAST_DISTANCE),
    ],
)
def test_estimates_take_about_a_tenth_of_the_forwards(local, local_steps, every):
    settings = auto(local={"num_directions": 1, **local}, federation={"local_steps": local_steps})
    due = [round_ for round_ in range(200) if is_due(settings, round_)]
    distances = np.diff(due[FIRST_ROUNDS - 1 :]).tolist()
    assert distances == [min(2 + i, every) for i in range(len(distances))]


LIARS = [(1.0, 1e12, 0.0), (1e12, 1.0, 1e12), (-1e12, 1.0, 0.0)]


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "sign-vote"])
@pytest.mark.parametrize("lie", LIARS)
def test_a_few_that_lie_drive_no_rate_where_the_rule_withstands_them(rule, lie):
    settings = auto(
        federation={"keys": "shared", "aggregation": rule, "weighting": "equal"}, partition={"num_clients": 7}
    )
    honest = [{client: (2.0, 10.0 + client / 10, 2.0) for client in range(7)}] * 60
    lied = [{**slopes, 2: lie} for slopes in honest]
    assert folded(settings, *lied).rate == pytest.approx(folded(settings, *honest).rate, rel=0.05)
    trusting = auto(partition={"num_clients": 7})
    assert folded(trusting, *lied).rate != pytest.approx(folded(trusting, *honest).rate, rel=0.5)


# A quadratic: each client holds all examples, so a batch has no noise and r is 1.

WIDTH = 64


def examples(client, width=WIDTH):
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((12, width)) * np.geomspace(0.1, 2.0, width)
    targets = rng.standard_normal((12, 2))
    return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets.astype(np.float32))


def quadratic(rate, num_rounds=40, num_directions=4, **over):
    return recipe(
        partition={"num_clients": 2}, federation={"num_rounds": num_rounds, "batch_size": 12, "keys": "shared"},
        local={"learning_rate": rate, "num_directions": num_directions, "perturbation_scale": 1e-3}, **over,
    )  # fmt: skip


def story(settings):
    """(the mean loss over all examples after the rounds, the server then)."""
    at = site(settings, data=examples)
    engine = type("Engine", (), {"exchange": staticmethod(Answering(at).answers)})
    *_, (state, _) = run_rounds(server(at), protocol(settings), engine)
    return float(at.loss(examples(0))), state


def hessian():
    """Of the mean squared error over both outputs: the same block for each, of inputs with a one for the bias."""
    inputs = torch.cat([examples(0)[0], torch.ones(12, 1)], 1).double()
    return torch.block_diag(*[inputs.T @ inputs / 12] * 2)


def gradient(at):
    inputs, targets = examples(0)
    weight, bias = (at.replica.weights[name].clone().requires_grad_(True) for name in ("weight", "bias"))
    loss = torch.nn.functional.mse_loss(inputs @ weight.T + bias, targets)
    of_weight, of_bias = torch.autograd.grad(loss, (weight, bias))
    return torch.cat([of_weight, of_bias[:, None]], 1).flatten().double()


def test_the_rate_on_a_quadratic_is_the_known_optimum():
    """kappa = E[D^T H D] / E[-grad . D] of the estimator's steps, in closed form for Rademacher directions:

    E[(z.g)^2] = |g|^2 and E[(z.g)^2 z^T H z] = |g|^2 tr H + 2 g^T H g - 2 sum_i g_i^2 H_ii; P directions divide the
    part of single directions by P and leave (1 - 1 / P) g^T H g of pairs.
    """
    settings = quadratic("auto", num_rounds=1, auto={"learning_rate": 1e-3})
    at, num_directions, tries = site(settings, data=examples), 4, 400
    g, h = gradient(at), hessian()
    g2, ghg = float(g @ g), float(g @ h @ g)
    single = g2 * float(h.trace()) + 2 * ghg - 2 * float((g**2 * h.diagonal()).sum())
    expected = (single / num_directions + (1 - 1 / num_directions) * ghg) / g2

    slopes = []
    for seed in range(tries):
        seeded = replace(at, header=replace(at.header, seed=seed))
        slopes.append(local_round(seeded, Order(0, 0, at.replica.digest, 1e-3)).slopes)
    gain, bend, fresh = np.mean(slopes, axis=0)
    assert bend / gain == pytest.approx(expected, rel=0.1)
    assert fresh == pytest.approx(gain, rel=1e-3), "a batch of all examples has no noise"
    assert gain == pytest.approx(g2, rel=0.1)


def test_auto_comes_as_far_as_the_best_of_a_grid_on_a_quadratic():
    start = float(site(quadratic(1.0), data=examples).loss(examples(0)))
    grid = [story(quadratic(rate))[0] for rate in 0.05 * 10 ** (np.arange(-3, 4) / 2)]
    best = min(loss for loss in grid if np.isfinite(loss))
    for first in (1e-4, 1e-2):
        loss, state = story(quadratic("auto", auto={"learning_rate": first}))
        assert np.isfinite(loss) and loss < start
    loss, state = story(quadratic("auto", auto={"learning_rate": 0.02}))
    assert (loss - best) / (start - best) < 0.05, (loss, best, start, state.rates.auto.rates)
