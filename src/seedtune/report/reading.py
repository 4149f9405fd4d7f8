"""A run as a report reads it: what its folder says, each value of the type it should have or left out.

A run that is going on, or was stopped, is read up to its last whole round. Files may have been altered, or come from
another seedtune: a value that is missing or of another type is "not known" (NaN or None), never an error; a folder that
holds no run, or a file that cannot be read at all, is. Nothing is written, locked or loaded.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import run_store
from ..config import Recipe
from ..foreign_text import sanitize

MOST_LETTERS = 500
"""Of one text from a file, such as a reason why a client failed."""


@dataclass(frozen=True)
class Run:
    """A run's files. `rows`: as in metrics.jsonl, row i is after i rounds, none where not even the first evaluation is
    whole; `summary`: empty while the run has not ended."""

    label: str
    folder: Path
    recipe: Recipe
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def num_rounds(self) -> int:
        """Rounds that are whole."""
        return max(0, len(self.rows) - 1)

    @property
    def has_ended(self) -> bool:
        return bool(self.summary)

    def column(self, name: str) -> np.ndarray:
        """A number of each row, float64 [rows], NaN where there is none."""
        return np.array([number(row.get(name)) for row in self.rows], dtype=np.float64)

    def totals(self, name: str) -> np.ndarray | None:
        """The sum up to each row, float64 [rows]; None where some round does not say."""
        each = self.column(name)
        if np.isnan(each[1:]).any():
            return None
        return np.cumsum(np.nan_to_num(each))

    def total(self, name: str) -> float | None:
        """The sum over all rounds; None where some round does not say, or none is whole."""
        sums = self.totals(name)
        return float(sums[-1]) if sums is not None and self.num_rounds else None

    def by_client(self, name: str) -> Iterator[tuple[int, dict[int, float]]]:
        """For each row that has it: the number of rounds, and a finite number for each client."""
        for i, row in enumerate(self.rows):
            if found := self.clients_of(row.get(name)):
                yield i, found

    def clients_of(self, values: Any) -> dict[int, float]:
        """Finite numbers by client; clients that the run does not have are left out."""
        pairs = ((client_of(key), number(value)) for key, value in mapping(values).items())
        known = self.recipe.partition.num_clients
        return {client: value for client, value in pairs if 0 <= client < known and math.isfinite(value)}


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs of some folders, in order; a folder that is named twice is read once.

    Raises:
        RunStoreError: no run there, or a damaged file. ConfigError: a recipe that this seedtune does not take.
    """
    unique = {folder.resolve(): folder for folder in folders}
    return [_read(folder, label) for folder, label in zip(unique.values(), labels(list(unique)), strict=True)]


def _read(folder: Path, label: str) -> Run:
    recipe = run_store.recipe_of(folder)
    return Run(label, folder, recipe, run_store.any_rows(folder), run_store.any_summary(folder) or {})


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart.

    >>> labels([Path("/a/b/seed-0"), Path("/a/c/seed-0"), Path("/a/demo")])
    ['b/seed-0', 'c/seed-0', 'demo']
    """
    lengths = [1] * len(folders)
    while True:
        found = ["/".join(folder.parts[-n:]) for folder, n in zip(folders, lengths, strict=True)]
        again = {name for name, count in Counter(found).items() if count > 1}
        longer = [
            n + 1 if name in again and n < len(folder.parts) else n
            for folder, n, name in zip(folders, lengths, found, strict=True)
        ]
        if longer == lengths:
            return found
        lengths = longer


def number(value: Any) -> float:
    """
    >>> number(3), number("3"), number(True), number(None), number(float("inf"))
    (3.0, nan, nan, nan, nan)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def known(value: Any) -> float | None:
    """A finite number, or None."""
    found = number(value)
    return None if math.isnan(found) else found


def text(value: Any) -> str:
    """A text on one line, fit to be shown (`foreign_text`); "" for what is no text."""
    if not isinstance(value, str):
        return ""
    return sanitize(" ".join(value.split()), MOST_LETTERS)


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def client_of(key: str) -> int:
    """A client's number, -1 for what is none."""
    return int(key) if key.isdecimal() and len(key) <= 7 else -1
