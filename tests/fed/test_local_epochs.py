"""Local epochs: each example once a pass, in an order of round, client and pass; else steps like any others."""

import dataclasses
from math import ceil

import numpy as np
import pytest
import torch
from small_federation import NUM_EXAMPLES, epoch_of, module, protocol, recipe, server, site, squared_error
from tiny_runs import MACHINE

from seedtune import assembly
from seedtune.engines.in_process import InProcess
from seedtune.errors import EngineError
from seedtune.fed.client import local_round, step_keys
from seedtune.fed.messages import Order, encode_reply, unpack_weights
from seedtune.fed.rounds import run_rounds
from seedtune.space import digest
from seedtune.zo import noise
from seedtune.zo.estimators import one_by_one, two_point
from seedtune.zo.update import Update, apply

BATCH, SEED = 5, 11
STEPS = ceil(NUM_EXAMPLES / BATCH)  # 5 + 5 + 2 examples


def epochs(num_epochs, **over):
    """local_steps is set too, and must not matter."""
    federation = {"upload": "weights", "local_epochs": num_epochs, "local_steps": 7, **over.pop("federation", {})}
    return recipe(federation=federation, **over)


def order_for(at, client=0, round_=0, rate=0.01):
    return Order(round_, client, at.replica.digest, rate)


def batches_by_hand(settings, client, round_):
    for epoch in range(settings.federation.local_epochs):
        yield from epoch_of(settings, client, noise.derive_key(SEED, "epoch", round=round_, client=client, step=epoch))


def seen(settings, client, round_) -> list[list[list[float]]]:
    """The examples of each batch of a client's round, in their order."""
    at, found = site(settings), []
    watched = lambda batch: found.append(batch[0].tolist()) or at.loss(batch)  # noqa: E731
    first = dataclasses.replace(at, loss=watched, recipe=settings)
    local_round(first, order_for(at, client, round_))
    return found


FIRST = {"order": "first"}


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_a_pass_uses_each_example_once(num_epochs):
    found = seen(epochs(num_epochs, local=FIRST), client=2, round_=4)
    assert [len(batch) for batch in found] == [5, 5, 2] * num_epochs
    orders = []
    for epoch in range(num_epochs):
        orders.append([tuple(example) for batch in found[3 * epoch : 3 * epoch + 3] for example in batch])
        assert len(set(orders[-1])) == NUM_EXAMPLES and set(orders[-1]) == set(orders[0])
    assert len(set(map(tuple, orders))) == num_epochs


def test_passes_are_keyed_by_round_and_client_and_repeat():
    settings = epochs(1, local=FIRST)
    assert seen(settings, 2, 4) == seen(settings, 2, 4) != seen(settings, 2, 5)
    orders = [np.argsort(np.concatenate(seen(settings, client, 4))[:, 0]).tolist() for client in range(2)]
    assert orders[0] != orders[1]


def test_a_real_clients_pass_is_its_training_examples(tiny_recipe, monkeypatch):
    """11 or 12 examples a client, of which 2 are held out, in batches of 4."""
    monkeypatch.setattr(assembly, "batch_of", lambda examples, indices: torch.from_numpy(indices))
    made = assembly.assemble(tiny_recipe(partition={"heldout_fraction": 0.2}), MACHINE)
    for client, own in enumerate(made.clients):
        first, again, other = ([part.tolist() for part in made.site.epoch(client, key)] for key in (1, 1, 2))
        assert sorted(np.concatenate(first)) == own.tolist() and first == again != other
        assert len(first) == ceil(len(own) / 4) and all(len(part) == 4 for part in first[:-1])


@pytest.mark.parametrize(
    "local, forwards", [(FIRST, 3), ({"num_directions": 2}, 4), ({"num_directions": 2, "estimator": "one-sided"}, 3)]
)
def test_a_round_takes_as_many_steps_as_there_are_batches(local, forwards):
    """A step of backpropagation counts as three forwards, in operations too: 2 n 64 2 for n examples of 64 numbers."""
    at = site(epochs(3, local=local))
    reply = local_round(at, order_for(at, client=1))
    assert reply.num_forwards == forwards * 3 * STEPS
    assert reply.num_flops == forwards * 3 * (2 * NUM_EXAMPLES * 64 * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeroth_order_passes_are_two_point_steps_on_the_batches(dtype):
    settings = epochs(2)
    at, theirs = site(settings, dtype), site(settings, dtype)
    sent = unpack_weights(local_round(at, order_for(at, 3, 1, rate=1e-3)).weights, at.perturber.space)

    for step, batch in enumerate(batches_by_hand(settings, 3, 1)):

        def loss_at(point, batch=batch):
            with theirs.perturber.at(point):
                return float(theirs.loss(batch))

        keys = step_keys(theirs, order_for(theirs, 3, 1), step)
        probe = two_point(one_by_one(loss_at), keys, 1e-2, theirs.header.distribution)
        coefficients = (-1e-3 / 2 * probe.scalars.astype(np.float64)).astype(np.float32)
        rounding = noise.derive_key(SEED, "local rounding", round=1, client=3, step=step)
        apply(theirs.perturber.space, theirs.replica.weights, [Update(keys, coefficients, rounding)],
              theirs.header.distribution)  # fmt: skip
    assert step == 2 * STEPS - 1 and digest(sent) == digest(theirs.replica.weights) != at.replica.digest


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fedavg_of_one_client_is_plain_training(optimizer):
    """Two rounds of two passes; an optimizer begins anew each round."""
    settings = epochs(2, partition={"num_clients": 1}, federation={"num_rounds": 2},
                      local={**FIRST, "optimizer": optimizer})  # fmt: skip
    at = site(settings)
    for _ in run_rounds(server(at), protocol(settings), InProcess(at)):
        pass

    layer = module().requires_grad_(True)
    make = {"sgd": torch.optim.SGD, "adamw": lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.0)}[optimizer]
    for round_ in range(2):
        steps = make(layer.parameters(), lr=0.01)
        for batch in batches_by_hand(settings, 0, round_):
            steps.zero_grad()
            squared_error(layer)(batch).backward()
            steps.step()
    assert digest({name: parameter.data for name, parameter in layer.named_parameters()}) == at.replica.digest


@pytest.mark.parametrize("order, rate", [("zeroth", 3e-3), ("first", 3e-2)])
def test_passes_train(order, rate):
    settings = epochs(2, federation={"num_rounds": 6}, local={"order": order, "learning_rate": rate})
    at = site(settings)
    losses = [result.train_loss for _, result in run_rounds(server(at), protocol(settings), InProcess(at))]
    assert losses[-1] < 0.8 * losses[0]


def test_a_clients_round_is_the_same_again():
    settings = epochs(2)
    busy, fresh = site(settings), site(settings)
    local_round(busy, order_for(busy, 0))
    assert encode_reply(local_round(busy, order_for(busy, 1))) == encode_reply(local_round(fresh, order_for(fresh, 1)))


def test_a_batch_that_cannot_be_made_names_client_round_and_step():
    settings = epochs(2, local=FIRST)

    def epoch(client, key):
        yield from list(epoch_of(settings, client, key))[:2]
        raise IndexError("no such example")

    at = site(settings, epoch=epoch)
    with pytest.raises(EngineError) as error:
        local_round(at, order_for(at, client=2, round_=3))
    assert str(error.value) == "client 2, round 3, local step 2: IndexError: no such example"
