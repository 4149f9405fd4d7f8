import dataclasses
import gc

import numpy as np
import pytest
import torch
from small_federation import Answers, batch_of, module, protocol, recipe, server, site, squared_error

from seedtune.engines.in_process import InProcess
from seedtune.errors import DigestMismatch, EngineError
from seedtune.fed.client import catch_up, local_round, step_keys
from seedtune.fed.messages import Order, encode_reply, unpack_weights
from seedtune.fed.rounds import one_round, run_rounds
from seedtune.space import digest
from seedtune.zo import noise
from seedtune.zo.estimators import one_by_one, two_point
from seedtune.zo.perturb import Perturbation
from seedtune.zo.trajectory import direction_key
from seedtune.zo.update import Update, apply

WEIGHTS = {"upload": "weights"}


def order_for(at, client=0, round_=0, rate=0.01, **changed):
    return Order(round_, client, at.replica.digest, rate, **changed)


def one_client(**over):
    settings = {"partition": {"num_clients": 1}, "local": {"num_directions": 1}}
    return recipe(**{name: {**settings.get(name, {}), **over.get(name, {})} for name in {*settings, *over}})


def test_one_client_and_one_step_is_the_centralised_two_point_method():
    settings = one_client()
    at = site(settings)
    for _ in run_rounds(server(at), protocol(settings), InProcess(at)):
        pass

    theirs = site(settings)
    seed, mu, rate = settings.run.seed, np.float64(1e-2), 0.01
    for step in range(3):
        batch = batch_of(settings, 0, noise.derive_key(seed, "batch", round=step, client=0, step=0))
        key = direction_key(seed, step, 0, 0, 0)
        losses = []
        for sign in (1, -1):
            with theirs.perturber.at(Perturbation(key, sign * float(mu), theirs.header.distribution)):
                losses.append(float(theirs.loss(batch)))
        scalar = np.float32((losses[0] - losses[1]) / (2 * mu))
        for spec in theirs.perturber.space.tensors:
            z = noise.values(key, spec.start, spec.num_elements, theirs.header.distribution).view(spec.shape)
            theirs.replica.weights[spec.name] += float(np.float32(-rate * np.float64(scalar))) * z
    assert digest(theirs.replica.weights) == at.replica.digest != digest(site(settings).replica.weights)


@pytest.mark.parametrize("federation", [{}, {"local_steps": 3}, WEIGHTS, {**WEIGHTS, "local_steps": 3}], ids=str)
def test_local_steps_leave_the_replica_as_it_was(federation):
    at = site(recipe(federation=federation))
    before = at.replica.digest
    reply = local_round(at, order_for(at, client=2))
    assert digest(at.replica.weights) == at.replica.digest == before
    assert all(at.module.get_parameter(name).data_ptr() == t.data_ptr() for name, t in at.replica.weights.items())
    steps = federation.get("local_steps", 1)
    assert reply.num_forwards == 4 * steps and reply.num_examples == 12 and np.isfinite(reply.loss)
    assert reply.scalars.shape == ((0, 0) if "upload" in federation else (steps, 2))


def test_directions_are_a_clients_own_or_the_cohorts():
    own, shared = site(recipe()), site(recipe(federation={"keys": "shared"}))
    assert step_keys(own, order_for(own, 1), 0) != step_keys(own, order_for(own, 2), 0)
    assert step_keys(shared, order_for(shared, 1), 0) == step_keys(shared, order_for(shared, 2), 0)
    assert step_keys(shared, order_for(shared, 1), 0) != step_keys(shared, order_for(shared, 1), 1)


@pytest.mark.parametrize(
    "told, settings",
    [
        (lambda scalars: np.clip(scalars, -0.5, 0.5), {"local": {"clip": 0.5}}),
        (np.sign, {"federation": {"keys": "shared", "aggregation": "sign-vote", "weighting": "equal"}}),
    ],
)
def test_local_steps_move_by_what_is_told_of_the_projected_gradients(told, settings):
    """Two steps: the second one's scalars are those at the weights to which the first one's, as told, have led."""
    shared = {"keys": "shared", "local_steps": 2}
    plain = site(recipe(federation=shared))
    at = site(recipe(**{**settings, "federation": {**shared, **settings.get("federation", {})}}))
    sent, raw = (local_round(each, order_for(each, client=1)).scalars for each in (at, plain))
    assert np.abs(raw[0]).max() > 0.5 and (sent[0] == told(raw[0])).all() and (sent[0] != raw[0]).any()

    keys = step_keys(plain, order_for(plain, 1), 0)
    coefficients = (-0.01 / 2 * sent[0].astype(np.float64)).astype(np.float32)
    weights = plain.replica.weights
    apply(plain.perturber.space, weights, [Update(keys, coefficients, 0)], plain.header.distribution)
    batch = batch_of(plain.recipe, 1, noise.derive_key(plain.header.seed, "batch", round=0, client=1, step=1))

    def loss_at(point):
        with plain.perturber.at(point):
            return float(plain.loss(batch))

    probe = two_point(one_by_one(loss_at), step_keys(plain, order_for(plain, 1), 1), 1e-2, plain.header.distribution)
    assert (sent[1] == told(probe.scalars)).all()


