"""Rows from JSON: a list of objects, an object around one, JSON lines, or objects written over several lines.

A file is read by its contents where its suffix says otherwise: JSON lines in a .json, a list in a .jsonl.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..foreign_text import quote

Row = dict[str, Any]
_UNREADABLE = (ValueError, RecursionError)
_SPACE = re.compile(r"\s*")
_HALF = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
"""How half of a pair of surrogates is written, and a whole pair too."""


def parse_json(path: Path, text: str) -> list[Row]:
    """The rows of a .json: a list of objects, an object with one under "data", DROP's passages by name, or JSON lines.

    Raises:
        DataError: it is not JSON, something else, or a name or a text inside a value is none.
    """
    return _checked(path, text, _rows_of_json(path, text))


def _rows_of_json(path: Path, text: str) -> list[Row]:
    try:
        found = json.loads(text)
    except _UNREADABLE as error:
        rows = _objects(text)
        if rows is None:
            raise DataError(f"{path}: is not JSON: {_reason(error)}") from None
        return rows
    rows = found.get("data", _values(found)) if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f'{path}: must be a JSON list of objects, or an object with such a list under "data" (pandas: '
            f"to_json(orient='records'))"
        )
    return _squad_rows(path, rows) if rows and "paragraphs" in rows[0] else rows


def _values(found: dict[str, Any]) -> list[Any] | None:
    """The objects of an object of nothing else, as DROP's passages stand under their names; None for any other."""
    values = list(found.values())
    return (
        values if len(values) > 0 and all(isinstance(value, dict) and "qa_pairs" in value for value in values) else None
    )


def parse_lines(path: Path, text: str) -> list[Row]:
    """The rows of a .jsonl: an object a line; or objects over several lines, or one list of them.

    Raises:
        DataError: a line that is no object (named), where the whole is neither of these; or a name or a text inside a
            value that is no text.
    """
    return _checked(path, text, _rows_of_lines(path, text))


def _rows_of_lines(path: Path, text: str) -> list[Row]:
    try:
        return [_parsed(path, line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except DataError:
        rows = _objects(text)
        if rows is None:
            raise
        return rows


def is_unicode(text: str) -> bool:
    """Return whether a string can be encoded: no half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(path: Path, text: str, rows: list[Row]) -> list[Row]:
    """Return the rows, if their names and what lies inside their values can be written; a plain value is its reader's.

    Raises:
        DataError: names the first row with one that cannot.
    """
    for number, row in enumerate(rows if _HALF.search(text) else (), 1):
        inside = (part for value in row.values() if isinstance(value, list | dict) for part in _strings(value))
        bad = next((part for part in chain(row, inside) if not is_unicode(part)), None)
        if bad is not None:
            given = f"{path}: row {number} has half of a pair of surrogates"
            raise DataError(f"{given}, which no text has, in {quote(bad, 80)}: mend it")
    return rows


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in chain(value, value.values()) if isinstance(value, dict) else value:
            yield from _strings(part)


def _parsed(path: Path, line: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except _UNREADABLE as error:
        raise DataError(f"{path}: line {number} is not JSON: {_reason(error)}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number} is a JSON {type(row).__name__}: each line must be an object")
    return row


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _objects(text: str) -> list[Row] | None:
    """The objects that a text consists of, one after another or in one list; None where it does not."""
    decoder, found, at = json.JSONDecoder(), [], _skip_space(text, 0)
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except _UNREADABLE:
            return None
        found.append(value)
        at = _skip_space(text, at)
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    return found if found and all(isinstance(value, dict) for value in found) else None


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _squad_rows(path: Path, articles: list[Row]) -> list[Row]:
    """A row a question of SQuAD's own layout, which XQuAD and MLQA share.

    Raises:
        DataError: something is missing or of the wrong type.
    """
    try:
        return [row for article in articles for row in _article_rows(article)]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: looks like a SQuAD file, but {error} is missing or of the wrong type") from None


def _article_rows(article: Row) -> list[Row]:
    return [
        {
            "title": article.get("title", ""),
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {"text": [answer["text"] for answer in question["answers"]]},
        }
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
