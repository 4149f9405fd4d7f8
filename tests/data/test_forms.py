"""The form of a task: new rows are put as the task's own rows are, and a folder keeps it."""

import json

import pytest

from seedtune.data import snippets
from seedtune.data.forms import FORM_FILE, describe_form, find_form, read_form
from seedtune.data.tasks import KNOWN, load_task
from seedtune.errors import DataError
from seedtune.sections import TaskConfig

SST2 = [{"sentence": f"film {i} is a fine one", "label": i % 2} for i in range(30)]
TABLE = [{"text": f"review {i} of many", "stars": str(i % 3)} for i in range(30)]
ALPACA = [{"instruction": f"Add {i}.", "input": "1" * (i % 2), "output": str(i)} for i in range(30)]
PAIRS = [{"prompt": f"What is {i} and {i}?", "completion": str(2 * i)} for i in range(30)]
ANSWERS = {"0": " bad", "1": " fine", "2": " great"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


CASES = [
    ("sst2", SST2, {}),
    ("custom", TABLE, {"template": "{text} It was", "label_column": "stars", "answers": ANSWERS}),
    ("custom", TABLE, {"template": "{text} has", "kind": "text", "answer": " {stars}"}),
    ("instruction", ALPACA, {}),
    ("prompt-completion", PAIRS, {}),
]


@pytest.mark.parametrize(("name", "rows", "settings"), CASES)
def test_new_rows_are_put_as_the_tasks_own(tmp_path, name, rows, settings):
    config = TaskConfig(name=name, path=write(tmp_path / "a.jsonl", rows), **settings)
    own, form = load_task(config, 0), find_form(config, "causal")
    made = form.as_task([{k: str(v) for k, v in row.items()} for row in rows], "new.jsonl")
    prompts = {example.prompt: example for example in made.test}
    assert {(e.prompt, e.body) for e in (*own.train, *own.test)} == {(e.prompt, e.body) for e in prompts.values()}
    assert (made.kind, made.answers, made.label_names) == (own.kind, own.answers, own.label_names)
    assert (made.max_tokens, made.ends) == (own.max_tokens, own.ends)


def test_builtin_tasks_have_their_form():
    topics, own = find_form(TaskConfig(), "masked"), load_task(TaskConfig(), 0, "masked")
    assert (topics.answers, topics.label_names, topics.max_tokens) == (own.answers, own.label_names, own.max_tokens)
    assert "".join(topics.prompt({"text": "x"})) == own.train[0].prompt.replace(own.train[0].body, "x")
    rated = find_form(TaskConfig(name="rated-snippets"), "causal")
    assert "".join(rated.prompt({"text": "fine"})) == "fine It was" and rated.label_names == snippets.LABELS


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_known_task_has_a_form_or_says_why_not(name):
    config = TaskConfig(name=name, template="{text}", answers=ANSWERS)
    if name in ("plain-text", "stdlib-text"):
        with pytest.raises(DataError) as error:
            find_form(config, "causal")
        assert str(error.value) == (
            f"task {name!r} has no prompts to put new rows into: use 'seedtune generate' to write on from a text"
        )
    else:
        assert find_form(config, "causal").name == name


def test_rows_without_a_column_of_the_template_are_named():
    form = find_form(TaskConfig(name="custom", template="{text} It was", answers=ANSWERS), "causal")
    with pytest.raises(DataError, match=r"^new\.csv row 2: has no column 'text', only txt$"):
        form.as_task([{"text": "x"}, {"txt": "y"}], "new.csv")
    with pytest.raises(DataError, match=r"^a row for task 'sst2': has no column 'sentence', only words$"):
        find_form(TaskConfig(name="sst2"), "causal").as_task([{"words": "x"}], "new.csv")
    with pytest.raises(DataError, match=r"^a row of instructions: has no column 'instruction', only words$"):
        find_form(TaskConfig(name="instruction"), "causal").as_task([{"words": "x"}], "new.csv")


def test_a_benchmark_without_a_form_for_the_model_is_named():
    with pytest.raises(DataError, match=r"^task 'boolq' has no prompt for a masked model: choose another model\.kind$"):
        find_form(TaskConfig(name="boolq"), "masked")


def test_a_folder_keeps_the_task(tmp_path):
    config = TaskConfig(name="custom", template="{text} It was", label_column="stars", answers=ANSWERS, max_tokens=9)
    assert read_form(tmp_path) is None
    (tmp_path / FORM_FILE).write_text(json.dumps({"rounds": 3, "form": describe_form(config, "causal")}))
    assert read_form(tmp_path) == (config, "causal")


def test_labels_that_are_only_in_the_files_are_kept_too(tmp_path):
    path = write(tmp_path / "a.jsonl", TABLE)
    config = TaskConfig(name="custom", path=path, template="{text}", label_column="stars")
    (tmp_path / FORM_FILE).write_text(json.dumps({"form": describe_form(config, "classifier")}))
    (tmp_path / "a.jsonl").unlink()
    kept, kind = read_form(tmp_path)
    assert find_form(kept, kind).label_names == ("0", "1", "2") and find_form(kept, kind).answers == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ('{"form": []}', "list indices must be integers"),
        ('{"form": {"version": 2}}', "version 2, this seedtune reads 1"),
        ('{"form": {"version": 1, "model_kind": "x", "task": {}}}', "no known kind of model"),
        ('{"form": {"version": 1, "model_kind": "causal", "task": {"nme": 1}}}', "not as it was written"),
    ],
)
def test_a_damaged_form_is_named(tmp_path, text, reason):
    (tmp_path / FORM_FILE).write_text(text)
    with pytest.raises(DataError) as error:
        read_form(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / FORM_FILE}: cannot be read ({reason}")
    assert str(error.value).endswith("): name the task with --task, or write the folder again with 'seedtune replay'")
