"""Each method has the property that defines it, runs on a model, and stands on its page as it is."""

import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
import small_federation
import tiny_runs
import torch
from small_federation import Answers, batch_of, protocol, reply, server, site
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import presets, run_store
from seedtune.assembly import load_replayed
from seedtune.engines.in_process import InProcess
from seedtune.errors import TrajectoryError
from seedtune.experiment import resume, run
from seedtune.fed.client import local_round
from seedtune.fed.messages import Order, decode_order, decode_reply, encode_reply, unpack_weights
from seedtune.fed.rounds import one_round, run_rounds
from seedtune.recipe_text import merged
from seedtune.space import bound_weights, digest
from seedtune.zo import noise
from seedtune.zo.perturb import Perturbation
from seedtune.zo.trajectory import round_keys

METHODS = presets.names("methods")
PAGE = Path(__file__).parent.parent / "docs" / "methods.md"


def recipe(method, **over):
    """The method over a federation around one linear layer."""
    return small_federation.recipe(**merged(presets.read("methods", method), over))


@dataclass
class Apart:
    """An engine whose clients have models of their own; keeps what they got and sent, and where they stood before."""

    sites: dict[int, object]
    orders: list[dict[int, Order]] = field(default_factory=list)
    replies: list[dict[int, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, settings, **changed):
        return cls({client: site(settings, **changed) for client in range(settings.partition.num_clients)})

    def exchange(self, orders):
        self.orders.append({client: decode_order(order) for client, order in orders.items()})
        self.replies.append({})
        for client, order in self.orders[-1].items():
            self.replies[-1][client] = encode_reply(local_round(self.sites[client], order))
            yield client, self.replies[-1][client]


def lived(settings, engine, num_rounds=3):
    """The server's site after some rounds, and their records."""
    at = site(settings)
    state, records = server(at), []
    for _ in range(num_rounds):
        state, result = one_round(state, protocol(settings), engine)
        assert result.failed == {}
        records.append(result.record)
    return at, records


def summed(at, coefficients):
    """sum_k a_k z_k of each tensor, in float64."""
    moved = {spec.name: torch.zeros(spec.shape, dtype=torch.float64) for spec in at.perturber.space.tensors}
    for key, coefficient in coefficients.items():
        for spec in at.perturber.space.tensors:
            z = noise.values(key, spec.start, spec.num_elements, at.header.distribution).double()
            moved[spec.name] += coefficient * z.view(spec.shape)
    return moved


# DeComFL: the cohort shares directions, H P scalars are all that goes up, and who was away replays.


def test_decomfl_uploads_scalars_only_and_whoever_takes_part_holds_the_servers_weights():
    settings = recipe("decomfl", federation={"cohort_size": 2, "local_steps": 3, "num_rounds": 6})
    engine = Apart.of(settings)
    at, records = lived(settings, engine, 6)
    states = [site(settings).replica.digest, *(record.digest for record in records)]
    assert len(set(states)) == 7 and at.replica.digest == states[-1]
    for number, (orders, replies) in enumerate(zip(engine.orders, engine.replies, strict=True)):
        assert len(orders) == 2 and all(order.digest == states[number] for order in orders.values())
        for sent in replies.values():
            assert decode_reply(sent).scalars.shape == (3, 5) and decode_reply(sent).weights == b""
            assert len(sent) <= 50 + 4 * 3 * 5
        assert records[number].scalars.shape == (1, 3, 5)
    assert max(len(order.missed) for orders in engine.orders for order in orders.values()) > 1  # some were away


def test_decomfl_discards_what_local_steps_changed():
    settings = recipe("decomfl", federation={"local_steps": 3})
    one = site(settings)
    local_round(one, Order(0, 2, one.replica.digest, 0.01))
    assert digest(one.replica.weights) == one.replica.digest == site(settings).replica.digest


def test_decomfl_averages_alike_whatever_the_number_of_examples():
    settings = recipe("decomfl", local={"num_directions": 2})
    given = {client: reply(client, num_examples=10**client) for client in range(4)}
    _, result = one_round(server(site(settings)), protocol(settings), Answers(given))
    assert result.record.scalars.tolist() == [[[0.5 + 1.5, -1.0]]]


# FedKSeed: one of K directions every time, and the model is the base with K coefficients.


def test_fedkseed_takes_all_directions_of_a_run_from_its_pool():
    settings = recipe("fedkseed", federation={"local_steps": 20, "key_pool": 7})
    engine = Apart.of(settings)
    at, records = lived(settings, engine)
    keys = [round_keys(at.header, record.round, client, (20, 1)) for record in records for client in record.clients]
    assert len({key for each in keys for key in each}) == 7 and len(set(keys)) == len(keys) == 12
    assert all(decode_reply(sent).scalars.shape == (20, 1) and len(sent) <= 50 + 4 * 20
               for replies in engine.replies for sent in replies.values())  # fmt: skip


def test_fedkseed_is_the_base_and_one_coefficient_a_direction():
    """Within rounding: the run rounds to float32 after every direction, the sum below once."""
    settings = recipe("fedkseed", federation={"local_steps": 20, "key_pool": 7})
    at, records = lived(settings, Apart.of(settings))
    accumulated = Counter()
    for record in records:
        for client, scalars, factor in zip(record.clients, record.scalars, record.factors, strict=True):
            for key, scalar in zip(round_keys(at.header, record.round, client, (20, 1)), scalars.ravel(), strict=True):
                accumulated[key] -= factor * float(scalar)
    base, moved = site(settings).replica.weights, summed(at, accumulated)
    for name, tensor in at.replica.weights.items():
        assert moved[name].abs().max() > 1e-3
        torch.testing.assert_close(tensor.double(), base[name].double() + moved[name], rtol=0, atol=2e-5)


# FeedSign: a bit a step goes up and down, and nothing but signs counts.


def test_feedsign_moves_by_signs_alone():
    settings = recipe("feedsign", federation={"local_steps": 2})
    plain, louder = Apart.of(settings), Apart.of(settings)
    for client, factor in ((1, 8.0), (3, 0.125)):
        louder.sites[client] = scaled(louder.sites[client], factor)
    first, second = (lived(settings, engine, 6) for engine in (plain, louder))
    assert first[0].replica.digest == second[0].replica.digest != site(settings).replica.digest
    assert decode_reply(louder.replies[0][1]).loss == 8 * decode_reply(plain.replies[0][1]).loss


def scaled(at, factor):
    """A site whose loss, and so its projected gradients, are `factor` times as large."""
    return replace(at, loss=lambda batch: factor * at.loss(batch))


def test_feedsign_sends_a_bit_a_step_up_and_down():
    settings = recipe("feedsign", federation={"local_steps": 8, "cohort_size": 2, "num_rounds": 6})
    engine = Apart.of(settings)
    _, records = lived(settings, engine, 6)
    ups = [msgpack.unpackb(sent)[9] for replies in engine.replies for sent in replies.values()]
    downs = [msgpack.unpackb(missed)[3] for orders in engine.orders for o in orders.values() for missed in o.missed]
    assert {len(bits) for bits in ups} == {1} and downs and max(map(len, downs)) <= 2  # ties take a second bit
    assert all(set(record.scalars.ravel()) <= {1, -1, 0} for record in records)


def test_feedsign_moves_every_weight_by_the_rate():
    settings = recipe("feedsign", local={"distribution": "rademacher", "learning_rate": 0.25})
    given = {client: reply(client, scalars=np.ones((1, 1), np.float32)) for client in range(3)}
    given[3] = reply(3, scalars=-np.ones((1, 1), np.float32), num_examples=10**6)  # one client, one vote
    at, before = site(settings), site(settings).replica.weights
    one_round(server(at), protocol(settings), Answers(given))
    for name, tensor in at.replica.weights.items():
        torch.testing.assert_close((tensor - before[name]).abs(), torch.full_like(tensor, 0.25), rtol=1e-6, atol=0)


# BAFFLE: P + 1 forwards for P directions that the cohort shares, each scalar a forward difference, cut where asked.


def test_baffle_takes_forward_differences_along_a_hundred_shared_directions():
    settings = recipe("baffle")
    engine = Apart.of(settings)
    at, (record,) = lived(settings, engine, 1)
    replies = [decode_reply(sent) for sent in engine.replies[0].values()]
    assert [reply.num_forwards for reply in replies] == [101] * 4 and record.scalars.shape == (1, 1, 100)
    np.testing.assert_allclose(record.scalars[0], np.mean([reply.scalars for reply in replies], 0), rtol=1e-6)

    fresh, mu = site(settings), settings.local.perturbation_scale
    batch = batch_of(settings, 2, noise.derive_key(settings.run.seed, "batch", round=0, client=2, step=0))
    (key,) = round_keys(at.header, 0, None, (1, 1))
    here = float(fresh.loss(batch))
    with fresh.perturber.at(Perturbation(key, mu, at.header.distribution)):
        there = float(fresh.loss(batch))
    assert replies[2].scalars[0, 0] == np.float32((there - here) / mu)


def test_baffle_may_cut_projected_gradients():
    whole, cut = (lived(recipe("baffle", local={"clip": clip}), engine, 1)[1][0].scalars
                  for clip in (0.0, 0.5) for engine in [Apart.of(recipe("baffle", local={"clip": clip}))])  # fmt: skip
    assert np.abs(whole).max() > 0.5 and np.abs(cut).max() <= 0.5


# FedZO: one-sided steps of one's own, and the mean of the weights.


def test_fedzo_averages_the_weights_that_one_sided_steps_lead_to():
    settings = recipe("fedzo", federation={"local_steps": 3})
    engine = Apart.of(settings, num_examples=lambda client: 10**client)
    at, records = lived(settings, engine, 2)
    replies = [decode_reply(sent) for sent in engine.replies[-1].values()]
    assert [reply.num_forwards for reply in replies] == [3 * (2 + 1)] * 4 and all(r.is_snapshot for r in records)
    each = [unpack_weights(reply.weights, at.perturber.space) for reply in replies]
    assert len({digest(weights) for weights in each}) == 4
    for name, tensor in at.replica.weights.items():
        assert torch.equal(tensor, torch.stack([weights[name] for weights in each]).double().mean(0).float())


# FedMeZO: local steps along directions of one's own; told in scalars, it is the averaging of weights.


@pytest.mark.parametrize("method", ["fedmezo", "fedmezo-full"])
def test_fedmezo_in_scalars_is_fedmezo_in_weights(method):
    told, sent = (recipe(method, federation={"upload": upload, "local_steps": 10}) for upload in ("scalars", "weights"))
    (by_scalars, records), (by_weights, _) = lived(told, Apart.of(told), 1), lived(sent, Apart.of(sent), 1)
    assert records[0].scalars.shape == (4, 10, 1)
    keys = [round_keys(by_scalars.header, 0, client, (10, 1)) for client in range(4)]
    assert len({key for each in keys for key in each}) == 40
    for name, tensor in by_scalars.replica.weights.items():
        torch.testing.assert_close(tensor, by_weights.replica.weights[name], rtol=0, atol=1e-6)
        assert (tensor - site(told).replica.weights[name]).abs().max() > 1e-3


def test_fedmezo_is_the_papers_and_full_differs_in_what_is_tuned_alone():
    lora, full = (presets.read("methods", name) for name in ("fedmezo", "fedmezo-full"))
    assert lora.pop("model") == {"adapter": "lora", "trainable": []}
    assert full.pop("model") == {"adapter": "none", "trainable": []}
    assert lora == full and lora["federation"]["local_steps"] == 30
    assert lora["local"] == {"order": "zeroth", "estimator": "two-point", "num_directions": 1,
                             "distribution": "gaussian", "perturbation_scale": 1e-3}  # fmt: skip


# FedAvg: the mean of weights after steps of gradient descent.


def test_fedavg_with_one_client_is_gradient_descent():
    settings = recipe("fedavg", partition={"num_clients": 1})
    at, _ = lived(settings, Apart.of(settings))
    layer = small_federation.module().requires_grad_(True)
    for round_ in range(3):
        key = noise.derive_key(settings.run.seed, "batch", round=round_, client=0, step=0)
        loss = small_federation.squared_error(layer)(batch_of(settings, 0, key))
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-settings.local.learning_rate)
    assert all(torch.equal(at.replica.weights[name], parameter) for name, parameter in layer.named_parameters())


