import json
import math
from dataclasses import replace

import pytest
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import inspection
from seedtune.errors import ConfigError, RunStoreError, TrajectoryError
from seedtune.experiment import run
from seedtune.inspection import COMPARED, compared, compared_at, described, exported, health, to_target
from seedtune.run_store import summary_of
from seedtune.zo.expansion import Split
from seedtune.zo.noise import Distribution
from seedtune.zo.trajectory import Header
from seedtune.zo.trajectory_file import header_frame


def test_a_run_and_its_trajectory_are_described_alike(ended):
    run_, file = described(ended), described(ended / "trajectory.seedtune")
    ahead = {name: run_.pop(name) for name in list(run_) if name.startswith(("replay_", "weight"))}
    assert run_ == file | {"finished": True} | {name: summary_of(ended)[name] for name in COMPARED}
    assert file["rounds"] == 3 and file["scalars"] == 12 and file["snapshots"] == file["skipped_scalars"] == 0
    assert ahead["replay_directions"] == 12 and ahead["replay_values"] % 12 == 0 and ahead["replay_seconds_here"] > 0
    assert ahead["weight_bytes"] == ahead["replay_values"] // 12 * 4 > file["bytes"]
    assert ahead["weights_sooner_above_bytes_per_second"] > 0
    assert file["bytes"] == (ended / "trajectory.seedtune").stat().st_size and file["base"] == "llama"


def test_a_run_of_an_earlier_seedtune_is_described_without_what_its_replay_takes(ended):
    summary = {name: value for name, value in summary_of(ended).items() if name != "replay"}
    (ended / "summary.json").write_text(json.dumps(summary))
    assert not any(name.startswith("replay") for name in described(ended))


def test_what_a_replay_will_take_is_said_where_it_is_worth_waiting_for(ended, tmp_path, monkeypatch):
    said = []
    exported(ended, tmp_path / "quick", None, None, False, said.append)
    assert not said
    monkeypatch.setattr(inspection, "SECONDS_WORTH_SAYING", 0.0)
    exported(ended, tmp_path / "tuned", None, None, False, said.append)
    (line,) = said
    assert line.startswith("replaying 12 directions, ") and line.endswith(" here")


def test_a_trajectory_says_how_its_steps_are_split(tmp_path):
    header = Header(
        "base", "00" * 16, "space", 0, "own", Distribution.GAUSSIAN, {}, key_pool=64,
        split=Split("nested", 2, 4, "leave-one-out", 0.5, "1d"),
    )  # fmt: skip
    (tmp_path / "split").write_bytes(header_frame(header))
    (tmp_path / "whole").write_bytes(header_frame(replace(header, split=None, key_pool=0)))
    split, whole = described(tmp_path / "split"), described(tmp_path / "whole")
    told = {
        "split": "nested", "num_prefix": 2, "num_suffix": 4, "baseline": "leave-one-out", "rate_ratio": 0.5,
        "block1_tensors": 4, "key_pool": 64,
    }  # fmt: skip
    assert split.items() >= told.items() and (whole["split"], whole["key_pool"]) == (None, 0)
    assert split.keys() - whole.keys() == told.keys() - {"split", "key_pool"}


def test_a_run_that_goes_on_is_described_but_not_compared(tiny_recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(federation={"upload": "weights"}), MACHINE, tmp_path / "run", StopAfter(2))
    found = described(tmp_path / "run")
    assert found["rounds"] == found["snapshots"] == 2 and found["finished"] is False
    with pytest.raises(RunStoreError) as error:
        compared([tmp_path / "run"])
    folder = tmp_path / "run"
    assert str(error.value) == f"run {folder}: has not ended; continue it with 'seedtune resume {folder}'"


def test_runs_are_compared_by_their_summaries(ended):
    (row,) = compared([ended])
    assert row == {"run": str(ended)} | {name: summary_of(ended)[name] for name in COMPARED} and row["flops"] > 0


def test_a_run_of_which_no_operations_were_counted_is_compared_all_the_same(ended):
    summary = {name: value for name, value in summary_of(ended).items() if name != "flops"}
    (ended / "summary.json").write_text(json.dumps(summary))
    assert compared([ended])[0]["flops"] is None and described(ended)["flops"] is None


COST = {"flops": 10**15, "forwards": 8, "bytes_up": 30, "bytes_down": 20}
SCORES = {0: (2.0, 0.3), 2: (1.5, 0.5), 4: (None, 0.4), 6: (1.0, 0.8), 8: (1.2, 0.9)}


def rows_of(scores, num_rounds=8, cost=COST):
    """Rows of metrics.jsonl: two seconds a round after one second, evaluations where `scores` has them."""
    rows = [{"rounds": n, "elapsed_seconds": 1.0 + 2 * n, **(cost if n else {})} for n in range(num_rounds + 1)]
    return [row | dict(zip(("loss", "accuracy"), scores.get(row["rounds"], ()), strict=False)) for row in rows]


