"""Runs of a study: which are left to do, and one JSON line for each that has ended.

Each method is run at every rate of its grid on seed 0; where the best rate is the smallest or the largest that was
tried, the next one is tried too. Then each seed is run at that rate, and with measured rates. A file that exists is
continued: what it holds is not run again.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
GRID, MEASURED = "best of grid", "measured"
MOST_RATES = 8
"""Rates that a grid grows to at most."""


@dataclass(frozen=True)
class Job:
    """One run. rates: `GRID` or `MEASURED`; rate: the learning rate, None where it is measured."""

    task: str
    method: str
    rates: str
    rate: float | None
    seed: int
    budget: int


class Results:
    """Rows of a file of JSON lines, found by their jobs."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = read_rows(path) if path.exists() else []

    def find(self, job: Job) -> Row | None:
        """Return the row of a job, None where it has not ended."""
        wanted = asdict(job)
        return next((row for row in self.rows if row["job"] == wanted), None)

    def add(self, job: Job, found: Row) -> Row:
        """Append a row to the file and return it."""
        row = {"job": asdict(job), **found}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Plan:
    """All runs of one task.

    grids: the rates of each method. measurable: the methods that can measure theirs. do: runs a job, or finds its row.
    """

    task: str
    budget: int
    num_seeds: int
    grids: Mapping[str, Sequence[float]]
    measurable: frozenset[str]
    do: Callable[[Job], Row]

    def run(self) -> None:
        """Run everything: grids first, then seed by seed, so that methods stay paired wherever it is stopped."""
        best = {method: self._best_rate(method) for method in self.grids}
        for seed in range(self.num_seeds):
            for method, rate in best.items():
                if method in self.measurable:
                    self.do(Job(self.task, method, MEASURED, None, seed, self.budget))
                self.do(Job(self.task, method, GRID, rate, seed, self.budget))

    def _best_rate(self, method: str) -> float:
        losses: dict[float, float] = {}
        for rate in self.grids[method]:
            losses[rate] = self._loss(method, rate)
        while len(losses) < MOST_RATES and (rate := next_rate(losses)):
            losses[rate] = self._loss(method, rate)
        return min(losses, key=losses.__getitem__)

    def _loss(self, method: str, rate: float) -> float:
        found = self.do(Job(self.task, method, GRID, rate, 0, self.budget))["loss"]
        return math.inf if found is None else found


def next_rate(losses: Mapping[float, float]) -> float | None:
    """Return the rate to try next; None where the best lies between two that were tried.

    >>> next_rate({0.1: 0.5, 0.3: 0.4, 1.0: 0.3}), next_rate({0.1: 0.5, 0.3: 0.4, 1.0: 0.6})
    (3.0, None)
    """
    best = min(losses, key=losses.__getitem__)
    if best == max(losses):
        return step_rate(best, 1)
    return step_rate(best, -1) if best == min(losses) else None


def step_rate(rate: float, steps: int) -> float:
    """Return a rate of the ladder ..., 0.1, 0.3, 1, 3, ... so many steps away.

    >>> step_rate(0.3, 1), step_rate(0.3, -1), step_rate(1.0, 1)
    (1.0, 0.1, 3.0)
    """
    return float(f"{10 ** ((round(2 * math.log10(rate)) + steps) / 2):.0e}")


def best_rates(rows: Sequence[Row]) -> dict[str, float]:
    """Return each method's rate of lowest test loss on seed 0, of those in its grid."""
    return {method: min(found, key=found.__getitem__) for method, found in rates_tried(rows).items()}


def rates_tried(rows: Sequence[Row]) -> dict[str, dict[float, float]]:
    """Return the final test loss at each rate that a method tried on seed 0, infinite where it diverged."""
    found: dict[str, dict[float, float]] = {}
    for job, row in _jobs(rows):
        if job.rates == GRID and job.seed == 0:
            found.setdefault(job.method, {})[job.rate or 0.0] = math.inf if row["loss"] is None else row["loss"]
    return found


def _jobs(rows: Sequence[Row]) -> Iterator[tuple[Job, Row]]:
    return ((Job(**row["job"]), row) for row in rows)
