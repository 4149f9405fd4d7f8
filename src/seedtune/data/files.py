"""Rows from files: csv, tsv, json, jsonl and parquet, and which file of a folder is for training and which for testing.

Values become text as a person would write them (`True` is "true", `None` and a missing value are ""), except lists and
objects, which stay. Texts are read as UTF-8; csv, tsv, json and jsonl may be compressed with gzip. A folder that
`datasets` wrote with `save_to_disk` is read as a file. Nothing is fetched and nothing is cached.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .json_rows import is_unicode, parse_json, parse_lines
from .tables import parse_csv, parse_tsv

Row = dict[str, Any]

_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_NOT_DATA = ("readme", "license", "licence", "source", "dataset_info", "dataset_infos", "dataset_dict")
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_rows(path: Path, header: Sequence[str] = ()) -> list[Row]:
    """The rows of one file, in order; `header` names the columns of a csv or tsv that has no line of names.

    A json file is a list of objects, or an object with one such list under "data" (SQuAD's own file becomes one row a
    question).

    Raises:
        DataError: no such file, an unknown suffix, no rows, or contents that are not what the suffix says (with the
            line).
    """
    rows = _read(path, header)
    if not rows:
        raise DataError(f"{path}: has no rows; give a file with some, or take it out")
    return [as_text(row) for row in rows]


def _read(path: Path, header: Sequence[str]) -> list[Row]:
    suffix = _suffix(path)
    if _is_saved_dataset(path):
        return _read_saved(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: cannot read {suffix or 'a file without suffix'}: give {', '.join(SUFFIXES)}")
    text = read_text(path)
    if suffix in (".json", ".jsonl"):
        parse = parse_json if suffix == ".json" else parse_lines
        return parse(path, text) if text.strip() else []
    return (parse_tsv if suffix == ".tsv" else parse_csv)(path, text, header)


def _suffix(path: Path) -> str:
    """What says how a file is read: its suffix, or the one before .gz."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix if not name.endswith(".parquet.gz") else ".gz"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with line ends as "\\n"; of a .gz, what is compressed in it.

    Raises:
        DataError: no such file, not gzip, or not UTF-8.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged or no gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}; save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _read_saved(path: Path) -> list[Row]:
    """The rows of one data set that `save_to_disk` wrote; labels of a ClassLabel stay numbers."""
    import datasets

    try:
        return datasets.load_from_disk(str(path)).to_list()
    except Exception as error:  # its readers have no common class of errors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{path}: cannot be read as a folder of save_to_disk: {reason}") from None


def split_files(
    path: Path, suffixes: Sequence[str] = SUFFIXES, passed_over: Sequence[str] = ()
) -> dict[str, list[Path]]:
    """The files of each split below `path`: "train", "validation", "test", or "all" where names do not say.

    A folder's files are told apart by the word that their names begin or end with: train; validation, valid, val or
    dev; test. Where no name says, or `path` is a file, everything is "all". Sorted by name; a README, LICENSE or SOURCE
    is passed over, and whatever has one of `passed_over` in its name. Of a folder that `save_to_disk` wrote, each split
    is a folder.

    Raises:
        DataError: nothing there, no file with one of `suffixes`, or some names that say and some that do not.
    """
    if path.is_file() or _is_saved_dataset(path):
        return {"all": [path]}
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; set task.path to the task's data")
    found = sorted(f for f in path.iterdir() if _is_data(f, suffixes))
    files = [file for file in found if not any(word in _stem(file) for word in passed_over)]
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


def _is_data(file: Path, suffixes: Sequence[str]) -> bool:
    if _is_saved_dataset(file):
        return True
    return file.is_file() and _suffix(file) in suffixes and _stem(file) not in _NOT_DATA


def _stem(file: Path) -> str:
    return file.name.lower().removesuffix(".gz").removesuffix(_suffix(file))


def _split_of(file: Path) -> str | None:
    words = re.split("[^a-z]+", _stem(file))
    for word in (words[0], words[-1]):
        for split, names in _SPLITS.items():
            if word in names:
                return split
    return None


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

    >>> text_of(True), text_of(3), text_of(None), text_of(float("nan")), text_of("x")
    ('true', '3', '', '', 'x')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas has no other word for a missing one
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_texts(row: Row, names: Iterable[str], place: str) -> None:
    """Check that the row at `place` has a text in each of the columns `names`.

    Raises:
        DataError: it lacks one, or has a list or an object there, or half a pair of surrogates.
    """
    for name in names:
        if name not in row:
            raise DataError(f"{place}: has no column {name!r}, only {', '.join(row)}")
        if not isinstance(row[name], str):
            raise DataError(f"{place}: column {name!r} is {_shortened(row[name])}, {_expected(row[name])}")
        if not is_unicode(row[name]):
            raise DataError(f"{place}: column {name!r} has half of a pair of surrogates, which no text has: mend it")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _expected(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict) and {"role", "from"} & value[0].keys():
        return (
            "turns of a chat, which no task reads: write the last answer and what came before it into two columns, "
            "prompt and completion, for the task 'prompt-completion'"
        )
    return "expected a text or a number"