def test_fedavg_of_several_clients_is_the_mean_by_examples():
    settings = recipe("fedavg", federation={"local_steps": 3})
    engine = Apart.of(settings, num_examples=lambda client: client + 1)
    at, _ = lived(settings, engine, 1)
    each = [unpack_weights(decode_reply(sent).weights, at.perturber.space) for sent in engine.replies[0].values()]
    for name, tensor in at.replica.weights.items():
        mean = sum((i + 1) * weights[name].double() for i, weights in enumerate(each)) / 10
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-7, atol=0)


# All of them.


RATES = {"baffle": 0.02, "decomfl": 0.02, "fedavg": 0.1, "fedkseed": 3e-3, "fedmezo": 3e-3, "fedmezo-full": 3e-3,
         "fedzo": 0.02, "feedsign": 0.1}  # fmt: skip


@pytest.mark.parametrize("method", RATES)
def test_every_method_lowers_the_loss(method):
    few = {"federation": {"num_rounds": 30, "batch_size": 12}, "local": {"learning_rate": RATES[method]}}
    steps = presets.read("methods", method)["federation"].get("local_steps", 1)
    settings = recipe(method, **merged(few, {"federation": {"local_steps": min(steps, 10)}}))
    at = site(settings)
    before = loss_of_all(at)
    for _ in run_rounds(server(at), protocol(settings), InProcess(at)):
        pass
    assert loss_of_all(at) < 0.7 * before


