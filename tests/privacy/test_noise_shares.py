"""Noise in shares: a secure sum carries the noise that is accounted for, and what could not be is refused."""

from dataclasses import replace
from math import sqrt

import dp_accounting
import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from private_recipes import private
from secure_federation import SHARED, rounds
from small_federation import recipe as small_recipe
from small_federation import site

from seedtune.errors import ConfigError
from seedtune.fed.contribution import total_of, words_of
from seedtune.fed.messages import Order
from seedtune.fed.private import SECRET
from seedtune.privacy.accounting import epsilon
from seedtune.privacy.clipping import clipped
from seedtune.privacy.noise import noisy_share
from seedtune.privacy.plan import Plan
from seedtune.privacy.rules import checked
from seedtune.privacy.sum_plan import SumPlan
from seedtune.recipe_text import merged

SHARES = {"privacy": {"noise": "shares", "noise_multiplier": 2.0}, "secure_sum": {"enabled": True}}


def shares(**over):
    return private(**merged(SHARES, over))


def sums(num_clients, num_rounds, **over):
    """Sums of so many clients' parts over rounds, as the server decodes them, less what they hide; [rounds, 2]."""
    recipe = shares(federation={"num_rounds": num_rounds}, **over)
    at, code = site(recipe), SumPlan.of(recipe).code
    own = replace(at, private=replace(at.private, memory={SECRET: bytes(range(32))}))
    scalars, found = np.array([[0.5, -0.25]], np.float32), []
    for round_ in range(num_rounds):
        orders = [Order(round_, client, at.replica.digest, 0.01) for client in range(num_clients)]
        words = [words_of(own, order, own.private.reply(order, scalars, 4), code) for order in orders]
        total = total_of(sum(words, np.zeros_like(words[0])), num_clients, code)
        found.append(total.body.reshape(2, -1)[1])
    return np.array(found) - num_clients * scalars.astype(float).ravel()


@pytest.mark.parametrize("num_clients, deviation", [(3, 2.0), (4, 2.0 * sqrt(4 / 3))])
def test_the_noise_of_a_sum_is_the_accounted_one_and_more_where_more_clients_came(num_clients, deviation):
    """2,000 sums of two scalars at a threshold of three: within 4 standard errors, 4.5 percent."""
    noise = sums(num_clients, 2_000)
    assert abs(noise.std() / deviation - 1) < 4 / sqrt(2 * noise.size)
    assert abs(noise.mean()) < 4 * deviation / sqrt(noise.size)


def test_fewer_that_are_counted_on_add_more_each():
    noise = sums(2, 1_000, privacy={"min_honest": 2})
    assert abs(noise.std() / 2.0 - 1) < 4 / sqrt(2 * noise.size)


def test_the_grid_of_a_sum_tells_nothing_of_what_it_hides():
    """Values and noise are multiples of one step, so that no remainder is that of the values alone."""
    plan, rng = Plan.of(shares()), np.random.default_rng(0)
    values = clipped(rng.standard_normal((200, 8)), plan.clip)
    drawn = rng.integers(0, 2**64, 2 * values.size, np.uint64)
    noise = noisy_share(values, plan.share_deviation, plan.share_step, drawn) - values
    remainders = np.round(noise / plan.share_step).astype(int) % 16
    assert (noise % plan.share_step == 0).all() and (values % plan.share_step == 0).all()
    assert np.bincount(remainders.ravel(), minlength=16).min() > 50  # of 100


def test_epsilon_is_that_of_dp_accounting_for_the_central_mechanism():
    plan, accountant = Plan.of(shares()), RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_accounting.GaussianDpEvent(2.0), 7)
    assert epsilon(plan, 7) == accountant.get_epsilon(1e-5)
    assert epsilon(plan, 7) == epsilon(Plan.of(private(privacy={"noise_multiplier": 2.0})), 7)


def test_a_client_sends_nothing_but_its_share_of_a_sum():
    """No loss, no size of its own scalars, no counts that follow from data: all of a part but the body is constant."""
    recipe = shares()
    at, code = site(recipe), SumPlan.of(recipe).code
    own = replace(at, private=replace(at.private, memory={SECRET: bytes(32)}))
    order = Order(0, 1, at.replica.digest, 0.01)
    parts = []
    for round_, value in enumerate((0.0, 1e30, np.nan)):
        asked = replace(order, round=round_)
        parts.append(words_of(own, asked, own.private.reply(asked, np.full((1, 2), value), 4), code))
    assert all((part[:-2] == parts[0][:-2]).all() and (part[-2:] != parts[0][-2:]).all() for part in parts[1:])


@pytest.mark.parametrize("over", [{}, {"federation": {"local_steps": 3}}, {"privacy": {"unit": "example"}}])
def test_a_run_releases_each_sum_with_its_noise_once(over):
    recipe = shares(**merged({"federation": {"num_rounds": 2}}, over))
    _, results = rounds(recipe)
    assert [result.record.clients for result in results] == [(0, 1, 2, 3)] * 2 and not results[0].failed
    assert all(np.isfinite(result.record.scalars).all() and result.losses == {} for result in results)
    assert results[1].epsilon == epsilon(Plan.of(recipe), 2)


REFUSED = {
    "set secure_sum.enabled": {"secure_sum": {"enabled": False}},
    "a sum may be of 3 clients": {"privacy": {"min_honest": 4}},
    "the server knows whom it asks": {
        "partition": {"num_clients": 20}, "federation": {"cohort_size": 4}, "privacy": {"sampling": "poisson"},
    },
    "shares of the noise are multiples of": {"secure_sum": {"fraction_bits": 4}},
    "must never fail to fit": {"secure_sum": {"fraction_bits": 44}, "privacy": {"clip": 1e4}},
    "would be published by themselves": {"federation": {"keys": "own"}},
    "is not bounded by privacy.clip": {"federation": {"aggregation": "median"}},
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_shares_that_would_hide_less_than_is_accounted_are_refused(reason):
    with pytest.raises(ConfigError, match=reason) as refusal:
        checked(shares(**REFUSED[reason]))
    assert "\n" not in str(refusal.value)


def test_who_is_counted_on_is_a_setting_of_shares_alone():
    with pytest.raises(ConfigError, match=r"it needs privacy\.noise = 'shares'"):
        checked(private(privacy={"min_honest": 3}))
    central = small_recipe(federation=SHARED, secure_sum={"enabled": True}, privacy={"unit": "client"})
    with pytest.raises(ConfigError, match="is not to be trusted with its noise; use 'shares', or 'local'"):
        SumPlan.of(central)


@pytest.mark.parametrize(
    "over, reason",
    [
        ({"model": {"dtype": "bfloat16"}}, "in 16 bits an example's loss follows the shape of its batch"),
        ({"model": {"dtype": "float16"}}, "in 16 bits an example's loss follows the shape of its batch"),
        ({"federation": {"batch_size": 2000}}, "are not exact in the 4 bytes of a scalar"),
    ],
)
def test_examples_are_not_protected_where_their_sensitivity_does_not_hold(over, reason):
    """d4: one longer example moved the clipped sum of seven others by 136 % of the clip in bfloat16."""
    with pytest.raises(ConfigError, match=reason):
        checked(private(**merged({"privacy": {"unit": "example"}}, over)))
    assert checked(private(**over)) is not None, "a client's whole vector is clipped in any type"
