"""A cohort that shares its directions rides the same perturbed weights; nothing but cost tells."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from small_federation import protocol, recipe, server, site
from torch.nn.functional import mse_loss

from seedtune.engines.in_process import InProcess
from seedtune.errors import EngineError, ModelError
from seedtune.fed import cohort
from seedtune.fed.client import local_round
from seedtune.fed.evaluations import Evaluations
from seedtune.fed.messages import decode_order, decode_reply, encode_order, encode_reply
from seedtune.fed.rounds import run_rounds
from seedtune.space import bound_weights, space_of
from seedtune.zo import noise
from seedtune.zo.materialised import at_copy
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber

SHARED = {"federation": {"keys": "shared"}}


class OneByOne:
    """What the engine would do if nobody rode."""

    def __init__(self, at):
        self.site = at

    def exchange(self, orders):
        for client, order in orders.items():
            yield client, encode_reply(local_round(self.site, decode_order(order)))


def shared(**over):
    return recipe(**{section: SHARED.get(section, {}) | over.get(section, {}) for section in SHARED | over})


def orders_of(at, clients=range(4)):
    return {client: encode_order(protocol(at.recipe).order(server(at), client)) for client in clients}


def state_digests(at, engine):
    return [result.record.digest for _, result in run_rounds(server(at), protocol(at.recipe), engine)]


@pytest.fixture
def made(monkeypatch):
    """How often each point's noise was made, by key and scale."""
    counts, perturb = Counter(), noise.perturb

    def counting(out, weights, key, start, mu, distribution):
        counts[key, mu, start] += 1
        perturb(out, weights, key, start, mu, distribution)

    monkeypatch.setattr(noise, "perturb", counting)
    return counts


@pytest.mark.parametrize("estimator", ["two-point", "one-sided"])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("scratch_bytes", [2**12, 300])
@pytest.mark.parametrize("over", [{}, {"aggregation": "sign-vote", "weighting": "equal"}, {"key_pool": 2}])
def test_replies_are_those_of_clients_one_by_one(estimator, distribution, scratch_bytes, over):
    local = {"estimator": estimator, "distribution": distribution, "num_directions": 3}
    asked = shared(federation=over, local=local)
    apart, together = site(asked), site(asked)
    apart.perturber.scratch_bytes = together.perturber.scratch_bytes = scratch_bytes
    assert dict(OneByOne(apart).exchange(orders_of(apart))) == dict(InProcess(together).exchange(orders_of(together)))


def test_a_run_has_the_same_digests():
    apart, together = site(shared()), site(shared())
    assert state_digests(apart, OneByOne(apart)) == state_digests(together, InProcess(together))


def test_noise_is_made_once_for_the_cohort(made):
    engine = InProcess(site(shared()))
    dict(engine.exchange(orders_of(engine.site)))  # in the first round one client also goes alone
    made.clear()
    dict(engine.exchange(orders_of(engine.site)))
    assert len(made) == 2 * 2 * 2  # P = 2 directions, two sides, two tensors
    assert set(made.values()) == {1}


def test_clients_with_keys_of_their_own_do_not_ride(made):
    engine = InProcess(site(recipe()))
    dict(engine.exchange(orders_of(engine.site)))
    assert len(made) == 4 * 2 * 2 * 2


def test_clients_whose_points_share_a_forward_do_not_ride(made):
    engine = InProcess(site(shared(), evaluations=Evaluations(object(), 0, "all in one")))
    dict(engine.exchange(orders_of(engine.site)))
    assert set(made.values()) == {4}


@pytest.mark.parametrize("over", [{"federation": {"local_steps": 2}}, {"local": {"num_directions": 2}}])
def test_replies_do_not_depend_on_who_rides_with_whom(over):
    at = site(shared(**over))
    all_, some = (dict(InProcess(at).exchange(orders_of(at, clients))) for clients in (range(4), (3, 1)))
    assert {client: all_[client] for client in some} == some


def test_groups_are_as_large_as_what_they_keep(made, monkeypatch):
    engine = InProcess(site(shared()))
    whole = dict(engine.exchange(orders_of(engine.site)))
    monkeypatch.setattr(cohort, "MOST_KEPT", 2000)  # a batch is 5 x (64 + 2) float32 numbers: two are more
    made.clear()
    assert dict(engine.exchange(orders_of(engine.site))) == whole
    assert set(made.values()) == {2}


def test_nothing_is_copied_where_tuned_tensors_are_large(made, monkeypatch):
    monkeypatch.setattr(cohort, "MOST_COPIED", 100)
    engine = InProcess(site(shared(), working={}))
    dict(engine.exchange(orders_of(engine.site)))
    assert set(made.values()) == {4} and not engine.site.working


