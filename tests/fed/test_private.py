"""A private client's reply tells nothing but one bounded vector; what the server releases has the accounted noise."""

from dataclasses import replace
from math import isnan, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from private_recipes import private, sampling_clients, sampling_examples
from small_federation import NUM_EXAMPLES, examples, server, site
from small_federation import reply as usual_reply

from seedtune.engines.in_process import InProcess
from seedtune.errors import ConfigError, EngineError, MessageError
from seedtune.fed.client import local_round
from seedtune.fed.messages import Order, decode_reply, encode_order
from seedtune.fed.participation import drops_out
from seedtune.fed.private import SECRET
from seedtune.fed.private_sum import PrivateSum
from seedtune.fed.rounds import one_round
from seedtune.fed.seed_scalar import SeedScalar
from seedtune.privacy.plan import Plan
from seedtune.recipe_text import merged
from seedtune.space import copied, copy_into

KEY = bytes(range(32))
LOCAL, EXAMPLE = {"privacy": {"noise": "local"}}, {"privacy": {"unit": "example"}}
MODES = {
    "client": private(),
    "client-steps": private(federation={"local_steps": 3}),
    "client-local": private(**LOCAL),
    "client-local-own-keys": private(**merged(LOCAL, {"federation": {"keys": "own"}})),
    "example": private(**EXAMPLE),
    "example-one-sided": private(**merged(EXAMPLE, {"local": {"estimator": "one-sided"}})),
    "example-poisson": sampling_examples("poisson"),
    "example-poisson-rare": sampling_examples("poisson", federation={"batch_size": 1}),
    "example-local": sampling_examples("fixed-size", **LOCAL),
}


def central(recipe) -> PrivateSum:
    plan = Plan.of(recipe)
    assert plan
    return PrivateSum(plan)


def answered(recipe, data=examples, secret=KEY, memory=None, digest=None, round_=0, client=1) -> bytes:
    """The reply of one client of a site of its own, as it travels."""
    at = site(recipe, data=data)
    memory = {SECRET: secret} if memory is None else memory
    order = Order(round_, client, at.replica.digest if digest is None else digest, 0.01)
    ((_, found),) = InProcess(at, memory).exchange({client: encode_order(order)})
    if isinstance(found, Exception):
        raise found
    return found


def scaled(factor: float):
    return lambda client: (factor * examples(client)[0], examples(client)[1])


def without(example: int, value: float):
    """All clients' data, where every number of one example is `value`."""

    def data(client):
        inputs, targets = (tensor.clone() for tensor in examples(client))
        inputs[example] = value
        return inputs, targets

    return data


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [0.0, 1e3, 1e30, float("nan")])
def test_a_reply_differs_in_nothing_but_scalars(mode, factor):
    one, other = answered(MODES[mode]), answered(MODES[mode], scaled(factor))
    assert len(one) == len(other)
    told, instead = decode_reply(one), decode_reply(other)
    assert np.isfinite(instead.scalars).all()
    assert np.isnan(told.loss) and np.isnan(instead.loss)
    same = [
        (r.round, r.client, r.num_examples, r.num_forwards, r.num_skipped, r.num_flops, r.scalar_rms)
        for r in (told, instead)
    ]
    assert same == [(0, 1, 1, told.num_forwards, 0, 0, None)] * 2


@pytest.mark.parametrize("mode", ["client", "client-steps"])
@pytest.mark.parametrize("factor", [1.0, 1e4, 1e19, float("inf")])
def test_a_clients_whole_contribution_is_bounded(mode, factor):
    scalars = decode_reply(answered(MODES[mode], scaled(factor))).scalars
    assert np.linalg.norm(scalars.astype(np.float64)) <= MODES[mode].privacy.clip


@given(
    st.integers(0, NUM_EXAMPLES - 1), st.sampled_from([0.0, 1e-30, 3.0, -1e4, 1e19, 1e38, float("inf"), float("nan")])
)
@settings(max_examples=25, deadline=None)
def test_one_example_moves_the_sum_by_no_more_than_is_accounted(example, value):
    """Replaced by anything: twice the bound; by one whose loss is not finite, which counts as absent: the bound."""
    recipe = private(**merged(EXAMPLE, {"federation": {"batch_size": 12}}))  # all examples, always
    moved = [decode_reply(answered(recipe, data)).scalars.astype(np.float64) for data in
             (examples, without(example, value), without(example, float("nan")))]  # fmt: skip
    assert np.linalg.norm(moved[0] - moved[1]) <= 2 * recipe.privacy.clip
    assert np.linalg.norm(moved[0] - moved[2]) <= recipe.privacy.clip


def test_a_batch_is_the_sum_of_its_examples_contributions():
    recipe = private(**merged(EXAMPLE, {"federation": {"batch_size": 12}}))

    def alone(example):
        def data(client):
            inputs, targets = (tensor.clone() for tensor in examples(client))
            inputs[torch.arange(NUM_EXAMPLES) != example] = float("nan")
            return inputs, targets

        return decode_reply(answered(recipe, data)).scalars

    whole, parts = decode_reply(answered(recipe)).scalars, [alone(example) for example in range(NUM_EXAMPLES)]
    assert np.abs(whole).max() > 0
    assert np.abs(whole - np.sum(parts, axis=0)).max() <= NUM_EXAMPLES * 2.0**-12


