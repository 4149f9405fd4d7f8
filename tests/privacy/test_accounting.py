"""Epsilon is what dp-accounting says of the event that is run, and a target is met with little to spare."""

from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from private_recipes import private, sampling_clients, sampling_examples

from seedtune.privacy.accounting import epsilon, event, num_rounds_within
from seedtune.privacy.plan import Plan
from seedtune.privacy.rules import resolved

GAUSSIAN = dp_accounting.GaussianDpEvent
KNOWN = {
    "client": (private(), NeighboringRelation.REPLACE_SPECIAL, GAUSSIAN(1.0)),
    "client-local": (private(privacy={"noise": "local"}), NeighboringRelation.REPLACE_SPECIAL, GAUSSIAN(1.0)),
    "clients-poisson": (
        sampling_clients("poisson"),
        NeighboringRelation.REPLACE_SPECIAL,
        dp_accounting.PoissonSampledDpEvent(4 / 20, GAUSSIAN(1.0)),
    ),
    "clients-fixed-size": (
        sampling_clients("fixed-size"),
        NeighboringRelation.REPLACE_ONE,
        dp_accounting.SampledWithoutReplacementDpEvent(20, 4, GAUSSIAN(0.5)),  # one replaced moves the sum by 2 C
    ),
    "examples-poisson": (
        sampling_examples("poisson"),
        NeighboringRelation.REPLACE_SPECIAL,
        dp_accounting.PoissonSampledDpEvent(5 / 12, GAUSSIAN(1.0)),
    ),
    "examples-fixed-size": (
        sampling_examples("fixed-size"),
        NeighboringRelation.REPLACE_ONE,
        dp_accounting.SampledWithoutReplacementDpEvent(12, 5, GAUSSIAN(0.5)),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_plan_is_the_event_that_is_run(name):
    recipe, _, expected = KNOWN[name]
    assert event(Plan.of(recipe)) == expected


@pytest.mark.parametrize("name", ["client", "clients-poisson", "clients-fixed-size"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the library's own, on orders that it then leaves out
def test_epsilon_is_dp_accountings(name):
    recipe, relation, expected = KNOWN[name]
    plan, accountant = Plan.of(recipe), RdpAccountant(neighboring_relation=relation)
    accountant.compose(expected, 7)
    assert epsilon(plan, 7) == accountant.get_epsilon(1e-5)
    assert epsilon(plan, 6) < epsilon(plan, 7) and epsilon(plan, 0) == 0


def test_epsilon_is_no_less_than_the_exact_one_of_a_gaussian():
    """T rounds without sampling are one Gaussian mechanism of noise multiplier z / sqrt(T) (Balle and Wang 2018)."""
    plan = Plan.of(private(privacy={"noise_multiplier": 10.0}))
    exact = dp_accounting.get_epsilon_gaussian(10 / 100**0.5, 1e-5)
    assert exact < epsilon(plan, 100) < 1.1 * exact


@pytest.mark.parametrize("made", [private, lambda **over: sampling_clients("poisson", **over)], ids=["all", "poisson"])
def test_a_target_finds_the_least_noise(made):
    plan = Plan.of(resolved(made(privacy={"noise_multiplier": 0.0, "target_epsilon": 2.0})))
    assert (
        epsilon(plan, plan.num_rounds)
        <= 2.0
        < epsilon(replace(plan, noise_multiplier=plan.noise_multiplier - 2e-3), 10)
    )
    assert num_rounds_within(plan) == plan.num_rounds


def test_a_recipe_keeps_the_noise_that_was_found():
    recipe = resolved(private(privacy={"noise_multiplier": 0.0, "target_epsilon": 2.0}))
    assert resolved(recipe) == recipe


def test_a_budget_reaches_so_many_rounds():
    plan = Plan.of(private(privacy={"noise_multiplier": 2.0, "target_epsilon": 4.0}))
    reached = num_rounds_within(plan)
    assert 0 < reached < plan.num_rounds
    assert epsilon(plan, reached) <= 4.0 < epsilon(plan, reached + 1)
    assert num_rounds_within(replace(plan, target_epsilon=0.0)) == plan.num_rounds


def test_a_hardly_bounded_target_takes_the_least_noise_that_is_accounted():
    recipe = resolved(private(federation={"num_rounds": 1}, privacy={"noise_multiplier": 0.0, "target_epsilon": 1e5}))
    assert recipe.privacy.noise_multiplier == 0.05