def loss_of_all(at):
    losses = [small_federation.squared_error(at.module)(small_federation.examples(client)) for client in range(4)]
    return float(torch.stack(losses).mean())


@pytest.fixture
def tiny(tiny_model, tiny_table, tmp_path):
    """The file of a recipe over the tiny model with two clients."""
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_runs.toml(tiny_runs.values(tiny_model, tiny_table, partition={"num_clients": 2})))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_a_model_and_is_replayed_to_the_bit(method, tiny, tmp_path):
    settings = presets.composed(str(tiny), method, {"federation": {"num_rounds": 1}})
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    trajectory = run_store.trajectory_of(tmp_path / "run")
    assert summary["method"] == method and summary["rounds"] == 1 and np.isfinite(summary["loss"])
    assert summary["state_digest"] != trajectory.header.base_digest
    assert summary["skipped_steps"] == summary["failed_replies"] == 0
    assert is_as_sent(summary["bytes_up"] / 2, settings, summary["tuned_parameters"])

    snapshot = lambda round_: run_store.snapshot_of(tmp_path / "run", round_)  # noqa: E731
    model, space = load_replayed(trajectory, settings.model.name, None, snapshot)
    assert digest(bound_weights(model.module, space)).hex() == summary["state_digest"]


def is_as_sent(num_bytes, settings, num_parameters):
    """A reply's bytes: the weights', or 4 or an eighth a scalar and some 45 that say whose it is and what it cost.

    Where the learning rate is measured, as of a method that tunes other tensors than its recipe, also three slopes.
    """
    if settings.federation.upload == "weights":
        return num_bytes > 4 * num_parameters
    bits = 1 if settings.federation.aggregation == "sign-vote" else 32
    slopes = 1 + 3 * 9 if settings.local.learning_rate == "auto" else 0
    return num_bytes <= 50 + slopes + settings.federation.local_steps * settings.num_scalars * bits / 8


def test_a_run_is_not_continued_with_another_pool(tiny, tmp_path):
    settings = presets.composed(str(tiny), "fedkseed", {"federation": {"local_steps": 2}})
    with pytest.raises(KeyboardInterrupt):
        run(settings, MACHINE, tmp_path / "run", StopAfter(1))
    path = tmp_path / "run" / "recipe.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(merged(values, {"federation": {"key_pool": 5}})))
    with pytest.raises(TrajectoryError, match="recorded with key_pool = 4096, the recipe now says 5: put it back"):
        resume(tmp_path / "run", MACHINE, NOTHING)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"fedspzo"}))  # which has a page of its own
def test_the_page_shows_the_settings_of_every_method(method):
    section = re.search(rf"\n## {method}\n(.*?)(?=\n## |\Z)", PAGE.read_text(), re.DOTALL)
    (block,) = re.findall(r"```toml\n(.*?)```", section.group(1), re.DOTALL)
    assert tomllib.loads(block) == presets.read("methods", method)
