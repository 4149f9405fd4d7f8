"""The split estimator on a model that is cut: gradients, moved weights, counted operations, and runs of it."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from tiny_runs import MACHINE, NOTHING

from seedtune import run_store
from seedtune.assembly import assemble, restore
from seedtune.errors import ConfigError, MessageError, ModelError, NotFinite, TrajectoryError
from seedtune.experiment import run
from seedtune.fed.client import local_round
from seedtune.fed.messages import Order, encode_reply, unpack_weights
from seedtune.fed.rounds import Server
from seedtune.fed.seed_scalar import SeedScalar
from seedtune.models.blocks import cut_before
from seedtune.space import bind, copied, digest
from seedtune.zo import noise
from seedtune.zo.meter import Meter, counted_parts
from seedtune.zo.trajectory import direction_key

P1, P2 = 2, 3
COUNTS = {"num_prefix_directions": P1, "num_suffix_directions": P2}
READINGS = {
    "nested": {**COUNTS, "rate_ratio": 0.5},
    "leave-one-out": {**COUNTS, "baseline": "leave-one-out"},
    "clean-prefix": {**COUNTS, "reading": "clean-prefix", "rate_ratio": 0.5},
}
every_reading = pytest.mark.parametrize("reading", READINGS)


@pytest.fixture
def split_recipe(tiny_recipe):
    """Makes a recipe of split steps; one section more than the tiny recipe's own."""

    def made(split=None, **over):
        local = {"estimator": "split", "learning_rate": 1e-2, "perturbation_scale": 1e-3, **over.pop("local", {})}
        return tiny_recipe(split=split or {}, local=local, **over)

    return made


def order_for(site, client=1, rate=1e-2):
    return Order(0, client, site.replica.digest, rate)


def batch_at(site, client=1, step=0):
    return site.batch(client, noise.derive_key(site.header.seed, "batch", round=0, client=client, step=step))


def direction(site, p, spec, step=0, client=1):
    """The p-th direction of a step, as one tensor of it sees it, in float64."""
    key = direction_key(site.header.seed, 0, client, step, p)
    z = noise.values(key, spec.start, spec.num_elements, site.header.distribution)
    return z.double().numpy().reshape(spec.shape)


def is_first(site, spec):
    return spec.name in site.cut.block1


def gradients(site, batch):
    """By backpropagation, of every tuned tensor, in float64."""
    parameters = {name: p for name, p in site.module.named_parameters() if name in site.replica.weights}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        found = torch.autograd.grad(site.loss(batch), list(parameters.values()))
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return {name: g.double().numpy() for name, g in zip(parameters, found, strict=True)}


def slope(site, gradient, p, block):
    """<gradient, z_p> over one block."""
    specs = [spec for spec in site.perturber.space.tensors if is_first(site, spec) == (block == 1)]
    return sum(float((gradient[spec.name] * direction(site, p, spec)).sum()) for spec in specs)


def expected_scalars(site, reading):
    gradient = gradients(site, batch_at(site))
    if reading == "clean-prefix":
        return [slope(site, gradient, p, 1 if p < P1 else 2) for p in range(P1 + P2)]
    return [slope(site, gradient, p - p % P2, 1) + slope(site, gradient, p, 2) for p in range(P1 * P2)]


@every_reading
@pytest.mark.parametrize("difference", ["central", "one-sided"])
def test_scalars_are_directional_derivatives_of_the_blocks(split_recipe, reading, difference):
    """Central within 1 %; one-sided within what mu = 1e-4 leaves of the curvature."""
    mu = 1e-3 if difference == "central" else 1e-4
    settings = split_recipe({**READINGS[reading], "difference": difference}, local={"perturbation_scale": mu})
    site = assemble(settings, MACHINE).site
    expected = expected_scalars(site, reading)
    before = site.replica.digest
    reply = local_round(site, order_for(site))
    np.testing.assert_allclose(reply.scalars[0], expected, rtol=0.01, atol=0.03 * np.abs(expected).max())
    assert digest(site.replica.weights) == before and site.cut.shared == {"model.embed_tokens.weight"}