@pytest.mark.parametrize("target, rounds", [
    ({"accuracy": 0.8}, 6), ({"accuracy": 0.5}, 2), ({"accuracy": 0.3}, 0), ({"accuracy": 0.85}, 8),
    ({"loss": 1.5}, 2), ({"loss": 1.1}, 6), ({"loss": 2.0}, 0),
])  # fmt: skip
def test_the_first_evaluation_at_the_target_ends_the_count(target, rounds):
    (measure,) = target
    value = SCORES[rounds][("loss", "accuracy").index(measure)]
    costs = {name: each * rounds for name, each in COST.items()}
    expected = {measure: value, "rounds": rounds, "seconds": 1.0 + 2 * rounds, **costs}
    assert to_target(rows_of(SCORES), **target) == expected


@pytest.mark.parametrize("target", [{"accuracy": 0.91}, {"loss": 0.99}])
def test_a_target_that_was_never_reached_is_none(target):
    assert to_target(rows_of(SCORES), **target) is None and to_target([], **target) is None


def test_rounds_that_were_not_metered_have_no_flops():
    cost = {name: value for name, value in COST.items() if name != "flops"}
    found = to_target(rows_of(SCORES, cost=cost), accuracy=0.8)
    assert found["flops"] is None and found["forwards"] == 48


ONE = "a target is one of --to-accuracy and --to-loss, and "
TARGETS = [
    ({}, ONE + "neither was given: give one"),
    ({"accuracy": 0.8, "loss": 0.5}, ONE + "both were given: give one"),
    ({"accuracy": 80.0}, "--to-accuracy 80: must be more than 0 and at most 1, such as 0.8"),
    ({"accuracy": 0.0}, "--to-accuracy 0: must be more than 0 and at most 1, such as 0.8"),
    ({"accuracy": math.nan}, "--to-accuracy nan: must be more than 0 and at most 1, such as 0.8"),
    ({"loss": 0.0}, "--to-loss 0: must be a finite number above 0, such as 0.5"),
    ({"loss": math.inf}, "--to-loss inf: must be a finite number above 0, such as 0.5"),
    ({"loss": math.nan}, "--to-loss nan: must be a finite number above 0, such as 0.5"),
]


@pytest.mark.parametrize("target, message", TARGETS)
def test_what_is_no_target_is_refused(target, message):
    with pytest.raises(ConfigError) as error:
        to_target(rows_of(SCORES), **target)
    assert str(error.value) == message


def test_runs_are_compared_at_a_target(ended, monkeypatch):
    monkeypatch.setattr(inspection.run_store, "metrics_of", lambda folder: rows_of(SCORES))
    row = {"run": str(ended), "method": "custom", "measure": "accuracy", "target": 0.95, "best": 0.9, "reached": None}
    assert compared_at([ended, ended], accuracy=0.95) == [row, row]
    (found,) = compared_at([ended], loss=1.3)
    assert found["best"] == 1.0 and found["reached"] == to_target(rows_of(SCORES), loss=1.3)


def test_texts_have_no_accuracy_to_reach(ended, monkeypatch):
    rows = rows_of({n: (loss, None) for n, (loss, _) in SCORES.items()})
    monkeypatch.setattr(inspection.run_store, "metrics_of", lambda folder: rows)
    with pytest.raises(ConfigError) as error:
        compared_at([ended], accuracy=0.5)
    assert str(error.value) == f"run {ended}: has no accuracy, its task is of texts: compare it with --to-loss"
    assert compared_at([ended], loss=0.1)[0]["best"] == 1.0


def test_what_is_no_run_is_said(tmp_path):
    for look in (described, lambda folder: exported(folder, tmp_path / "out", None, None, False)):
        with pytest.raises(RunStoreError, match="holds no run"):
            look(tmp_path)
    with pytest.raises(TrajectoryError, match=r"gone: cannot be read: No such file or directory"):
        described(tmp_path / "gone")


def test_a_round_of_weights_needs_its_run_folder(tiny_recipe, tiny_model, tmp_path):
    live = run(tiny_recipe(federation={"upload": "weights"}), MACHINE, tmp_path / "run", NOTHING)
    assert exported(tmp_path / "run", tmp_path / "out", None, None, False)["state_digest"] == live["state_digest"]
    with pytest.raises(RunStoreError, match="the weights after round 0 were not kept; set "):
        exported(tmp_path / "run", tmp_path / "first", None, 1, False)
    with pytest.raises(TrajectoryError, match="round 2 is a snapshot, kept in its run folder: replay the folder"):
        exported(tmp_path / "run/trajectory.seedtune", tmp_path / "alone", str(tiny_model), None, False)


def test_kept_snapshots_replay_to_any_round(tiny_recipe, tmp_path):
    recipe = tiny_recipe(federation={"upload": "weights"}, run={"keep_snapshots": "all"})
    run(recipe, MACHINE, tmp_path / "run", NOTHING)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for rounds in (1, 2):
        stands = exported(tmp_path / "run", tmp_path / f"out-{rounds}", None, rounds, False)
        assert stands["state_digest"] == rows[rounds]["state_digest"]


def test_health_knows_its_noise():
    found = health()
    assert found["noise"] == "as known" and found["noise_version"] == 1 and found["versions"]["torch"]


def test_health_names_a_kernel_whose_noise_differs(monkeypatch):
    monkeypatch.setattr(inspection, "KNOWN_NOISE", {name: "0" * 32 for name in inspection.KNOWN_NOISE})
    monkeypatch.setattr(inspection, "_starter", lambda: "loads")
    assert health()["noise"] == "differs: compiled rademacher, compiled gaussian, torch rademacher, torch gaussian"
