"""Rows from files: csv, tsv, json, jsonl and parquet, and which file of a folder is for training and which for testing.

Values become text as a person would write them (`True` is "true", `None` and a missing value are ""), except lists and
objects, which stay. Texts are read as UTF-8. Nothing is fetched and nothing is cached.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError

Row = dict[str, Any]

_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_NOT_DATA = ("readme", "license", "licence", "source", "dataset_info", "dataset_infos")
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_rows(path: Path, header: Sequence[str] = ()) -> list[Row]:
    """The rows of one file, in order; `header` names the columns of a csv or tsv that has no line of names.

    A tsv is read as GLUE writes it: no quoting. A json file is a list of objects, or an object with one such list
    under "data" (SQuAD's own file becomes one row a question).

    Raises:
        DataError: no such file, an unknown suffix, or contents that are not what the suffix says (with the line).
    """
    readers = {".csv": _read_table, ".tsv": _read_table, ".json": _read_json, ".jsonl": _read_jsonl}
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return [as_text(row) for row in _read_parquet(path)]
    if suffix not in readers:
        raise DataError(f"{path}: cannot read {suffix or 'a file without suffix'}: give {', '.join(SUFFIXES)}")
    return [as_text(row) for row in readers[suffix](path, read_text(path), header)]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with line ends as "\\n".

    Raises:
        DataError: no such file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}") from None


def split_files(path: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, list[Path]]:
    """The files of each split below `path`: "train", "validation", "test", or "all" where names do not say.

    A folder's files are told apart by the word that their names begin or end with: train; validation, valid, val or
    dev; test. Where no name says, or `path` is a file, everything is "all". Sorted by name; a
    README, LICENSE or SOURCE is passed over.

    Raises:
        DataError: nothing there, no file with one of `suffixes`, or some names that say and some that do not.
    """
    if path.is_file():
        return {"all": [path]}
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; set task.path to the task's data")
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in suffixes and f.stem.lower() not in _NOT_DATA)
    if not files:
        raise DataError(f"{path}: has no file that ends in {', '.join(suffixes)}")
    named = [(_split_of(file), file) for file in files]
    if not any(split for split, _ in named):
        return {"all": files}
    for split, file in named:
        if split is None:
            raise DataError(f"{path}: {file.name} says neither train, validation nor test, as others there do: rename "
                            f"it or take it out")  # fmt: skip
    return {split: [f for s, f in named if s == split] for split in _SPLITS if split in dict(named)}


def _split_of(file: Path) -> str | None:
    words = re.split("[^a-z]+", file.name.lower().removesuffix(file.suffix.lower()))
    for word in (words[0], words[-1]):
        for split, names in _SPLITS.items():
            if word in names:
                return split
    return None


def _read_table(path: Path, text: str, header: Sequence[str]) -> list[Row]:
    is_tsv = path.suffix.lower() == ".tsv"
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {"strict": True}
    reader = csv.reader(io.StringIO(text, newline="\n"), **style)
    try:
        lines = [cells for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not valid {path.suffix[1:]}: {error}") from None
    names, rows = (list(header), lines) if header else (lines[0] if lines else [], lines[1:])
    for number, cells in enumerate(rows, 1):
        if len(cells) != len(names):
            raise DataError(
                f"{path}: row {number} has {len(cells)} cells, but there are {len(names)} columns ({', '.join(names)})"
            )
    return [dict(zip(names, cells, strict=True)) for cells in rows]


def _read_jsonl(path: Path, text: str, _: Sequence[str]) -> list[Row]:
    return [_parsed(path, line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parsed(path: Path, line: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number} is a JSON {type(row).__name__}: each line must be an object")
    return row


def _read_json(path: Path, text: str, _: Sequence[str]) -> list[Row]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: must be a JSON list of objects, or an object with such a list under "data"')
    if not (rows and "paragraphs" in rows[0]):
        return rows
    try:
        return [question for article in rows for question in _squad_rows(article)]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: looks like a SQuAD file, but {error} is missing or of the wrong type") from None


def _squad_rows(article: Row) -> list[Row]:
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


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from None


def as_text(row: Row) -> Row:
    """The row with every value that is not a list or an object as text."""
    return {name: value if isinstance(value, list | dict) else text_of(value) for name, value in row.items()}


def text_of(value: Any) -> str:
    """A cell as text.

    >>> text_of(True), text_of(3), text_of(None), text_of("x")
    ('true', '3', '', 'x')
    """
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_texts(row: Row, names: Iterable[str], place: str) -> None:
    """Raises DataError where the row at `place` lacks one of the columns `names`, or has a list or object there."""
    for name in names:
        if name not in row:
            raise DataError(f"{place}: has no column {name!r}, only {', '.join(row)}")
        if not isinstance(row[name], str):
            raise DataError(f"{place}: column {name!r} is {row[name]!r}, expected a text or a number")
