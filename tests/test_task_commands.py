"""A user's own table from the first look to predictions: tasks, task, init, run, predict, evaluate."""

import csv
import io
import json

import numpy as np
import pytest
import tiny_runs

from seedtune import assembly, previews
from seedtune.config import Machine
from seedtune.data.forms import FORM_FILE
from seedtune.data.tasks import KNOWN
from seedtune.experiment import run
from seedtune.run_store import summary_of


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Tasks


def test_every_known_task_is_listed_with_its_classes(seedtune, monkeypatch, tmp_path):
    monkeypatch.setenv("SEEDTUNE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "hub" / "datasets" / "nyu-mll___glue").mkdir(parents=True)
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").touch()
    rows = {row["name"]: row for row in json.loads(seedtune("tasks", "--json").out)}
    assert set(rows) == set(KNOWN)
    assert {name for name in rows if rows[name]["here"]} == {
        "stdlib-topics", "stdlib-text", "rated-snippets", "sst2", "rte", "mnli", "qnli", "qqp", "mrpc", "cola",
    }  # fmt: skip
    assert (rows["ag_news"]["classes"], rows["squad"]["classes"], rows["stdlib-topics"]["classes"]) == (4, 0, 8)
    shown = seedtune("tasks").out
    assert all(name in shown and rows[name]["asks"] in shown for name in rows) and "'seedtune task FILE'" in shown


# Task


def test_a_table_is_shown_with_what_was_taken(seedtune, tiny_table):
    found = json.loads(seedtune("task", tiny_table, "--json").out)
    assert found["taken"]["template"] == "{thing}\nColour:" and found["taken"]["label_column"] == "colour"
    assert found["answers"] == {word: f" {word}" for word in sorted(tiny_runs.WORDS)}
    assert found["train"] + found["test"] == 60 and found["left_out"] == [] and found["model"] is None
    assert found["lengths"]["unit"] == "characters" and "tokens" not in found["prompts"][0]
    assert sorted(prompt["answer"] for prompt in found["prompts"]) == [" blue", " green", " red"]
    assert sum(client["examples"] for client in found["clients"]) == found["train"] and len(found["clients"]) == 8


def test_with_a_model_tokens_and_cuts_are_shown(seedtune, tiny_table, tiny_model):
    arguments = ("task", tiny_table, "--model", tiny_model, "--set", "task.max_tokens=12")
    found = json.loads(seedtune(*arguments, "--json").out)
    lengths, prompt = found["lengths"], found["prompts"][0]
    assert lengths["limit"] == 12 and lengths["longest"] - lengths["cut"]["longest"] == 12
    assert 0 < found["cut"] <= 60 and len(prompt["tokens"]) <= 12 and prompt["answer_tokens"] == [prompt["answer"]]
    shown = seedtune(*arguments).out
    assert f"cut to 12 tokens: {lengths['cut']['median']} are lost in the median" in shown
    assert f"{len(prompt['tokens'])} tokens: " in shown and "8 clients, dealt iid:" in shown
    assert "nothing is cut: all fit into 64 tokens" in seedtune("task", tiny_table, "--model", tiny_model).out


def test_doubtful_rows_are_said_and_do_not_hide_the_rest(seedtune, tmp_path):
    rows = [f"the apple {i} is good,{('yes', 'no')[i % 2]}" for i in range(30)]
    rows += [",yes", "the sea is wide,", "plain,maybe"]
    (tmp_path / "doubtful.csv").write_text("\n".join(["text,label", *rows]))
    over = ("--set", "partition.kind=natural", "--set", "task.label_column=label")
    found = json.loads(seedtune("task", "doubtful.csv", *over, "--json").out)
    assert {row["reason"]: row["rows"] for row in found["left_out"]} == {
        "with an empty 'text'": 1,
        "without a label": 1,
    }
    missing = [name for row in found["classes"] for name in [row["class"]] if not row["train"] or not row["test"]]
    assert missing and all(any(f"example of class {name}" in d or f", {name}" in d for d in found["doubts"])
                           for name in missing)  # fmt: skip
    assert found["clients"] == [] and any("have no natural groups" in doubt for doubt in found["doubts"])
    shown = seedtune("task", "doubtful.csv", *over).out
    assert all(f"note: {doubt}" in shown for doubt in found["doubts"])


def test_known_tasks_and_recipes_are_shown(seedtune, tiny_recipe):
    assert json.loads(seedtune("task", "stdlib-topics", "--json").out)["lengths"]["unit"] == "characters"
    values = tiny_recipe(task={"max_tokens": 9}).model_dump(include={"model": True, "task": {"name", "path", "template",
                         "label_column", "answers", "max_tokens"}, "partition": True})  # fmt: skip
    with open("mine.toml", "w") as file:
        file.write(tiny_runs.toml({**values, "model": {"name": values["model"]["name"]}}))
    found = json.loads(seedtune("task", "mine.toml", "--json").out)
    assert found["lengths"]["limit"] == 9 and len(found["clients"]) == 4 and found["taken"] == {}


def test_neither_a_task_nor_a_table_is_one_line(seedtune):
    found = seedtune("task", "stdlib-topic")
    assert found.code == 2 and found.err.startswith("error: unknown task 'stdlib-topic': did you mean 'stdlib-topics'?")
    assert found.err.endswith("; or give a recipe (.toml) or a table (.csv, .tsv, .json, .jsonl, .parquet)\n")
    assert previews.SHOWN_PROMPTS == 3


# Init and run


def test_a_drafted_recipe_runs_as_it_is(seedtune, tiny_table, tiny_model):
    made = seedtune("init", tiny_table, "--model", tiny_model)
    assert (made.code, made.err) == (0, "")
    assert made.out == (
        "things.toml: written. Look at its task with 'seedtune task things.toml', run it with 'seedtune run "
        "things.toml'.\n"
    )
    with open("things.toml") as file:
        text = file.read()
    assert "#   seedtune run things.toml --out runs/mine\n" in text and 'learning_rate = "auto"' in text
    assert f'path = "{tiny_table}"  # 60 rows with the columns thing, colour\n' in text
    assert seedtune("task", "things.toml").code == 0
    assert seedtune("run", "things.toml", "--rounds", 2).code == 0
    again = seedtune("init", tiny_table, "--model", tiny_model)
    assert again.code == 2 and again.err == (
        "error: --out things.toml: is there already and is not overwritten: choose another name or remove it\n"
    )
    with open("things.toml") as file:
        assert file.read() == text


def test_a_recipes_name_ends_in_toml(seedtune, tiny_table, tiny_model):
    found = seedtune("init", tiny_table, "--model", tiny_model, "--out", "mine.txt")
    assert found.code == 2 and found.err == ("error: --out mine.txt: a recipe's name ends in .toml, as in mine.toml\n")


def test_labels_whose_words_begin_alike_get_letters(seedtune, tmp_path, tiny_model):
    rows = [f"this is row {i},{('red one', 'red two')[i % 2]}" for i in range(40)]
    (tmp_path / "alike.csv").write_text("\n".join(["text,kind", *rows]))
    assert seedtune("init", "alike.csv", "--model", tiny_model).code == 0
    assert 'answers = { "red one" = " A", "red two" = " B" }' in (tmp_path / "alike.toml").read_text()


def test_an_encoder_gets_label_descriptions(seedtune, tmp_path, tiny_table):
    encoder = tiny_runs.save_encoder(tmp_path / "encoder")
    assert seedtune("init", tiny_table, "--model", encoder, "--out", "e.toml").code == 0
    text = (tmp_path / "e.toml").read_text()
    assert 'label_descriptions = ["blue", "green", "red"]' in text and "\nanswers" not in text
    assert seedtune("run", "e.toml", "--rounds", 1).code == 0
    (tmp_path / "new.csv").write_text("thing\napple 3\n")
    assert table(seedtune("predict", "runs/e", "new.csv").out)[0]["prediction"] in tiny_runs.WORDS


def test_texts_that_answer_texts_are_drafted_and_written(seedtune, tmp_path, tiny_model):
    rows = [json.dumps({"question": f"the sea {i}", "answer": f"is blue {i}"}) for i in range(40)]
    (tmp_path / "qa.jsonl").write_text("\n".join(rows))
    assert seedtune("init", "qa.jsonl", "--model", tiny_model).code == 0
    assert seedtune("run", "qa.toml", "--rounds", 1).code == 0
    (tmp_path / "new.jsonl").write_text('{"question": "the sky", "from": ["x"]}\n')
    (row,) = table(seedtune("predict", "runs/qa", "new.jsonl").out)
    assert list(row) == ["question", "from", "prediction"] and row["from"] == '["x"]'


# Predict


@pytest.fixture
def tuned(seedtune, ended, tmp_path):
    """The run of the tiny recipe, what replay wrote of it, and a file of new rows without labels."""
    assert seedtune("replay", ended, "--out", "tuned").code == 0
    (tmp_path / "new.csv").write_text('id,thing\n7,apple 3\n8,"sea, and sky"\n9,brick\n')
    return ended


def test_predictions_are_the_models_scores_of_the_rows(seedtune, tuned, tiny_recipe, tmp_path):
    rows = table(seedtune("predict", tuned, "new.csv").out)
    assert [(row["id"], row["thing"]) for row in rows] == [("7", "apple 3"), ("8", "sea, and sky"), ("9", "brick")]
    names = [f"score_{word}" for word in tiny_runs.WORDS]
    assert list(rows[0]) == ["id", "thing", "prediction", "confidence", *names]
    scores = np.array([[float(row[name]) for name in names] for row in rows])
    assert np.allclose(scores.sum(1), 1, atol=1e-5)
    assert [row["prediction"] for row in rows] == [tiny_runs.WORDS[i] for i in scores.argmax(1)]
    assert [float(row["confidence"]) for row in rows] == scores.max(1).tolist()


def test_a_replayed_folder_knows_its_task_and_predicts_alike(seedtune, tuned, tmp_path):
    assert json.loads((tmp_path / "tuned" / FORM_FILE).read_text())["form"]["task"]["template"] == "the {thing} is"
    assert seedtune("predict", "tuned", "new.csv").out == seedtune("predict", tuned, "new.csv").out
    evaluated, summary = json.loads(seedtune("evaluate", "tuned", "--json").out), summary_of(tuned)
    assert (evaluated["task"], evaluated["loss"]) == ("custom", summary["loss"])
    assert json.loads(seedtune("evaluate", "tuned", "--task", "stdlib-topics", "--set", "task.max_eval=9",
                               "--json").out)["examples"] == 9  # fmt: skip


def test_predictions_on_the_test_rows_have_the_runs_accuracy(seedtune, tuned, tiny_recipe, tmp_path):
    recipe = tiny_recipe(task={"max_tokens": 5})
    test = assembly.assemble(recipe, Machine()).task.test
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"thing": e.body, "true": e.label}) for e in test))
    assert seedtune("predict", tuned, "test.jsonl", "--out", "found.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    right = [row["prediction"] == tiny_runs.WORDS[int(row["true"])] for row in rows]
    assert np.mean(right) == summary_of(tuned)["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tuned", "new.csv", "--out", "there.csv"),
         "--out there.csv: is there already and is not overwritten: choose another name or remove it"),
        (("tuned", "new.csv", "--out", "a.txt"), "--out a.txt: cannot write .txt: give .csv or .jsonl"),
        (("tuned", "there.csv"), "there.csv row 1: has no column 'thing', only words"),
        (("tuned", "none.csv"), "none.csv: cannot be read: No such file or directory"),
        (("tuned", "taken.csv"),
         "taken.csv: has a column 'prediction' already, which predictions are written to: rename it"),
        (("tuned", "new.csv", "--base", "x"), "--base 'x': is for runs, and 'tuned' is none: leave it out"),
        (("MODEL", "new.csv"),
         "'MODEL': says no task (there is no seedtune.json, which 'seedtune replay' writes for a run): name it "
         "with --task"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_one_line(seedtune, tuned, tiny_model, tmp_path, arguments, message):
    (tmp_path / "there.csv").write_text("words\nx\n")
    (tmp_path / "taken.csv").write_text("thing,prediction\nx,y\n")
    found = seedtune("predict", *(str(tiny_model) if each == "MODEL" else each for each in arguments))
    assert found.code == 2 and found.err == f"error: {message.replace('MODEL', str(tiny_model))}\n"
    assert (tmp_path / "there.csv").read_text() == "words\nx\n"


def test_a_model_without_a_task_is_asked_for_one(seedtune, tiny_model):
    found = seedtune("evaluate", tiny_model)
    assert found.code == 2 and found.err == (
        f"error: model '{tiny_model}': says no task (there is no seedtune.json, which 'seedtune replay' writes "
        f"for a run): name one with --task\n"
    )


def test_a_moved_base_is_named(seedtune, tiny_recipe, tiny_model, tmp_path):
    run(tiny_recipe(), tiny_runs.MACHINE, tmp_path / "run", tiny_runs.NOTHING)
    (tmp_path / "new.csv").write_text("thing\nbrick\n")
    expected = seedtune("predict", "run", "new.csv").out
    moved = tmp_path / "moved" / tiny_model.name
    moved.parent.mkdir()
    moved.symlink_to(tiny_model)
    assert seedtune("predict", "run", "new.csv", "--base", moved).out == expected != ""