@pytest.mark.parametrize("error", [RuntimeError("no\nmemory"), ValueError("bad"), IndexError("out")])
@pytest.mark.parametrize("order", ["zeroth", "first"])
def test_a_step_that_fails_names_client_round_and_step(order, error):
    settings = recipe(federation={**WEIGHTS, "local_steps": 3}, local={"order": order})
    at = site(settings)
    at = dataclasses.replace(at, loss=raising_at(at, 1, error))
    with pytest.raises(EngineError, match=rf"^client 2, round 0, local step 1: {type(error).__name__}: "):
        local_round(at, order_for(at, client=2))
    assert digest(at.replica.weights) == at.replica.digest
    assert all(at.module.get_parameter(name).data_ptr() == t.data_ptr() for name, t in at.replica.weights.items())
    assert all(not p.requires_grad and p.grad is None for p in at.module.parameters())


def raising_at(at, step, error):
    """The site's loss, but it fails at one step of client 2."""
    seed = at.recipe.run.seed
    failing = batch_of(at.recipe, 2, noise.derive_key(seed, "batch", round=0, client=2, step=step))

    def loss(batch):
        if torch.equal(batch[0], failing[0]):
            raise error
        return at.loss(batch)

    return loss


def test_a_backward_pass_that_fails_leaves_no_gradients():
    settings = recipe(federation=WEIGHTS, local={"order": "first"})
    at = site(settings)

    def loss(batch):
        at.module.weight.register_post_accumulate_grad_hook(fail)
        return squared_error(at.module)(batch)

    def fail(parameter):
        raise RuntimeError("no memory")

    with pytest.raises(EngineError, match="client 1, round 0, local step 0: RuntimeError: no memory"):
        local_round(dataclasses.replace(at, loss=loss), order_for(at, client=1))
    assert all(not p.requires_grad and p.grad is None for p in at.module.parameters())


@pytest.mark.parametrize("federation", [{"local_steps": 3}, {**WEIGHTS, "local_steps": 3}], ids=str)
def test_a_clients_round_does_not_depend_on_who_worked_there_before(federation):
    settings = recipe(federation=federation)
    busy, fresh = site(settings), site(settings)
    local_round(busy, order_for(busy, client=0))
    assert encode_reply(local_round(busy, order_for(busy, 1))) == encode_reply(local_round(fresh, order_for(fresh, 1)))


def test_local_steps_apply_their_own_scalars_with_rounding_of_their_own():
    settings = recipe(federation={**WEIGHTS, "local_steps": 2})
    at, theirs = site(settings, torch.bfloat16), site(settings, torch.bfloat16)
    sent = unpack_weights(local_round(at, order_for(at, client=3, rate=1e-3)).weights, at.perturber.space)

    seed, weights = settings.run.seed, theirs.replica.weights
    for step in range(2):
        names = {"round": 0, "client": 3, "step": step}
        batch = batch_of(settings, 3, noise.derive_key(seed, "batch", **names))

        def loss_at(point, batch=batch):
            with theirs.perturber.at(point):
                return float(theirs.loss(batch))

        keys = step_keys(theirs, order_for(theirs, 3), step)
        probe = two_point(one_by_one(loss_at), keys, 1e-2, theirs.header.distribution)
        coefficients = (-1e-3 / 2 * probe.scalars.astype(np.float64)).astype(np.float32)
        update = Update(keys, coefficients, noise.derive_key(seed, "local rounding", **names))
        apply(theirs.perturber.space, weights, [update], theirs.header.distribution)
    assert digest(sent) == digest(weights) != theirs.replica.digest


def poisoned(settings, clients, steps):
    """Batches of which those of some clients and steps have a loss that is not a number."""

    def batch(client, key):
        inputs, targets = batch_of(settings, client, key)
        bad = [noise.derive_key(settings.run.seed, "batch", round=0, client=client, step=step) for step in steps]
        return inputs, targets * float("nan") if client in clients and key in bad else targets

    return batch


def test_a_loss_that_is_not_finite_is_recorded_and_moves_nothing():
    settings = recipe(federation={"local_steps": 3})
    at = site(settings, batch=poisoned(settings, {1}, {0, 2}))
    answer = local_round(at, order_for(at, client=1))
    assert np.isnan(answer.scalars).all(1).tolist() == [True, False, True] and answer.num_skipped == 2
    assert np.isfinite(answer.loss)

    _, result = one_round(server(at), protocol(settings), InProcess(at))
    assert result.skipped_steps == 2 and result.failed == {} and result.record.clients == (0, 1, 2, 3)
    assert all(tensor.isfinite().all() for tensor in at.replica.weights.values())