def test_the_first_to_ask_for_frozen_layers_pays_for_them():
    """Riding or alone, with the operations of each batch's frozen layers in its client's reply."""
    asked: list[int] = []

    def once(batch) -> int:
        asked.append(1)
        return 1000 if len(asked) == 1 else 0

    at = dataclasses.replace(site(shared()), frozen_flops=once)
    replies = [decode_reply(reply) for reply in dict(InProcess(at).exchange(orders_of(at))).values()]
    plain = [decode_reply(r) for r in dict(InProcess(site(shared())).exchange(orders_of(at))).values()]
    assert [found.num_flops - known.num_flops for found, known in zip(replies, plain, strict=True)] == [1000, 0, 0, 0]
    assert [len(asked), *(found.loss for found in replies)] == [5, *(known.loss for known in plain)], "one twice"


@pytest.mark.parametrize("error", [RuntimeError, KeyError, MemoryError])
@pytest.mark.parametrize("ill", [0, 2])
@pytest.mark.parametrize("place", ["batch", "loss"])
def test_a_client_that_fails_is_named_and_leaves_the_others_alone(error, ill, place):
    at = site(shared())
    expected, bad = dict(InProcess(at).exchange(orders_of(at))), []

    def batch(client, key):
        if client == ill and place == "batch":
            raise error("not here")
        found = at.batch(client, key)
        bad.extend([found[0]] if client == ill else [])
        return found

    def loss(found):
        if any(found[0] is rows for rows in bad):
            raise error("not here")
        return at.loss(found)

    engine = InProcess(dataclasses.replace(at, batch=batch, loss=loss))
    for _ in range(2):  # while the first one still goes alone, and after
        answers = dict(engine.exchange(orders_of(at)))
        if error is RuntimeError:
            assert isinstance(answers[ill], EngineError)
            assert str(answers[ill]) == f"client {ill}, round 0, local step 0: RuntimeError: not here"
        assert isinstance(answers.pop(ill), EngineError if error is RuntimeError else error)
        assert answers == {client: reply for client, reply in expected.items() if client != ill}


def test_weights_are_untouched_and_bound_again():
    at = site(shared())
    before = {name: tensor.clone() for name, tensor in at.replica.weights.items()}
    dict(InProcess(at).exchange(orders_of(at)))
    for name, parameter in at.module.named_parameters():
        assert torch.equal(at.replica.weights[name], before[name])
        assert parameter.data_ptr() == at.replica.weights[name].data_ptr()


def test_nobody_rides_where_a_ride_would_give_something_else(made):
    """A loss that reads a weight outside its module's forward, where clients alone do not see it moved."""
    at = site(shared())
    inner = at.loss
    at = dataclasses.replace(at, loss=lambda batch: inner(batch) + at.module.weight.sum())
    engine = InProcess(at)
    first, second = (dict(engine.exchange(orders_of(at))) for _ in range(2))
    assert first == second == dict(OneByOne(at).exchange(orders_of(at)))


def test_a_tuned_tensor_that_is_not_used_is_an_error_for_everyone():
    at = site(shared())
    at = dataclasses.replace(at, loss=lambda batch: mse_loss(batch[0] @ at.module.weight.T, batch[1]))
    answers = dict(InProcess(at).exchange(orders_of(at)))
    assert all(isinstance(answer, ModelError) for answer in answers.values())


def test_who_must_catch_up_goes_alone():
    at = site(shared(federation={"num_rounds": 2}))
    start, behind = at.replica.digest, site(at.recipe)
    ahead, _ = next(run_rounds(server(at), protocol(at.recipe), InProcess(at)))
    order = encode_order(protocol(at.recipe).order(ahead, 0))
    assert behind.replica.digest == start != decode_order(order).digest
    answers = dict(InProcess(behind).exchange({0: order, 1: encode_order(protocol(at.recipe).order(ahead, 1))}))
    assert {client: decode_reply(answer).client for client, answer in answers.items()} == {0: 0, 1: 1}
    assert behind.replica.digest == ahead.replica.digest


def test_large_weights_meet_a_batch_in_the_same_chunks():
    """A product of few rows with many may add in another order than its parts: seen with 1 x 768 x 8192."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 768, 8192).requires_grad_(False)
    rng = np.random.default_rng(3)
    for parameter in layer.parameters():
        parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32)))
    space, rows = space_of(layer, ("weight", "bias")), torch.from_numpy(rng.standard_normal((1, 768), np.float32))
    perturber, weights = Perturber(layer, space), bound_weights(layer, space)
    point = Perturbation(5, 1e-3, Distribution.GAUSSIAN)
    with perturber.at(point):
        expected = layer(rows)
    with at_copy(perturber, weights, {name: torch.empty_like(held) for name, held in weights.items()}, point):
        assert torch.equal(layer(rows), expected)
