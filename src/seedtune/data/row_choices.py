"""Choices of each row's own in a user's table: how a cell lists them, and which of them a row's label means."""

import json
from typing import Any

from ..errors import DataError
from ..sections import TaskConfig
from .files import Row, text_of
from .prompts import fill

LEAST_CHOICES = 2


def read_choices(config: TaskConfig, row: Row, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the texts of a row's choices, their names where the cell gives any, else none).

    A cell is a list of texts, an object {"text": [...], "label": [...]} as ARC has it, or either of them as JSON.

    Raises:
        DataError: anything else, or fewer than two choices, or one that is empty or stands there twice.
    """
    column = config.choices_column or ""
    if column not in row:
        raise DataError(f"task.choices_column is {column!r}, but {place} has the columns {', '.join(row)}")
    cell = _parsed(row[column])
    names = cell.get("label", ()) if isinstance(cell, dict) else ()
    texts = cell.get("text") if isinstance(cell, dict) else cell
    if not isinstance(texts, list) or not isinstance(names, list | tuple) or len(names) not in (0, len(texts)):
        raise DataError(
            f"{place}: its {column} must be a list of choices, or JSON of one, but is {str(row[column])[:60]!r}"
        )
    choices = tuple(text_of(text).strip() for text in texts)
    if len(choices) < LEAST_CHOICES or not all(choices) or len({*choices}) < len(choices):
        raise DataError(
            f"{place}: its {column} has {len(choices)} choices, {len({*choices} - {''})} of them different texts: it "
            f"needs two or more, each another text; mend the row or leave it out"
        )
    return choices, tuple(map(text_of, names))


def _parsed(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def find_choice(label: str, choices: tuple[str, ...], names: tuple[str, ...], place: str) -> int:
    """The choice that a label means: its name, its text, or its number from 0.

    >>> find_choice("B", ("red", "blue"), ("A", "B"), "row 1"), find_choice("1", ("red", "blue"), (), "row 1")
    (1, 1)

    Raises:
        DataError: none of these, or two of them that differ.
    """
    if names:
        found = {i for i, name in enumerate(names) if name == label}
    else:
        found = {i for i, choice in enumerate(choices) if choice == label}
        found |= {int(label)} if label.isdecimal() and int(label) < len(choices) else set()
    if len(found) == 1:
        return found.pop()
    if found:
        raise DataError(
            f"{place}: its label {label!r} is the text of one choice and the number of another: write labels as texts "
            f"that are no numbers of choices"
        )
    raise DataError(
        f"{place}: its label {label!r} is none of its choices: give a choice's text, or its number from 0 to "
        f"{len(choices) - 1}{', or one of the names ' + ', '.join(names) if names else ''}"
    )


def continue_prompt(config: TaskConfig, row: Row, choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices as they follow the row's prompt, behind a space where it does not end in one."""
    prompt = "".join(fill(config.template or "", row))
    gap = "" if prompt[-1:].isspace() else " "
    return tuple(gap + choice for choice in choices)
