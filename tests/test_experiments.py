"""The study of methods runs on a tiny model, is continued where it stopped, and its page holds what its files say."""

import json
from pathlib import Path

import pytest
import tiny_runs

from experiments import jobs, real_model, tables
from seedtune import presets

ROOT = Path(__file__).parent.parent
BUDGET = 48
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def study(tiny_model, tiny_table):
    """The committed methods, with grids of one rate, on a tiny model and table."""
    values = tiny_runs.values(tiny_model, tiny_table, model={"trainable": ["model.norm.weight"]})
    committed = real_model.read_study()
    base = committed.base | {name: values[name] for name in ("model", "partition")}
    methods = {name: method | {"rates": [method["rates"][2]]} for name, method in committed.methods.items()}
    blocks = {"model": {"trainable": ["model.layers.1.*norm.weight", "model.norm.weight"]}, "split": {"cut": 2}}
    methods["fedspzo"] = methods["fedspzo"] | {"settings": blocks}
    for name in ("fedmezo", "fedkseed", "baffle"):  # whose rounds cost more than the whole budget here
        methods[name] = methods[name] | {"settings": {"federation": {"local_steps": 1}}}
    return real_model.Study(base, {"things": {"task": values["task"] | {"max_train": 40}}}, methods)


def row(method: str, rate: float | None, seed: int, accuracy: float, loss: float | None, **more) -> dict:
    job = {"task": "t", "method": method, "rates": jobs.GRID if rate else jobs.MEASURED, "rate": rate, "seed": seed}
    return {
        "job": job | {"budget": 10}, "accuracy": accuracy, "loss": loss, "first_rate": rate or 0.5, "forwards": 10,
        "flops": 2e9, "bytes_up": 1000, "bytes_down": 2000, "round_seconds": 1.0, "zero_shot_accuracy": 0.5,
        "zero_shot_loss": 0.7, "is_forward_only": True, **more,
    }  # fmt: skip


def test_every_preset_is_compared():
    compared = {method.get("preset") for method in real_model.read_study().methods.values()}
    assert compared - {None} | {"fedmezo-full"} == set(presets.names("methods"))


def test_adapter_and_tensors_apart_fedmezo_is_fedmezo_full():
    adapted, full = (presets.read("methods", name) for name in ("fedmezo", "fedmezo-full"))
    assert adapted.pop("model") != full.pop("model") and adapted == full


def test_budgets_are_equal_in_forward_passes():
    study = real_model.read_study()
    for name in study.methods:
        recipe = study.recipe(jobs.Job("snippets", name, jobs.GRID, 1.0, 0, 12_800))
        each, rounds = real_model.forwards_per_round(recipe), recipe.federation.num_rounds
        if name == real_model.ALONE:
            assert recipe.baseline.num_steps == 12_800 // 3
        else:
            assert 12_800 - each < each * rounds <= 12_800 and recipe.run.eval_every == rounds


@pytest.mark.long
def test_a_study_runs_and_is_continued(study, tmp_path, capsys, monkeypatch):
    out = tmp_path / "things.jsonl"
    asked = ["--task", "things", "--budget", str(BUDGET), "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr(jobs, "MOST_RATES", 1)
    real_model.main(asked, study)
    rows = jobs.read_rows(out)
    found = {(each["job"]["method"], each["job"]["rates"]) for each in rows}
    assert {method for method, rates in found if rates == jobs.GRID} == set(study.methods)
    assert {method for method, rates in found if rates == jobs.MEASURED} == study.measurable
    filled = [each for each in rows if each["job"]["method"] == real_model.FROZEN]
    assert len(filled) == 2 and all(each["sequences"] > 0 for each in filled)
    others = [each for each in rows if each not in filled]
    assert {each["sequences"] for each in others} == {0} and all(each["forwards"] > 0 for each in others)

    written = out.read_text()
    out.write_text("".join(written.splitlines(keepends=True)[:-1]))
    real_model.main(asked, study)
    again = jobs.read_rows(out)
    assert [each["state_digest"] for each in again] == [each["state_digest"] for each in rows]

    monkeypatch.setattr(real_model, "run_recipe", lambda recipe: pytest.fail("ran what is known"))
    real_model.main(asked, study)
    assert out.read_text().splitlines()[:-1] == written.splitlines()[:-1]
    capsys.readouterr()
    real_model.main([*asked, "--table"], study)
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(found) - 2


def test_a_grid_grows_until_its_best_rate_lies_inside():
    tried = []

    def do(job: jobs.Job) -> dict:
        tried.append(job)
        return {"loss": abs(job.rate - 10.0) if job.rate and job.rate < 100 else None}

    jobs.Plan("t", 10, 2, {"m": [0.1, 0.3, 1.0]}, frozenset({"m"}), do).run()
    assert [job.rate for job in tried[:6]] == [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    assert [(job.rates, job.rate, job.seed) for job in tried[6:]] == [
        (jobs.MEASURED, None, 0), (jobs.GRID, 10.0, 0), (jobs.MEASURED, None, 1), (jobs.GRID, 10.0, 1),
    ]  # fmt: skip


def test_a_table_pairs_seeds_and_names_the_best():
    rows = [
        row("a", 1.0, 0, 0.70, 0.5), row("a", 3.0, 0, 0.80, 0.4), row("a", 3.0, 1, 0.82, 0.4),
        row("b", None, 0, 0.60, 0.6), row("b", None, 1, 0.64, 0.6), row("b", None, 2, 0.10, 0.6),
        row("c", 1.0, 0, 0.90, None, is_forward_only=False),
    ]  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.markdown(rows, "t", 10).splitlines()]
    assert lines[2][:6] == ["zero-shot", "", "", "50.0", "", "0.700"]
    assert lines[3][:6] == ["c", "1 (of 1 to 1)", "1", "90.0", "10.0", "not finite"]
    assert lines[4][:6] == ["a", "3 (of 1 to 3)", "2", "81.0 ± 12.7", "best", "0.400"]
    assert lines[5][:5] == ["b", "measured (0.5 to 0.5 at first)", "3", "44.7 ± 74.7", "-19.0 ± 12.7"]
    assert tables.markdown(rows, "t", 11) == "Nothing is known of t at 11 forward passes."


def test_the_page_holds_what_the_files_say():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "docs" / "results").glob("*.jsonl"))
    assert files
    for file in files:
        rows = jobs.read_rows(file)
        budgets = {(r["job"]["task"], r["job"]["budget"]) for r in rows if r["job"]["budget"]}
        for task, budget in budgets:
            assert tables.markdown(rows, task, budget) in page, f"{file.name}: run --table and put it into the page"
        assert json.loads(json.dumps(rows)) == rows
