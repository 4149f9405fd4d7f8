"""A task guessed from a table: what is obvious is taken, what is not is asked for."""

import pytest

from seedtune.data.guess import guess_group, guess_labels, guess_task, letter_answers
from seedtune.errors import DataError
from seedtune.sections import TaskConfig


def rows(num: int = 40, **columns) -> list[dict[str, str]]:
    return [{name: value(i) for name, value in columns.items()} for i in range(num)]


def sentence(i: int) -> str:
    return f"this is the text of row {i}"


def guess(table, kind="causal", **known):
    return guess_task("a.csv", table, TaskConfig(**known), kind)


def test_text_label_and_answers_are_taken():
    table = rows(id=str, text=sentence, team=lambda i: ("billing", "network")[i % 2], user=lambda i: f"u{i % 3}")
    assert guess(table) == {
        "name": "custom",
        "path": "a.csv",
        "template": "{text}\nTeam:",
        "label_column": "team",
        "answers": {"billing": " billing", "network": " network"},
    }
    assert guess_group(table) == "user"


def test_several_texts_are_all_read_in_their_order():
    table = rows(title=sentence, label=lambda i: str(i % 2), body=sentence)
    assert guess(table)["template"] == "{title}\n{body}\nLabel:"
    assert guess(table)["answers"] == {"0": " no", "1": " yes"}


def test_short_texts_are_better_than_none():
    assert guess(rows(word=lambda i: f"word{i}", label=lambda i: "ab"[i % 2]))["template"] == "{word}\nLabel:"


@pytest.mark.parametrize(("kind", "template"), [("masked", "{text}\nLabel: {mask}."), ("classifier", "{text}")])
def test_other_kinds_of_models_have_their_own_template(kind, template):
    found = guess(rows(text=sentence, label=lambda i: "ab"[i % 2]), kind)
    assert found["template"] == template and ("answers" in found) == (kind == "masked")


def test_a_column_called_label_wins_over_others_that_might_be():
    table = rows(text=sentence, colour=lambda i: ("red", "blue")[i % 2], label=lambda i: "ab"[i % 2])
    assert guess(table)["label_column"] == "label"


def test_columns_that_may_each_be_the_label_are_asked_for():
    table = rows(text=sentence, colour=lambda i: ("red", "blue")[i % 2], size=lambda i: ("big", "tiny")[i % 2])
    with pytest.raises(DataError) as error:
        guess(table)
    assert str(error.value) == (
        "a.csv: columns colour, size may each be the label: name it with --set task.label_column=NAME, or set "
        "task.kind=text with task.template and task.answer"
    )
    assert guess(table, label_column="size")["label_column"] == "size"


def test_a_table_without_a_label_is_asked_for_one():
    with pytest.raises(DataError, match=r"^a\.csv: no column looks like a label of text, id: name it with --set"):
        guess(rows(text=sentence, id=str))
    with pytest.raises(DataError, match=r"^task\.label_column is 'team', but the table has the columns text, id$"):
        guess(rows(text=sentence, id=str), label_column="team")


def test_a_table_without_a_text_is_asked_for_one():
    with pytest.raises(DataError) as error:
        guess(rows(id=str, label=lambda i: "ab"[i % 2]))
    assert str(error.value) == (
        "a.csv: no column beside 'label' looks like text: write a prompt over the columns with --set "
        "task.template='{column}'"
    )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("prompt", "completion"), {"name": "prompt-completion", "path": "a.csv"}),
        (("instruction", "input", "output"), {"name": "instruction", "path": "a.csv"}),
        (
            ("question", "answer"),
            {
                "name": "custom",
                "kind": "text",
                "path": "a.csv",
                "template": "Question: {question}\nAnswer:",
                "answer": " {answer}",
            },
        ),
    ],
)
def test_texts_that_answer_texts_are_known_by_their_names(columns, expected):
    assert guess(rows(**dict.fromkeys(columns, sentence))) == expected


def test_answers_that_repeat_are_labels():
    found = guess(rows(question=sentence, answer=lambda i: ("true", "false")[i % 2]))
    assert found["label_column"] == "answer" and found["answers"] == {"false": " no", "true": " yes"}


def test_a_text_task_is_asked_for_what_is_not_there():
    with pytest.raises(DataError) as error:
        guess_task("a.csv", rows(text=sentence, more=sentence), TaskConfig(kind="text"), "causal")
    assert str(error.value) == (
        "a.csv: no two columns of text, more look like a question and its answer: name them with --set "
        "task.template='{column}' and --set task.answer=' {column}'"
    )


def test_labels_are_sorted_numbers_by_size():
    table = [{"stars": stars} for stars in ("10", "9.0", "", "-1", "2")]
    assert guess_labels(table, "stars") == ["2", "9", "10"]
    assert letter_answers(["a", "b", "c"]) == {"a": " A", "b": " B", "c": " C"}
