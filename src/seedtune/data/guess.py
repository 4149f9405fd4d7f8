"""A first task for a table that nobody has described: which columns are text and label, and a template over them.

What is obvious is taken and said; what is not is asked for. Only texts and names are looked at; no model is.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from ..errors import DataError
from ..sections import TaskConfig
from .examples import ModelKind
from .files import Row
from .labelled import NO_LABEL, label_text
from .prompts import MASK_SLOT

LOOKED_AT = 2000
"""Rows from which columns are judged."""
MOST_LABELS = 26
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "topic", "intent", "rating", "stars", "y",
)  # fmt: skip
GROUP_NAMES = (
    "client", "client_id", "user", "user_id", "author", "speaker", "group", "domain", "site", "shop", "device",
)  # fmt: skip
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("input", "output"), ("source", "target"))
_RESPONSES = {"output", "response", "answer"}
Settings = dict[str, Any]


def guess_task(path: str, rows: Sequence[Row], known: TaskConfig, kind: ModelKind) -> Settings:
    """Settings of [task] for a table: those of `known` that are set, and what its columns suggest for the others.

    Raises:
        DataError: no column, or several, may be the label or the text; the message says how to name them.
    """
    if _is_known_form(rows[0], known):
        name = "prompt-completion" if {"prompt", "completion"} <= rows[0].keys() else "instruction"
        return {"name": name, "path": path}
    shown = list(islice(rows, LOOKED_AT))
    if known.kind == "text" or (known.label_column is None and _pair(rows[0], shown)):
        return _text_settings(path, shown, known)
    label = known.label_column or _guess_label(path, shown)
    texts = _guess_texts(path, shown, label)
    names = guess_labels(rows, label)
    answers = known.answers or (word_answers(names) if kind != "classifier" else {})
    template = known.template or "\n".join(f"{{{name}}}" for name in texts) + _question(label, kind)
    return {
        "name": "custom", "path": path, "template": template, "label_column": label,
        **({"answers": answers} if answers else {}),
    }  # fmt: skip


def _question(label: str, kind: ModelKind) -> str:
    words = label.replace("_", " ").strip().capitalize()
    return {"causal": f"\n{words}:", "masked": f"\n{words}: {MASK_SLOT}.", "classifier": ""}[kind]


def _is_known_form(row: Row, known: TaskConfig) -> bool:
    if known.template or known.label_column:
        return False
    names = {name for name, value in row.items() if isinstance(value, str)}
    if {"prompt", "completion"} <= names:
        return True
    return "instruction" in names and bool(names & _RESPONSES)


def _pair(row: Row, shown: Sequence[Row]) -> tuple[str, str] | None:
    """Two columns of which the second answers the first with texts of its own."""
    found = next((pair for pair in _PAIRS if {*pair} <= row.keys()), None)
    return found if found and not _is_label(_values(shown, found[1])) else None


def _text_settings(path: str, shown: Sequence[Row], known: TaskConfig) -> Settings:
    asked, answer = _pair(shown[0], shown) or ("", "")
    template, learned = (
        known.template or f"{asked.capitalize()}: {{{asked}}}\nAnswer:",
        known.answer or f" {{{answer}}}",
    )
    if not asked and not (known.template and known.answer):
        raise DataError(
            f"{path}: no two columns of {', '.join(shown[0])} look like a question and its answer: name them with "
            f"--set task.template='{{column}}' and --set task.answer=' {{column}}'"
        )
    return {"name": "custom", "kind": "text", "path": path, "template": template, "answer": learned}


def _values(shown: Sequence[Row], column: str) -> list[str]:
    """The column's texts that are not empty; none where it has lists or objects."""
    values = [row.get(column, "") for row in shown]
    return [v for v in values if v.strip()] if all(isinstance(v, str) for v in values) else []


def _is_label(values: Sequence[str]) -> bool:
    """Few different values, each of them short and most of them seen more than once."""
    different = {*values}
    return 2 <= len(different) <= min(MOST_LABELS, len(values) / 2) and max(map(len, different)) <= 40


def _guess_label(path: str, shown: Sequence[Row]) -> str:
    columns = [name for name in shown[0] if _is_label(_values(shown, name))]
    named = [name for name in columns if name.lower() in LABEL_NAMES]
    found = named or [name for name in columns if name.lower() not in GROUP_NAMES]
    if len(found) == 1:
        return found[0]
    what = f"columns {', '.join(found)} may each be the label" if found else "no column looks like a label"
    listed = "" if found else f" of {', '.join(shown[0])}"
    raise DataError(
        f"{path}: {what}{listed}: name it with --set task.label_column=NAME, or set task.kind=text with task.template "
        f"and task.answer"
    )


def _guess_texts(path: str, shown: Sequence[Row], label: str) -> list[str]:
    """The columns with texts of several words, in their order; else the one with the longest texts."""
    values = {name: _values(shown, name) for name in shown[0] if name != label and name.lower() not in GROUP_NAMES}
    spread = {name: texts for name, texts in values.items() if len({*texts}) > 1 and not _is_number(texts)}
    if not spread:
        raise DataError(
            f"{path}: no column beside {label!r} looks like text: write a prompt over the columns with "
            f"--set task.template='{{column}}'"
        )
    wordy = [name for name, texts in spread.items() if sum(len(t.split()) for t in texts) >= 3 * len(texts)]
    return wordy or [max(spread, key=lambda name: sum(map(len, spread[name])) / len(spread[name]))]


def _is_number(texts: Sequence[str]) -> bool:
    return all(text.strip().replace(".", "", 1).lstrip("-").isdigit() for text in texts)


def guess_labels(rows: Sequence[Row], column: str) -> list[str]:
    """The labels of a column, sorted: numbers by size, rows without a label left out.

    Raises:
        DataError: there is no such column.
    """
    if column not in rows[0]:
        raise DataError(f"task.label_column is {column!r}, but the table has the columns {', '.join(rows[0])}")
    found = {label_text(str(row.get(column, ""))) for row in rows} - {*NO_LABEL}
    return sorted(found, key=lambda name: (0, float(name), name) if _is_number([name]) else (1, 0.0, name))


def guess_group(rows: Sequence[Row]) -> str | None:
    """The column whose name says that its values are people or places, if there is one."""
    return next((name for name in rows[0] if name.lower() in GROUP_NAMES), None)


_NO_YES = ({"0", "1"}, {"false", "true"}, {"no", "yes"}, {"f", "t"}, {"n", "y"})


def word_answers(labels: Sequence[str]) -> dict[str, str]:
    """An answer for each label: no and yes for two that mean it, else the label's own words.

    >>> word_answers(["0", "1"]), word_answers(["billing", "other"])
    ({'0': ' no', '1': ' yes'}, {'billing': ' billing', 'other': ' other'})
    """
    if {label.lower() for label in labels} in _NO_YES:
        return dict(zip(sorted(labels), (" no", " yes"), strict=True))
    return {label: f" {label}" for label in labels}


def letter_answers(labels: Sequence[str]) -> dict[str, str]:
    """A letter for each label, where their words begin alike: no two letters do."""
    return {label: f" {chr(ord('A') + i)}" for i, label in enumerate(labels)}