@pytest.mark.parametrize("order", ["zeroth", "first"])
def test_clients_that_skip_every_step_send_the_weights_that_they_got(order):
    settings = recipe(federation={**WEIGHTS, "local_steps": 2}, local={"order": order})
    at = site(settings, batch=poisoned(settings, {0, 1, 2, 3}, {0, 1}))
    before = at.replica.digest
    _, result = one_round(server(at), protocol(settings), InProcess(at))
    assert result.skipped_steps == 8 and result.failed == {} and np.isnan(result.train_loss)
    assert result.record.digest == before


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_first_order_steps_are_plain_training(optimizer, weight_decay):
    local = {"order": "first", "optimizer": optimizer, "weight_decay": weight_decay}
    settings = recipe(federation={**WEIGHTS, "local_steps": 4}, local=local)
    at = site(settings)
    sent = unpack_weights(local_round(at, order_for(at, client=3)).weights, at.perturber.space)

    layer = module().requires_grad_(True)
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    steps = make(layer.parameters(), lr=0.01, weight_decay=weight_decay)
    for step in range(4):
        key = noise.derive_key(settings.run.seed, "batch", round=0, client=3, step=step)
        steps.zero_grad()
        squared_error(layer)(batch_of(settings, 3, key)).backward()
        steps.step()
    assert all(torch.equal(sent[name], parameter) for name, parameter in layer.named_parameters())
    assert all(not p.requires_grad and p.grad is None for p in at.module.parameters())


def rounds_of(settings, num_rounds):
    """A server some rounds on, to whom all clients are as if they had been away."""
    at, engine = site(settings), Answers()
    state = server(at)
    for _ in range(num_rounds):
        state, _ = one_round(state, protocol(settings), engine)
    return dataclasses.replace(state, up_to_date={})


def test_a_client_that_joins_late_comes_to_the_servers_weights():
    settings = recipe(federation={"num_rounds": 6})
    state, late = rounds_of(settings, 3), site(settings)
    order = protocol(settings).order(state, 3)
    assert len(order.missed) == 3 and not order.weights
    catch_up(late, order)
    assert late.replica.digest == digest(late.replica.weights) == state.replica.digest


def test_a_client_passes_over_rounds_that_it_went_through():
    settings = recipe(federation={"num_rounds": 6})
    late = site(settings)
    catch_up(late, protocol(settings).order(rounds_of(settings, 1), 3))
    state = rounds_of(settings, 3)
    catch_up(late, protocol(settings).order(state, 3))
    assert late.replica.digest == digest(late.replica.weights) == state.replica.digest


def test_a_client_far_behind_gets_the_weights():
    settings = recipe(federation={"num_rounds": 20})
    state, late = rounds_of(settings, 12), site(settings)
    order = protocol(settings).order(state, 3)
    assert order.weights and not order.missed
    catch_up(late, order)
    assert late.replica.digest == digest(late.replica.weights) == state.replica.digest


def test_a_client_that_cannot_come_to_the_orders_weights_says_both_digests():
    settings = recipe(federation={"num_rounds": 6})
    order, late = protocol(settings).order(rounds_of(settings, 2), 1), site(settings)
    late.replica.weights["bias"][0] += 1
    late.replica.digest = digest(late.replica.weights)
    with pytest.raises(DigestMismatch) as error:
        catch_up(late, order)
    found = digest(late.replica.weights).hex()
    assert str(error.value) == (
        f"the weights' digest of client 1 at the start of round 2 is {found}, expected {order.digest.hex()}"
    )


@pytest.mark.parametrize("num_clients", [8, 800])
@pytest.mark.parametrize("exchange, copies", [("scalars", 2), ("weights", 7)])
def test_clients_share_one_base_and_one_working_copy(exchange, copies, num_clients):
    """Scalars: the replica and the working copy. Weights: the mean's float64 sums, and one reply, besides."""
    federation = {"upload": exchange, "local_steps": 2}
    settings = recipe(partition={"num_clients": num_clients}, federation=federation)
    gc.collect()
    others = tensors_alive()
    at = site(settings)
    seen = []

    class Watching(InProcess):
        def exchange(self, orders):
            for client, answer in super().exchange(orders):
                if client in (0, num_clients - 1):
                    seen.append(sum(size for at, size in tensors_alive().items() if at not in others))
                yield client, answer

    one_round(server(at), protocol(settings), Watching(at))
    tuned = sum(tensor.nbytes for tensor in at.replica.weights.values())
    assert seen[0] == 2 * tuned and 2 * tuned <= seen[1] <= copies * tuned


def tensors_alive():
    """Where every living tensor keeps its values, and how many bytes they are."""
    alive = (thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter))
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
