"""Files in a familiar form under another name: read as what they are, or refused in one line that says what to do."""

import gzip
import json

import datasets
import pytest

from seedtune.data.files import check_texts, read_rows, split_files
from seedtune.data.tasks import load_task
from seedtune.errors import DataError
from seedtune.sections import TaskConfig

ROWS = [{"text": "fine", "label": "1"}, {"text": "dull", "label": "0"}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        "\n".join(json.dumps(row) for row in ROWS),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
    ],
    ids=["lines", "objects over lines", "list", "list over lines"],
)
def test_json_is_read_by_what_it_is(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_rows(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_gzip_is_read_through(tmp_path, name):
    text = "text,label\nfine,1\ndull,0\n" if name == "a.csv" else "\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / f"train-{name}.gz").write_bytes(gzip.compress(text.encode()))
    (path,) = split_files(tmp_path)["train"]
    assert read_rows(path) == ROWS


@pytest.mark.parametrize("content", [b"text,label\nfine,1\n", gzip.compress(b"text,label\nfine,1\n", mtime=0)[:-9]])
def test_gzip_that_is_none_or_damaged_is_named(tmp_path, content):
    (tmp_path / "a.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.csv\.gz: is damaged or no gzip file: "):
        read_rows(tmp_path / "a.csv.gz")


def test_what_save_to_disk_wrote_is_read(tmp_path):
    both = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "both")
    both["train"].save_to_disk(tmp_path / "one")
    splits = split_files(tmp_path / "both")
    assert {split: [row for path in paths for row in read_rows(path)] for split, paths in splits.items()} == {
        "train": ROWS,
        "test": ROWS[:1],
    }
    assert [row for path in split_files(tmp_path / "one")["all"] for row in read_rows(path)] == ROWS


def test_a_damaged_folder_of_save_to_disk_is_named(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"one: cannot be read as a folder of save_to_disk: "):
        read_rows(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.json", "[]"), ("a.jsonl", "")]
)
def test_a_file_without_rows_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: has no rows; give a file with some, or take it out"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_is_nested_too_deeply_is_named(tmp_path, name):
    (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"is not JSON: it is nested too deeply$"):
        read_rows(tmp_path / name)


def test_turns_of_a_chat_are_told_apart_from_other_lists():
    with pytest.raises(DataError) as error:
        check_texts({"messages": [{"role": "user", "content": "Hi"}]}, ["messages"], "row 1")
    assert str(error.value) == (
        "row 1: column 'messages' is [{'role': 'user', 'content': 'Hi'}], turns of a chat, which no task reads: write "
        "the last answer and what came before it into two columns, prompt and completion, for the task "
        "'prompt-completion'"
    )


def test_half_a_pair_of_surrogates_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d", "label": 1}')
    (row,) = read_rows(tmp_path / "a.jsonl")
    with pytest.raises(DataError) as error:
        check_texts(row, ["text"], "row 1")
    assert str(error.value) == "row 1: column 'text' has half of a pair of surrogates, which no text has: mend it"


# Cells without a value, and labels as floats, in a custom task


def custom(tmp_path, text, kind="causal", name="a.csv", **settings):
    (tmp_path / name).write_text(text)
    given = {"template": "{text} It was", "label_column": "label", "answers": {"0": " bad", "1": " good"}} | settings
    return load_task(TaskConfig(name="custom", path=str(tmp_path / name), **given), 0, kind)


TABLE = "".join(f"text {i},{i % 2}.0\n" for i in range(30))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",1.0", "with an empty 'text'"),
        ("  ,1.0", "with an empty 'text'"),
        ("x,", "without a label"),
        ("x,-1", "without a label"),
        ("x,-1.0", "without a label"),
    ],
)
def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path, row, reason):
    task = custom(tmp_path, f"text,label\n{row}\n{TABLE}")
    assert len(task.train) + len(task.test) == 30
    assert [(left.reason, left.place) for left in task.left_out] == [(reason, "task 'custom', data row 1")]
    assert {(e.label, e.answer) for e in task.train} == {(0, " bad"), (1, " good")}


@pytest.mark.parametrize("missing", ["null", "NaN"])
def test_null_in_json_is_an_empty_cell(tmp_path, missing):
    rows = [f'{{"text": "text {i}", "label": {i % 2}.0}}' for i in range(30)]
    task = custom(tmp_path, "\n".join([f'{{"text": {missing}, "label": 1.0}}', *rows]), name="a.jsonl")
    assert [left.reason for left in task.left_out] == ["with an empty 'text'"] and len(task.label_names) == 2


