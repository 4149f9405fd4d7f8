"""Whole runs with secure sums: stopped and resumed, reported, private too, and the presets with a model."""

from contextlib import suppress

import pytest
from secure_federation import SHARED, WEIGHTS, secure
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import presets, run_store
from seedtune.errors import ConfigError
from seedtune.experiment import resume, run
from seedtune.recipe_text import merged
from seedtune.report.client_map import maps
from seedtune.report.page import html
from seedtune.report.reading import read

ON = {"secure_sum": {"enabled": True}}


@pytest.mark.parametrize("federation", [SHARED, WEIGHTS], ids=["scalars", "weights"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(federation, small_runs, tmp_path):
    settings = secure(federation | {"num_rounds": 5, "dropout_rate": 0.1})
    whole = run(settings, MACHINE, tmp_path / "whole", NOTHING)
    with suppress(KeyboardInterrupt):
        run(settings, MACHINE, tmp_path / "stopped", StopAfter(2))
    resumed = resume(tmp_path / "stopped", MACHINE, NOTHING)
    assert resumed["state_digest"] == whole["state_digest"]
    rows = [[row.get("train_loss") for row in run_store.metrics_of(tmp_path / name)] for name in ("whole", "stopped")]
    assert rows[0] == rows[1] and None not in rows[0][1:]


def test_the_report_goes_without_figures_of_single_clients(small_runs, tmp_path):
    run(secure(), MACHINE, tmp_path / "run", NOTHING)
    rows = run_store.metrics_of(tmp_path / "run")
    assert all(row["losses"] == {} and row["signals"] == {} for row in rows[1:])
    (found,) = read([tmp_path / "run"])
    assert maps(found, 1) == {} and found.column("train_loss")[1:].all()
    assert "<html" in html([found])


def test_a_run_may_be_private_too_with_noise_of_the_clients_own(small_runs, tmp_path):
    noise = {"unit": "client", "clip": 1.0, "noise": "local", "noise_multiplier": 1.0}
    equal = SHARED | {"weighting": "equal"}
    summary = run(secure(equal, privacy=noise), MACHINE, tmp_path / "local", NOTHING)
    assert summary["privacy"]["epsilon"] > 0 and summary["rounds"] == 3 and summary["failed_replies"] == 0
    with pytest.raises(ConfigError, match="'central' cannot be combined with secure_sum"):
        run(secure(equal, privacy=noise | {"noise": "central"}), MACHINE, tmp_path / "central", NOTHING)


@pytest.mark.parametrize("method", ["decomfl", "baffle", "fedavg"])
def test_presets_come_as_far_with_secure_sums_as_without(method, tiny_recipe, tmp_path):
    """Losses after three rounds, which differ by what 2^-31 in each number made of it."""
    few = {"federation": {"local_steps": 1}}
    if method == "baffle":
        few["local"] = {"num_directions": 4}
    if method == "fedavg":
        few["model"] = {"adapter": "lora", "lora_rank": 2}
    values = merged(presets.read("methods", method), few)
    plain = run(tiny_recipe(**values), MACHINE, tmp_path / "plain", NOTHING)
    found = run(tiny_recipe(**merged(values, ON)), MACHINE, tmp_path / "secure", NOTHING)
    assert found["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert (found["forwards"], found["flops"]) == (plain["forwards"], plain["flops"])


def test_votes_end_at_the_same_digest(tiny_recipe, tmp_path):
    values = presets.read("methods", "feedsign")
    plain = run(tiny_recipe(**values), MACHINE, tmp_path / "plain", NOTHING)
    found = run(tiny_recipe(**merged(values, ON)), MACHINE, tmp_path / "secure", NOTHING)
    assert found["state_digest"] == plain["state_digest"]
