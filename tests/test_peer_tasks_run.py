"""Runs on tasks of the peers' kinds: answers that are generated, and choices of each row's own."""

import json

import pytest
import tiny_runs

from seedtune.experiment import run
from seedtune.predicting import predict
from seedtune.trying import evaluated

SQUAD = [
    {"title": "T", "context": f"the {thing} is red", "question": "?", "answers": {"text": ["red"]}}
    for thing in tiny_runs.THINGS
]
COPA = [
    {
        "premise": f"the {thing} is.",
        "choice1": "Red.",
        "choice2": "Green and blue.",
        "question": "effect",
        "label": i % 2,
    }
    for i, thing in enumerate(tiny_runs.THINGS)
]


@pytest.fixture
def run_on(tiny_recipe, tmp_path):
    """Ends a run of one round on a task's rows, which train and test; gives its folder and summary."""

    def make(name, rows, **task):
        for split in ("train", "validation"):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = tiny_recipe(
            task={"name": name, "path": str(tmp_path), "template": None, "label_column": None, "answers": {}, **task},
            partition={"kind": "iid", "num_clients": 2},
            federation={"num_rounds": 1},
        )
        return tmp_path / "run", run(settings, tiny_runs.MACHINE, tmp_path / "run", tiny_runs.NOTHING)

    return make


def test_a_run_that_generates_says_f1_and_exact_match(run_on):
    folder, summary = run_on("squad", SQUAD, max_tokens=60)
    found = evaluated(str(folder))
    for name in ("token_f1", "exact_match"):
        assert 0 <= summary[name] <= 1 and summary[name] == found[name]
    assert json.loads((folder / "summary.json").read_text())["token_f1"] == summary["token_f1"]


def test_a_run_without_reference_answers_says_neither(ended):
    assert "token_f1" not in json.loads((ended / "summary.json").read_text())


def test_a_run_on_choices_of_each_rows_own(run_on, tmp_path):
    folder, summary = run_on("copa", COPA)
    assert 0 <= summary["accuracy"] <= 1 and summary["loss"] > 0
    assert evaluated(str(folder))["accuracy"] == summary["accuracy"]
    (tmp_path / "new.jsonl").write_text(json.dumps({k: v for k, v in COPA[0].items() if k != "label"}) + "\n")
    (row,) = predict(str(folder), tmp_path / "new.jsonl").as_rows()
    assert row["prediction"] in ("red.", "green and blue.") and 0.5 <= row["confidence"] <= 1