def test_a_label_that_is_not_whole_is_named_with_its_row(tmp_path):
    with pytest.raises(DataError) as error:
        custom(tmp_path, f"text,label\n{TABLE}x,0.5\n")
    assert str(error.value) == (
        "task 'custom', data row 31: its label is '0.5', which has no answer word: task.answers has words for 0, 1; "
        "add one for each label, or mend the row"
    )


def test_minus_one_is_a_class_where_it_has_an_answer_word(tmp_path):
    task = custom(tmp_path, f"text,label\nx,-1\n{TABLE}", answers={"-1": " bad", "0": " fine", "1": " great"})
    assert task.left_out == () and sum(e.label == 0 for e in (*task.train, *task.test)) == 1


def test_a_classifier_is_asked_what_minus_one_means(tmp_path):
    with pytest.raises(DataError) as error:
        custom(tmp_path, f"text,label\nx,-1\n{TABLE}", "classifier", template="{text}", answers={})
    assert str(error.value) == (
        "column 'label' has the label '-1', which may be a class or mean that there is none: name the classes in "
        "task.answers, or remove these rows"
    )
    task = custom(tmp_path, f"text,label\nx,\n{TABLE}", "classifier", template="{text}", answers={})
    assert task.label_names == ("0", "1") and len(task.left_out) == 1


def test_a_table_without_any_label_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^column 'label' has no label: a choice needs two or more$"):
        custom(tmp_path, "text,label\nx,\n", "classifier", template="{text}", answers={})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{text It was",
            "template '{text It was' has a '{' without its other half: write columns as {name}, and braces that are "
            "text as {{ and }}",
        ),
        (
            "{text} {}",
            "template '{text} {}' has a '{' without its other half: write columns as {name}, and braces that are text "
            "as {{ and }}",
        ),
        (
            "It was",
            "template 'It was' names no column, so every row would give the same text: write columns as {name}; task "
            "'custom', data has text, label",
        ),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(tmp_path, template, message):
    with pytest.raises(DataError) as error:
        custom(tmp_path, f"text,label\n{TABLE}", template=template)
    assert str(error.value) == message


def test_braces_that_are_text_stay_text(tmp_path):
    assert custom(tmp_path, f"text,label\n{TABLE}", template="{{{text}}} is").train[0].prompt.startswith("{text ")


def test_unanswerable_questions_are_left_out(tmp_path):
    squad = {"title": "T", "context": "Ann came.", "question": "Who?", "answers": {"text": ["Ann"]}}
    rows = [squad | {"question": f"Who {i}?"} for i in range(20)] + [squad | {"answers": {"text": []}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task(TaskConfig(name="squad", path=str(tmp_path / "a.jsonl")), 0)
    assert [left.reason for left in task.left_out] == ["without an answer"]
    assert len(task.train) + len(task.test) == 20


@pytest.mark.parametrize("empty", [{"instruction": ""}, {"output": " "}])
def test_instructions_without_a_request_or_a_response_are_left_out(tmp_path, empty):
    rows = [{"instruction": f"Add {i}.", "output": str(i)} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [rows[0] | empty, *rows])))
    task = load_task(TaskConfig(name="instruction", path=str(tmp_path / "a.jsonl")), 0)
    assert [left.reason for left in task.left_out] == [f"with an empty {next(iter(empty))!r}"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "row", [{"te\ud800xt": "fine"}, {"text": ["fine", {"more": "\udfff!"}]}, {"text": {"\ud800": 1}}]
)
def test_half_a_pair_of_surrogates_in_a_name_or_inside_a_value_is_named(tmp_path, name, row):
    (tmp_path / name).write_text(json.dumps([ROWS[0], row]))
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / name)
    told = str(error.value)
    told.encode()
    assert told.startswith(f"{tmp_path / name}: row 2 has half of a pair of surrogates, which no text has, in ")
    assert told.endswith(": mend it") and "\n" not in told


def test_whole_pairs_of_surrogates_are_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"te\U0001f600xt": ["\U0001f600"]}))
    assert read_rows(tmp_path / "a.jsonl") == [{"te\U0001f600xt": ["\U0001f600"]}]