@every_reading
def test_a_step_moves_each_block_by_the_formula(split_recipe, reading):
    """theta_b - eta_b sum_p c_p z_p, in float64, from the scalars that were sent."""
    split = READINGS[reading]
    site = assemble(split_recipe(split), MACHINE).site
    scalars = local_round(site, order_for(site)).scalars[0].astype(np.float64)
    sent = assemble(split_recipe(split, federation={"upload": "weights"}), MACHINE).site
    moved = unpack_weights(local_round(sent, order_for(sent)).weights, sent.perturber.space)

    ratio = split.get("rate_ratio", 1.0)
    if reading == "clean-prefix":
        first = {p: scalars[p] / P1 for p in range(P1)}
        second = {P1 + q: ratio * scalars[P1 + q] / P2 for q in range(P2)}
    else:
        g = scalars.reshape(P1, P2)
        taken = (g.sum(1, keepdims=True) - g) / (P2 - 1) if reading == "leave-one-out" else np.zeros((P1, 1))
        first = {p * P2: g[p].mean() / P1 for p in range(P1)}
        second = dict(enumerate((ratio * (g - taken) / (P1 * P2)).ravel()))
    for spec in site.perturber.space.tensors:
        along = first if is_first(site, spec) else second
        step = sum(c * direction(site, p, spec) for p, c in along.items())
        expected = site.replica.weights[spec.name].double().numpy() - 1e-2 * step
        np.testing.assert_allclose(moved[spec.name].numpy(), expected, rtol=0, atol=2e-6)


@every_reading
def test_a_clients_round_is_repeatable_to_the_bit(split_recipe, reading):
    settings = split_recipe(READINGS[reading], federation={"local_steps": 3})
    busy, fresh = (assemble(settings, MACHINE).site for _ in range(2))
    local_round(busy, order_for(busy, client=0))
    assert encode_reply(local_round(busy, order_for(busy))) == encode_reply(local_round(fresh, order_for(fresh)))


