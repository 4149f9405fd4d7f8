"""Private runs: what is published, what is spent, and that a resumed one draws what the uninterrupted one drew."""

import json
from contextlib import suppress

import pytest
from private_recipes import private, sampling_clients, sampling_examples
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import presets, run_store
from seedtune.assembly import load_replayed
from seedtune.errors import ConfigError, RunStoreError
from seedtune.experiment import resume, run
from seedtune.inspection import described
from seedtune.privacy.accounting import epsilon
from seedtune.privacy.plan import Plan
from seedtune.recipe_text import merged
from seedtune.space import bound_weights, digest

MODES = {
    "client": private(),
    "client-steps-local": private(federation={"local_steps": 2}, privacy={"noise": "local"}),
    "client-shares": private(privacy={"noise": "shares"}, secure_sum={"enabled": True}),
    "clients-poisson": sampling_clients("poisson", federation={"dropout_rate": 0.3}),
    "clients-fixed-size": sampling_clients("fixed-size"),
    "examples": private(privacy={"unit": "example"}),
    "examples-poisson": sampling_examples("poisson"),
    "examples-fixed-size-local": sampling_examples("fixed-size", privacy={"noise": "local"}),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_ends_at_the_same_digest_and_ledger(mode, small_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    recipe = MODES[mode]
    whole = run(recipe, MACHINE, tmp_path / "whole", NOTHING)
    with suppress(KeyboardInterrupt):
        run(recipe, MACHINE, tmp_path / "stopped", StopAfter(4))
    monkeypatch.setattr("os.urandom", lambda count: bytes(count))
    resumed = resume(tmp_path / "stopped", MACHINE, NOTHING)
    assert resumed["state_digest"] == whole["state_digest"]
    assert resumed["privacy"] == whole["privacy"]
    spent = [row.get("epsilon") for row in run_store.metrics_of(tmp_path / "stopped")]
    assert spent == [None, *(epsilon(Plan.of(recipe), n) for n in range(1, 11))]
    assert whole["privacy"]["epsilon"] == spent[-1] and whole["privacy"]["events"] == 10


def test_two_runs_of_one_seed_have_noise_of_their_own(small_runs, tmp_path):
    digests = {run(private(), MACHINE, tmp_path / name, NOTHING)["state_digest"] for name in ("one", "two")}
    assert len(digests) == 2


@pytest.mark.parametrize("kind", ["poisson", "fixed-size"])
def test_nothing_that_is_published_tells_who_was_drawn(kind, small_runs, tmp_path):
    summary = run(sampling_clients(kind, federation={"dropout_rate": 0.5}), MACHINE, tmp_path / "run", NOTHING)
    trajectory, rows = run_store.trajectory_of(tmp_path / "run"), run_store.metrics_of(tmp_path / "run")[1:]
    assert all(record.clients == () and record.scalars.shape == (1, 1, 2) for record in trajectory.records)
    hidden = ("replied", "cohort", "bytes_up", "bytes_down", "forwards", "train_loss", "flops", "skipped_steps")
    assert all(row[name] is None for row in rows for name in hidden)
    assert all(not row[name] for row in rows for name in ("losses", "signals", "failed", "dropped"))
    assert {summary[name] for name in ("bytes_up", "bytes_down", "forwards", "flops", "failed_replies")} == {None}


def test_costs_of_a_public_cohort_are_told_and_losses_are_not(small_runs, tmp_path):
    summary = run(private(), MACHINE, tmp_path / "run", NOTHING)
    row = run_store.metrics_of(tmp_path / "run")[-1]
    assert row["replied"] == 4 and row["bytes_up"] > 0 and row["forwards"] == 16
    assert row["train_loss"] is None and row["flops"] is None and row["losses"] == {}
    assert summary["truncated_examples"] == 2  # those of the test set: how many of the clients' were cut is their data


def test_a_run_ends_before_its_budget_is_exceeded(small_runs, tmp_path):
    recipe = private(privacy={"noise_multiplier": 2.0, "target_epsilon": 4.0})
    summary = run(recipe, MACHINE, tmp_path / "run", NOTHING)
    assert summary["stopped_by"] == "privacy"
    assert summary["privacy"]["epsilon"] <= 4.0 < epsilon(Plan.of(recipe), summary["rounds"] + 1)
    assert run_store.metrics_of(tmp_path / "run")[-1]["loss"] is not None  # the last round is evaluated


def test_a_target_is_written_out_as_noise(small_runs, tmp_path):
    run(private(privacy={"noise_multiplier": 0.0, "target_epsilon": 3.0}), MACHINE, tmp_path / "run", NOTHING)
    found = described(tmp_path / "run")
    assert run_store.recipe_of(tmp_path / "run").privacy.noise_multiplier == found["privacy_noise_multiplier"] > 0
    assert 2.9 < found["privacy_epsilon"] <= 3.0


def test_a_run_whose_secret_is_lost_is_not_resumed(small_runs, tmp_path):
    with suppress(KeyboardInterrupt):
        run(private(), MACHINE, tmp_path / "run", StopAfter(2))
    assert (tmp_path / "run" / "secret").stat().st_mode & 0o777 == 0o600
    (tmp_path / "run" / "secret").unlink()
    with pytest.raises(RunStoreError, match="the secret of a private run cannot be read"):
        resume(tmp_path / "run", MACHINE, NOTHING)


def test_a_new_run_has_a_new_secret_and_a_public_one_has_none(small_runs, tmp_path):
    run(private(), MACHINE, tmp_path / "run", NOTHING)
    first = (tmp_path / "run" / "secret").read_bytes()
    run(private(), MACHINE, tmp_path / "run", NOTHING, replace_run=True)
    assert (tmp_path / "run" / "secret").read_bytes() != first
    run(private(privacy={"unit": "none"}), MACHINE, tmp_path / "run", NOTHING, replace_run=True)
    assert not (tmp_path / "run" / "secret").exists()


def test_what_cannot_be_accounted_for_is_refused_before_anything_is_loaded(tmp_path):
    for method in ("fedavg", "fedzo", "feedsign", "fedkseed", "fedmezo"):
        recipe = presets.composed("quickstart", method, {"privacy": {"unit": "client", "noise_multiplier": 1.0}})
        with pytest.raises(ConfigError, match="cannot be combined with"):
            run(recipe, MACHINE, tmp_path / method, NOTHING)
        assert not (tmp_path / method).exists()


CENTRAL = {
    "federation": {"keys": "shared", "weighting": "equal", "cohort_size": 2},
    "privacy": {"unit": "client", "sampling": "poisson", "noise_multiplier": 1.0},
}
EXAMPLES = {
    "federation": {"keys": "shared", "weighting": "equal"},
    "partition": {"min_examples": 8},
    "privacy": {"unit": "example", "sampling": "poisson", "noise_multiplier": 1.0},
}


@pytest.mark.parametrize("over", [CENTRAL, EXAMPLES], ids=["clients", "examples"])
@pytest.mark.parametrize("evaluations", ["one-by-one", "batched"])
def test_a_model_is_tuned_and_replayed_from_what_is_published(over, evaluations, tiny_recipe, tmp_path):
    recipe = tiny_recipe(**merged(over, {"local": {"evaluations": evaluations, "num_directions": 2}}))
    summary = run(recipe, MACHINE, tmp_path / "run", NOTHING)
    (tmp_path / "run" / "secret").unlink()
    model, space = load_replayed(run_store.trajectory_of(tmp_path / "run"), recipe.model.name, None, None)
    assert digest(bound_weights(model.module, space)).hex() == summary["state_digest"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]["epsilon"] > 0


def test_the_command_line_tells_what_was_spent(seedtune, small_runs, tmp_path):
    toml = "\n".join((
        "[partition]", "num_clients = 20", "[federation]", "keys = 'shared'", "weighting = 'equal'", "cohort_size = 4",
        "num_rounds = 2", "[local]", "num_directions = 2", "[privacy]", "unit = 'client'", "sampling = 'poisson'",
        "noise_multiplier = 2.0",
    ))  # fmt: skip
    (tmp_path / "mine.toml").write_text(toml)
    told = seedtune("run", "mine.toml", "--out", "run")
    assert told.code == 0, told.err
    assert "privacy: epsilon 1.037" in told.out and "sent in all: withheld up, withheld down" in told.out
    assert "round 2/2  epsilon" in told.out and "train loss" not in told.out
    assert "privacy event" in seedtune("inspect", "run").out
    assert seedtune("compare", "run").code == 0
    assert "error: federation.weighting = 'examples' cannot be combined" in seedtune(
        "run", "mine.toml", "--out", "other", "--set", "federation.weighting=examples"
    ).err  # fmt: skip