@pytest.mark.parametrize("mode, deviation", [("client-local", 1.0), ("example-local", 1 / 5)])
def test_local_noise_is_of_the_accounted_size(mode, deviation):
    """4,000 rounds of two scalars: within 4 standard errors, 4.5 percent."""
    recipe = MODES[mode].model_copy(
        update={"federation": MODES[mode].federation.model_copy(update={"num_rounds": 4_000})}
    )
    at = site(recipe)
    own = replace(at.private, plan=replace(at.private.plan, num_rounds=4_000), memory={SECRET: KEY})
    scalars = np.array([[0.5, -0.25]], np.float32)
    sent = [own.reply(Order(round_, 1, at.replica.digest, 0.01), scalars, 4).scalars for round_ in range(4_000)]
    noise = np.array(sent) - scalars * deviation
    assert abs(noise.std() / deviation - 1) < 4 / sqrt(2 * noise.size)
    assert abs(noise.mean()) < 4 * deviation / sqrt(noise.size)


@pytest.mark.parametrize(
    "recipe, denominator", [(private(), 4), (sampling_examples("poisson"), 20)], ids=["client", "example"]
)
def test_central_noise_is_of_the_accounted_size(recipe, denominator):
    """1,500 rounds of two scalars, of a sum that is always the same: within 4 standard errors, 7.3 percent."""
    at = site(recipe)
    start, before = replace(server(at), secret=KEY), copied(at.replica.weights)
    replies = [usual_reply(client, scalars=np.array([[0.5, -0.25]], np.float32)) for client in range(4)]
    released = []
    for round_ in range(1_500):
        released.append(central(recipe).reduce(replace(start, round=round_), replies).scalars[0])
        copy_into(at.replica.weights, before)
    noise = np.array(released) - 4 * replies[0].scalars / denominator
    assert abs(noise.std() * denominator - 1) < 4 / sqrt(2 * noise.size)
    assert abs(noise.mean() * denominator) < 4 / sqrt(noise.size)


def test_a_round_without_replies_is_released_like_any_other():
    at = site(recipe := sampling_clients("poisson"))
    record = central(recipe).reduce(replace(server(at), secret=KEY), [])
    assert record.clients == () and np.abs(record.scalars).min() > 0


def test_a_round_without_replies_has_no_size_of_scalars():
    """Not None, which listeners such as event files could not write."""
    at = site(recipe := private(**merged(LOCAL, {"federation": {"dropout_rate": 0.999}})))
    assert all(drops_out(recipe, 0, client) for client in range(4))
    _, result = one_round(server(at), SeedScalar(), InProcess(at))
    assert result.record.clients == () and isnan(result.scalar_rms)


def test_other_sums_have_other_noise_and_the_same_sum_the_same():
    drawn = []
    for second in (0.0, 0.5, 0.5):
        at = site(private())
        replies = [usual_reply(0, scalars=np.array([[0.0, second]], np.float32))]
        drawn.append(central(private()).reduce(replace(server(at), secret=KEY), replies).scalars[0, 0, 0])
    assert drawn[0] != drawn[1] == drawn[2]


def test_noise_follows_from_the_secret_and_not_from_the_seed():
    one, again, other = (answered(MODES["client-local"], secret=secret) for secret in (KEY, KEY, KEY[::-1]))
    assert one == again != other


def test_secret_samples_follow_from_the_secret():
    sums = {answered(MODES["example-poisson"], secret=bytes([i] * 32)) for i in range(8)}
    assert len(sums) > 4


def test_a_client_beyond_the_bound_is_not_counted():
    with pytest.raises(MessageError, match=r"norm 1.11803, beyond privacy.clip = 1"):
        central(private()).check(server(site(private())), usual_reply(0, scalars=np.array([[0.5, 1.0]], np.float32)))
    with pytest.raises(MessageError, match="norm nan"):
        central(private()).check(server(site(private())), usual_reply(0, scalars=np.array([[0.5, np.nan]], np.float32)))


def test_a_round_is_answered_on_one_state_only():
    """A server that is not trusted gets the same bytes again, and no second release that nobody accounted for."""
    recipe, memory = MODES["client-local"], {SECRET: KEY}
    first = answered(recipe, memory=memory, round_=3)
    assert answered(recipe, memory=memory, round_=3) == first
    at = site(recipe)
    own = replace(at.private, memory=memory)
    scalars = np.zeros((1, 2), np.float32)
    for round_, found in (
        (3, "round 3 of this run already"),
        (2, "round 3 of this run already"),
        (10, "10 rounds are"),
    ):
        with pytest.raises(MessageError, match=found):
            own.reply(Order(round_, 1, bytes(16), 0.01), scalars, 4)
    own.reply(Order(4, 1, bytes(16), 0.01), scalars, 4)
    own.reply(Order(3, 2, bytes(16), 0.01), scalars, 4)


def test_a_private_client_without_a_memory_says_nothing():
    recipe = MODES["client-local"]
    at = site(recipe)
    with pytest.raises(ConfigError, match="without a memory"):
        local_round(at, Order(0, 1, at.replica.digest, 0.01))


def test_why_a_step_failed_stays_on_the_device():
    at = site(private())

    def failing(batch):
        raise ValueError("the patient is called X")

    with pytest.raises(EngineError) as failure:
        local_round(replace(at, loss=failing), Order(0, 1, at.replica.digest, 0.01))
    assert str(failure.value) == "client 1, round 0: a local step of a private run failed; why stays on the device"


def test_side_by_side_and_alone_are_the_same():
    recipe = MODES["client-local"]
    at = site(recipe)
    orders = {client: encode_order(Order(0, client, at.replica.digest, 0.01)) for client in range(4)}
    together = dict(InProcess(at, {SECRET: KEY}).exchange(orders))
    assert together == {client: answered(recipe, client=client) for client in range(4)}