@every_reading
def test_runs_of_it_learn(split_recipe, tmp_path, reading):
    federation = {"num_rounds": 8}
    settings = split_recipe(READINGS[reading], federation=federation, local={"learning_rate": 5e-3})
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    assert summary["loss"] < summary["zero_shot_loss"] - 0.1
    assert 0 < summary["flops_prefix"] == summary["flops"] - summary["flops_suffix"] < summary["flops"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keys, upload", [("own", "scalars"), ("own", "weights"), ("shared", "scalars")])
def test_one_direction_of_each_block_is_the_two_point_method_by_digest(tiny_recipe, tmp_path, dtype, keys, upload):
    found = []
    for estimator in ("two-point", "split"):
        federation = {"keys": keys, "upload": upload, "local_steps": 3, "cohort_size": 3}
        settings = tiny_recipe(federation=federation, model={"dtype": dtype}, local={"estimator": estimator})
        found.append(run(settings, MACHINE, tmp_path / estimator, NOTHING))
    names = ("state_digest", "loss", "forwards", "flops", "bytes_down")
    assert [found[0][name] for name in names] == [found[1][name] for name in names]
    assert 0 < found[1]["bytes_up"] - found[0]["bytes_up"] <= 9 * 10  # a reply says the operations of both blocks


def test_block_2_alone_has_another_rate(split_recipe):
    ends = []
    for ratio in (1.0, 0.25):
        site = assemble(split_recipe({**COUNTS, "rate_ratio": ratio}, federation={"upload": "weights"}), MACHINE).site
        start = copied(site.replica.weights)
        sent = unpack_weights(local_round(site, order_for(site)).weights, site.perturber.space)
        ends.append({name: sent[name] - start[name] for name in start})
    for spec in site.perturber.space.tensors:
        whole, quarter = ends[0][spec.name], ends[1][spec.name]
        if is_first(site, spec):
            assert torch.equal(whole, quarter)
        else:
            torch.testing.assert_close(quarter, 0.25 * whole, rtol=0, atol=3e-7)


# Cost


def costs(site, cut):
    """(F1, F2) of a batch."""
    batch = batch_at(site)
    bind(site.module, site.replica.weights)
    whole = partial(site.loss, batch)
    shape, suffix = site.shape(batch), partial(cut.suffix, whole)
    return counted_parts(Meter(), shape, cut.k, partial(cut.prefix, whole), suffix)[1]


@pytest.mark.parametrize("reading", ["nested", "clean-prefix"])
@pytest.mark.parametrize("difference", ["central", "one-sided"])
@pytest.mark.parametrize("cut", [1, 2])
def test_counted_operations_are_those_of_the_formula(split_recipe, reading, difference, cut):
    site = assemble(split_recipe({**READINGS[reading], "difference": difference, "cut": cut}), MACHINE).site
    f1, f2 = costs(site, site.cut)
    reply = local_round(site, order_for(site))
    expected, losses = {
        ("nested", "central"): (2 * P1 * (f1 + P2 * f2), 2 * P1 * P2),
        ("nested", "one-sided"): (f1 + f2 + P1 * (f1 + P2 * f2), P1 * P2 + 1),
        ("clean-prefix", "central"): (f1 + 2 * P2 * f2 + 2 * P1 * (f1 + f2), 2 * (P1 + P2)),
        ("clean-prefix", "one-sided"): (f1 + (1 + P2) * f2 + P1 * (f1 + f2), P1 + P2 + 1),
    }[reading, difference]
    assert (reply.num_flops, reply.num_forwards) == (expected, losses) and f1 > 0 and f2 > 0
    assert (reply.num_prefix_flops % f1, (reply.num_flops - reply.num_prefix_flops) % f2) == (0, 0)
    assert (reply.num_flops - reply.num_prefix_flops) == losses * f2


def test_frozen_layers_before_the_first_tuned_one_are_computed_once(split_recipe):
    """Layer 0 is frozen, layer 1 is the rest of block 1."""
    tuned = {"trainable": ["model.layers.1.*", "model.norm.weight"]}
    site = assemble(split_recipe({**COUNTS, "cut": 2}, model=tuned), MACHINE).site
    (frozen, _), (both, rest) = (costs(site, cut_before(site.module, k)) for k in (1, 2))
    assert local_round(site, order_for(site)).num_flops == frozen + 2 * P1 * (both - frozen + P2 * rest)


# What is skipped or cannot be


def test_a_loss_that_is_not_finite_is_recorded_and_moves_nothing(split_recipe):
    settings = split_recipe(READINGS["leave-one-out"], federation={"local_steps": 3})
    experiment = assemble(settings, MACHINE)
    bad = batch_at(experiment.site, client=1, step=1)

    def loss(batch):
        value = experiment.site.loss(batch)
        return value * float("nan") if torch.equal(batch.input_ids, bad.input_ids) else value

    site = dataclasses.replace(experiment.site, loss=loss)
    reply = local_round(site, order_for(site))
    assert np.isnan(reply.scalars).all(1).tolist() == [False, True, False] and reply.num_skipped == 1
    server = Server.at_start(settings, experiment.header, experiment.space, site.replica)
    record = SeedScalar().reduce(server, [reply])
    assert all(tensor.isfinite().all() for tensor in site.replica.weights.values())
    assert record.digest != experiment.header.base_digest


def test_scalars_of_other_counts_are_refused(split_recipe):
    settings = split_recipe(COUNTS)
    experiment = assemble(settings, MACHINE)
    server = Server.at_start(settings, experiment.header, experiment.space, experiment.site.replica)
    reply = local_round(experiment.site, order_for(experiment.site))
    SeedScalar().check(server, reply)
    with pytest.raises(MessageError, match=r"client 1 sent scalars of shape \(1, 5\), asked were \(1, 6\)"):
        SeedScalar().check(server, dataclasses.replace(reply, scalars=reply.scalars[:, :5]))


def test_a_scalar_that_block_2s_rate_takes_too_far_is_refused(split_recipe):
    for ratio, is_refused in ((1.0, False), (1e6, True)):
        settings = split_recipe({**COUNTS, "rate_ratio": ratio}, local={"learning_rate": 1.0})
        experiment = assemble(settings, MACHINE)
        server = Server.at_start(settings, experiment.header, experiment.space, experiment.site.replica)
        reply = dataclasses.replace(
            local_round(experiment.site, order_for(experiment.site)), scalars=np.full((1, 6), 1e18, np.float32)
        )
        if is_refused:
            with pytest.raises(NotFinite, match=r"^client 1 sent a scalar of .*, which at its rate could move"):
                SeedScalar().check(server, reply)
        else:
            SeedScalar().check(server, reply)
            SeedScalar().reduce(server, [reply])


@pytest.mark.parametrize("pattern, block, num", [("model.layers.0.*", 2, 9), ("model.norm.weight", 1, 1)])
def test_tensors_are_tuned_on_both_sides(split_recipe, pattern, block, num):
    with pytest.raises(ConfigError) as caught:
        assemble(split_recipe(model={"trainable": [pattern]}), MACHINE)
    name = "model.layers.0.input_layernorm.weight" if block == 2 else "model.norm.weight"
    assert str(caught.value) == (
        f"split.cut: before layer 1, block {block} has none of the {num} tuned tensors, such as {name!r}: choose "
        "another layer, tune tensors on both sides, or use an estimator without blocks"
    )


def test_a_cut_lies_within_the_model(split_recipe):
    with pytest.raises(ModelError, match=r"^cut of LlamaForCausalLM before layer 3: 'model.layers' has 2 layers"):
        assemble(split_recipe({"cut": 3}), MACHINE)


def test_a_run_goes_on_with_the_split_that_it_began_with(split_recipe, tmp_path):
    run(split_recipe(COUNTS), MACHINE, tmp_path / "run", NOTHING)
    trajectory = run_store.trajectory_of(tmp_path / "run")
    other = assemble(split_recipe({**COUNTS, "num_suffix_directions": 2}), MACHINE)
    with pytest.raises(TrajectoryError, match=r"^the trajectory was recorded with split = Split\(reading='nested'"):
        restore(other, trajectory, lambda round_: {})
    same = assemble(split_recipe(COUNTS), MACHINE)
    restore(same, trajectory, lambda round_: {})
    assert same.site.replica.digest == trajectory.records[-1].digest


def test_distances_are_those_of_the_moves_block_by_block(split_recipe):
    settings = split_recipe(
        READINGS["leave-one-out"], personalise={"policy": "model-diff"}, local={"learning_rate": 0.1}
    )
    experiment = assemble(settings, MACHINE)
    site = experiment.site
    server = Server.at_start(settings, experiment.header, experiment.space, site.replica)
    replies = [local_round(site, order_for(site, client)) for client in range(3)]
    found = SeedScalar().distances(server, replies)

    moved = []
    for reply in replies:
        alone = assemble(settings, MACHINE)
        start = copied(alone.site.replica.weights)
        one = Server.at_start(settings, alone.header, alone.space, alone.site.replica)
        SeedScalar().reduce(one, [reply])
        moved.append({name: (alone.site.replica.weights[name] - start[name]).double() for name in start})
    for client, own in enumerate(moved):
        mean = {name: sum(each[name] for each in moved) / 3 for name in own}
        assert found[client] == pytest.approx(sum(float((own[n] - mean[n]).norm()) for n in own), rel=1e-4)
