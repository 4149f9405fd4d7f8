"""Tables as text: csv and tsv, as spreadsheets, pandas and GLUE write them.

Why not pandas: it fills short rows up without a word, and renames a column that stands in the header twice.
"""

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError

Lines = list[list[str]]
SEPARATORS = ";\t|"
"""What parts the columns of a csv whose first line has no comma."""


def parse_csv(path: Path, text: str, header: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a csv. Where its first line has one column, `;`, tab or `|` part the columns if they do there.

    Raises:
        DataError: quotation marks that do not close, rows of unlike length, or a column that the header has twice.
    """
    delimiter = "," if header else _separator(text)
    try:
        lines = _cells(text, delimiter)
    except csv.Error as error:
        raise DataError(f"{path}: {_at(error)} is not valid csv: {error.args[0]}") from None
    return _rows(path, lines, header, delimiter)


def parse_tsv(path: Path, text: str, header: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a tsv, whose quotation marks are pandas' quoting or, as in GLUE's files, part of the text.

    They are quoting where every cell that begins with one also ends with one, and where lines that belong together
    only by quoting are not rows by themselves.

    Raises:
        DataError: rows of unlike length, or a column that the header has twice.
    """
    plain = [line.split("\t") for line in text.split("\n") if line]
    try:
        quoted = _cells(text, "\t") if '"' in text else plain
    except csv.Error:
        quoted = []
    return _rows(path, quoted if _is_quoting(plain, quoted) else plain, header, "\t")


def _is_quoting(plain: Lines, quoted: Lines) -> bool:
    if not quoted or _is_ragged(quoted):
        return False
    return len(quoted) == len(plain) or _is_ragged(plain) or len(plain[0]) == 1


def _is_ragged(lines: Lines) -> bool:
    return len({len(cells) for cells in lines}) > 1


def _separator(text: str) -> str:
    first = text.lstrip("\n").partition("\n")[0]
    found = [mark for mark in SEPARATORS if len(next(csv.reader([first], delimiter=mark), [])) > 1]
    return found[0] if found and len(next(csv.reader([first]), [])) == 1 else ","


def _cells(text: str, delimiter: str) -> Lines:
    """
    Raises:
        csv.Error: quotation marks that do not close or are followed by text; with the line as its second argument.
    """
    before = csv.field_size_limit(sys.maxsize)  # 131,072 characters by default
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    try:
        return [cells for cells in reader if cells]
    except csv.Error as error:
        raise csv.Error(str(error), reader.line_num) from None
    finally:
        csv.field_size_limit(before)


def _at(error: csv.Error) -> str:
    return f"line {error.args[1]}"


def _rows(path: Path, lines: Lines, header: Sequence[str], delimiter: str) -> list[dict[str, Any]]:
    names, rows = (list(header), lines) if header else (lines[0] if lines else [], lines[1:])
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path}: its first line names the column {twice[0]!r} twice: rename or remove one of them")
    for number, cells in enumerate(rows, 1):
        if len(cells) != len(names):
            raise DataError(
                f"{path}: row {number} has {len(cells)} cells, but there are {len(names)} columns "
                f"({', '.join(names)}): put cells that contain {delimiter!r} into quotation marks"
            )
    return [dict(zip(names, cells, strict=True)) for cells in rows]
