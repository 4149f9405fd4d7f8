"""One suite for every protocol: whoever holds the records holds the weights, however it came to them."""

import dataclasses

import pytest
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import presets, run_store
from seedtune.assembly import assemble, load_replayed, restore
from seedtune.experiment import PROTOCOLS, resume, run
from seedtune.fed.client import catch_up
from seedtune.fed.messages import decode_order, encode_order
from seedtune.fed.rounds import Server, after
from seedtune.metrics import result_of
from seedtune.recipe_text import merged
from seedtune.space import bound_weights, digest

EXCHANGES = {
    "scalars-own": {"federation": {"upload": "scalars", "keys": "own"}},
    "scalars-shared": {"federation": {"upload": "scalars", "keys": "shared"}},
    "scalars-pool": {"federation": {"upload": "scalars", "keys": "own", "key_pool": 3}},
    "scalars-votes": {
        "federation": {"upload": "scalars", "keys": "shared", "aggregation": "sign-vote", "weighting": "equal"}
    },
    "weights": {"federation": {"upload": "weights", "keys": "own"}},
    "split-own": {
        "federation": {"upload": "scalars", "keys": "own"},
        "local": {"estimator": "split", "num_directions": 1, "evaluations": "batched"},
        "split": {"num_prefix_directions": 2, "num_suffix_directions": 2, "baseline": "leave-one-out"},
        "personalise": {"policy": "model-diff"},
    },
    "split-shared": {
        "federation": {"upload": "scalars", "keys": "shared"},
        "local": {"estimator": "split", "num_directions": 1},
        "split": {"reading": "clean-prefix", "difference": "one-sided", "num_suffix_directions": 2, "rate_ratio": 0.5},
        "personalise": {"policy": "round-wise"},
    },
}
PARTICIPATION = {"all": {}, "some": {"cohort_size": 3, "dropout_rate": 0.3}}
PAIRS = [(1, "all", "float32"), (1, "some", "bfloat16"), (3, "all", "bfloat16"), (3, "some", "float32")]
"""Local steps, who takes part and the weights' type: any two of their values meet once."""
CASES = [(exchange, *pair) for exchange in EXCHANGES for pair in PAIRS]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def recipe(request, tiny_recipe):
    exchange, steps, participation, dtype = request.param
    federation = {**PARTICIPATION[participation], "local_steps": steps}
    settings = {"federation": federation, "model": {"dtype": dtype}, "local": {"num_directions": 2}}
    return tiny_recipe(**merged(settings, EXCHANGES[exchange]))


def test_live_replayed_resumed_and_late_weights_are_the_same(recipe, tmp_path):
    check(recipe, tmp_path)


@pytest.mark.parametrize("method", presets.names("methods"))
def test_every_preset_conforms(method, tiny_recipe, tmp_path):
    """With fewer steps and directions than its own, and clients that come and go."""
    values = presets.read("methods", method)
    few = {"federation": {**PARTICIPATION["some"], "local_steps": 2}}
    if "num_directions" in values["local"]:
        few["local"] = {"num_directions": min(values["local"]["num_directions"], 3)}
    check(tiny_recipe(**merged(values, few)), tmp_path)


def check(recipe, tmp_path):
    live = run(recipe, MACHINE, tmp_path / "live", NOTHING)

    assert live["state_digest"] != run_store.trajectory_of(tmp_path / "live").header.base_digest
    assert replayed(tmp_path / "live") == live["state_digest"]
    assert resumed(recipe, tmp_path / "stopped") == counts(live)
    assert late_client(recipe, tmp_path / "live") == live["state_digest"]


def counts(summary):
    """What does not depend on the clock, nor on the process."""
    names = ("seconds", "round_seconds", "peak_memory_bytes")
    return {name: value for name, value in summary.items() if name not in names}


def replayed(folder, num_rounds=None):
    trajectory, recipe = run_store.trajectory_of(folder), run_store.recipe_of(folder)
    snapshot = lambda round_: run_store.snapshot_of(folder, round_)  # noqa: E731
    model, space = load_replayed(trajectory, recipe.model.name, num_rounds, snapshot)
    return digest(bound_weights(model.module, space)).hex()


def resumed(recipe, folder):
    with pytest.raises(KeyboardInterrupt):
        run(recipe, MACHINE, folder, StopAfter(1))
    return counts(resume(folder, MACHINE, NOTHING))


def late_client(recipe, folder):
    """A client with a model of its own that takes part for the first time after the last round."""
    experiment = assemble(run_store.recipe_of(folder), MACHINE)
    order = PROTOCOLS[recipe.federation.upload]().order(server_after(experiment, folder), 3)
    late = assemble(recipe, MACHINE).site
    catch_up(late, decode_order(encode_order(order)))
    assert digest(late.replica.weights) == late.replica.digest
    return late.replica.digest.hex()


def server_after(experiment, folder):
    trajectory = run_store.trajectory_of(folder)
    restore(experiment, trajectory, lambda round_: run_store.snapshot_of(folder, round_))
    site = experiment.site
    server = Server.at_start(experiment.recipe, experiment.header, experiment.space, site.replica)
    for record, row in zip(trajectory.records, run_store.metrics_of(folder)[1:], strict=True):
        server = after(server, result_of(record, row))
    return dataclasses.replace(server, up_to_date={})
