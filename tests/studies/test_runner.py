"""Studies carried out on the tiny model: run, gone on with, not run again, refused, failed."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import STUDY

from seedtune import experiment, run_store
from seedtune.errors import RunStoreError, SeedtuneError
from seedtune.studies import folders, runner
from seedtune.studies.plan import planned
from seedtune.studies.runner import carry_out, prepared
from seedtune.studies.study import Case


def quiet(news) -> None: ...


def state_of(folder: Path) -> dict[str, tuple[int, str]]:
    """When each run was written last, and what it ended at."""
    return {
        str(path.parent.relative_to(folder)): (path.stat().st_mtime_ns, json.loads(path.read_text())["state_digest"])
        for path in sorted(folder.rglob("summary.json"))
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class StopIn:
    """A listener that interrupts in the given round of a run."""

    def __init__(self, name: str, rounds: int):
        self.name, self.rounds = name, rounds

    def __call__(self, news) -> None:
        if news.job and (news.job.name, news.rounds) == (self.name, self.rounds):
            raise KeyboardInterrupt


def test_a_study_leaves_runs_tables_a_figure_and_a_sentence(request_of, tmp_path):
    plan, news = prepared(request_of(num_seeds=2)), []
    outcome = carry_out(plan, tmp_path / "out", 1, news.append)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "study.json", "runs", "lock", "results.csv", "curves.csv", "figure.svg", "finding.txt",
    }  # fmt: skip
    assert list(state_of(tmp_path / "out")) == [
        "runs/h-1/seed-7", "runs/h-1/seed-8", "runs/h-2/seed-7", "runs/h-2/seed-8",
    ]  # fmt: skip
    assert (tmp_path / "out/finding.txt").read_text() == outcome.finding + "\n"
    assert outcome.finding.startswith("Over 2 seeds, ") and "H = 2" in outcome.finding
    assert json.loads((tmp_path / "out/study.json").read_text())["cases"][1] == {
        "label": "H = 2",
        "x": 2.0,
        "rates": [],
    }
    ends = [(one.num_done, one.job.name, one.error) for one in news if one.has_ended]
    assert ends[0] == (1, "H = 1, seed 7", None) and ends[-1][0] == 4 and news[0].num_runs == 4
    assert [one.rounds for one in news if one.job and one.job.name == "H = 1, seed 7"] == [0, 1, 2, 3, 3]


def test_tables_say_what_each_run_was_came_to_and_cost(request_of, tmp_path):
    carry_out(prepared(request_of(num_seeds=2)), tmp_path / "out", 1, quiet)
    results, curves = rows_of(tmp_path / "out/results.csv"), rows_of(tmp_path / "out/curves.csv")
    assert list(results[0]) == [
        "study", "case", "seed", "role", "federation.local_steps", "learning_rate", "rates_tried", "loss", "best_loss",
        "best_round", "accuracy", "perplexity", "zero_shot_loss", "rounds", "forwards", "flops", "bytes_up",
        "bytes_down", "seconds", "common_loss", "rounds_to_common_loss", "forwards_to_common_loss",
        "flops_to_common_loss", "bytes_up_to_common_loss", "bytes_down_to_common_loss", "seconds_to_common_loss",
        "stopped_by", "state_digest", "recipe",
    ]  # fmt: skip
    assert [(row["case"], row["seed"], row["role"]) for row in results] == [
        ("H = 1", "7", "result"), ("H = 1", "8", "result"), ("H = 2", "7", "result"), ("H = 2", "8", "result"),
    ]  # fmt: skip
    summary = run_store.summary_of(tmp_path / "out/runs/h-2/seed-8")
    last = results[3]
    assert float(last["loss"]) == summary["loss"] and last["state_digest"] == summary["state_digest"]
    for name in ("rounds", "forwards", "flops", "bytes_up", "bytes_down", "seconds"):
        assert float(last[name]) == summary[name]
    assert last["recipe"] == "runs/h-2/seed-8/recipe.json" and (tmp_path / "out" / last["recipe"]).exists()
    assert list(curves[0]) == [
        "study", "case", "seed", "learning_rate", "rounds", "forwards", "flops", "bytes_up", "bytes_down", "seconds",
        "train_loss", "loss", "accuracy", "perplexity",
    ]  # fmt: skip
    assert len(curves) == 4 * 4 and curves[-1]["loss"] == last["loss"] and curves[-1]["flops"] == last["flops"]


def test_what_has_ended_is_not_run_again(request_of, tmp_path, monkeypatch):
    carry_out(prepared(request_of()), tmp_path / "out", 1, quiet)
    before = state_of(tmp_path / "out")
    figure = (tmp_path / "out/figure.svg").read_bytes()
    monkeypatch.setattr(experiment, "run", lambda *_: pytest.fail("it ran again"))
    (tmp_path / "out/figure.svg").unlink()
    news = []
    carry_out(prepared(request_of()), tmp_path / "out", 1, news.append)
    assert state_of(tmp_path / "out") == before and news == [runner.News(2, 2)]
    assert (tmp_path / "out/figure.svg").read_bytes() == figure


def test_more_seeds_only_add_runs(request_of, tmp_path):
    carry_out(prepared(request_of()), tmp_path / "out", 1, quiet)
    before = state_of(tmp_path / "out")
    carry_out(prepared(request_of(num_seeds=2)), tmp_path / "out", 1, quiet)
    after = state_of(tmp_path / "out")
    assert before.items() < after.items() and len(after) == 4


def test_an_interrupted_study_goes_on_to_the_same_digests(request_of, tmp_path):
    carry_out(prepared(request_of()), tmp_path / "whole", 1, quiet)
    with pytest.raises(KeyboardInterrupt):
        carry_out(prepared(request_of()), tmp_path / "out", 1, StopIn("H = 2, seed 7", 2))
    assert list(state_of(tmp_path / "out")) == ["runs/h-1/seed-7"] and not (tmp_path / "out/figure.svg").exists()
    assert len(run_store.metrics_of(tmp_path / "out/runs/h-2/seed-7")) == 3
    before = state_of(tmp_path / "out")
    carry_out(prepared(request_of()), tmp_path / "out", 1, quiet)
    after, whole = state_of(tmp_path / "out"), state_of(tmp_path / "whole")
    assert before.items() < after.items()
    assert {name: digest for name, (_, digest) in after.items()} == {
        name: digest for name, (_, digest) in whole.items()
    }


def test_a_run_with_other_settings_is_refused_before_anything_runs(request_of, tmp_path, monkeypatch):
    carry_out(prepared(request_of()), tmp_path / "out", 1, quiet)
    before = state_of(tmp_path / "out")
    monkeypatch.setattr(experiment, "run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(RunStoreError) as error:
        carry_out(prepared(request_of(local={"learning_rate": 0.5})), tmp_path / "out", 1, quiet)
    assert str(error.value) == (
        f"run {tmp_path}/out/runs/h-1/seed-7: was made with other settings (local.learning_rate was 0.01, is now 0.5): "
        f"choose another folder with --out, put them back, or delete the run"
    )
    assert state_of(tmp_path / "out") == before and (tmp_path / "out/figure.svg").exists()


def test_a_failed_run_is_named_and_the_others_end(request_of, tmp_path, monkeypatch):
    run = experiment.run

    def failing(recipe, *rest):
        if recipe.federation.local_steps == 1:
            raise MemoryError("no room")
        return run(recipe, *rest)

    carry_out(prepared(request_of()), tmp_path / "out", 1, quiet)
    monkeypatch.setattr(experiment, "run", failing)
    news = []
    with pytest.raises(SeedtuneError) as error:
        carry_out(prepared(request_of(num_seeds=2)), tmp_path / "out", 1, news.append)
    assert str(error.value) == (
        "study steps: 1 of 4 runs failed, first H = 1, seed 8: MemoryError: no room; the others are kept, and the same "
        "command goes on with what is missing"
    )
    assert [one.error for one in news if one.has_ended] == ["MemoryError: no room", None]
    assert len(state_of(tmp_path / "out")) == 3
    assert not any((tmp_path / "out" / name).exists() for name in folders.OUTCOMES)


def test_a_rate_is_chosen_from_a_grid_and_the_table_says_which_were_tried(request_of, tmp_path):
    study = replace(STUDY, cases=(Case("H = {x}", rates=(1.0, 10.0)), STUDY.cases[1]))
    outcome = carry_out(prepared(request_of(study, num_seeds=2)), tmp_path / "out", 1, quiet)
    rows = [row for row in rows_of(tmp_path / "out/results.csv") if row["case"] == "H = 1"]
    assert [(row["seed"], row["role"]) for row in rows] == [("7", "result"), ("8", "result"), ("7", "rate tried")]
    assert {row["rates_tried"] for row in rows} == {"0.01 0.1"} and {row["learning_rate"] for row in rows} == {
        "0.01",
        "0.1",
    }
    assert float(rows[0]["loss"]) <= float(rows[2]["loss"])
    assert outcome.measured.results[0].rate == float(rows[0]["learning_rate"]) == float(rows[1]["learning_rate"])


def test_two_cases_with_one_recipe_share_a_run(request_of, tmp_path):
    study = replace(STUDY, cases=(Case("same"), Case("grid", rates=(1.0,))), axis=None)
    study = replace(study, finding=lambda measured: "None.")
    carry_out(prepared(request_of(study)), tmp_path / "out", 1, quiet)
    rows = rows_of(tmp_path / "out/results.csv")
    assert len(state_of(tmp_path / "out")) == 1 and [row["case"] for row in rows] == ["same", "grid"]
    assert {row["recipe"] for row in rows} == {"runs/same/seed-7/recipe.json"}


def test_at_equal_flops_cheap_rounds_are_more(request_of, tmp_path):
    study = replace(STUDY, budget="flops", cases=tuple(reversed(STUDY.cases)))
    carry_out(prepared(request_of(study, federation={"num_rounds": 4})), tmp_path / "out", 1, quiet)
    twice, once = rows_of(tmp_path / "out/results.csv")
    assert (twice["case"], twice["rounds"], once["case"], once["rounds"]) == ("H = 2", "4", "H = 1", "8")
    assert float(once["flops"]) == pytest.approx(float(twice["flops"]), rel=0.2)


def test_what_diverges_is_the_worst_and_no_failure(request_of, tmp_path):
    """In 16 bits, rate 1e6 leaves weights with which no loss is finite."""
    study = replace(STUDY, cases=(Case("H = {x}", rates=(1.0, 1e8)), STUDY.cases[1]))
    request = request_of(study, model={"dtype": "float16"})
    carry_out(prepared(request), tmp_path / "out", 1, quiet)
    rows = [row for row in rows_of(tmp_path / "out/results.csv") if row["case"] == "H = 1"]
    assert [(row["role"], row["learning_rate"]) for row in rows] == [("result", "0.01"), ("rate tried", "1000000.0")]
    assert rows[1]["loss"] == "" and float(rows[0]["loss"]) > 0


def test_other_files_and_other_studies_are_left_alone(request_of, tmp_path):
    plan = planned(request_of())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/study.json").write_text('{"name": "batch"}')
    for folder, message in {
        "mine": "holds other files than a study's, such as thesis.tex; choose an empty one with --out",
        "file": "is a file; choose another with --out",
        "other": "holds the study batch, not steps; choose another with --out",
    }.items():
        with pytest.raises(RunStoreError) as error:
            carry_out(plan, tmp_path / folder, 1, quiet)
        assert str(error.value) == f"study folder {tmp_path / folder}: {message}"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused(request_of, tmp_path):
    plan = planned(request_of())
    with (
        folders.claimed_for(plan, tmp_path / "out"),
        pytest.raises(RunStoreError, match="is in use by another process"),
    ):
        carry_out(plan, tmp_path / "out", 1, quiet)


def test_missing_libraries_are_named_before_any_run(request_of, monkeypatch):
    monkeypatch.setattr("seedtune.report.figure.find_spec", lambda name: None)
    with pytest.raises(SeedtuneError, match=r"pip install '\.\[report\]'$"):
        prepared(request_of())
