"""What a study measured: its runs, each case's runs together, all cases together, as data.

Nothing here reads a folder (`folders`) or puts a finding into words (`findings`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..analysis.estimates import Estimate, estimate
from ..config import Recipe
from .measuring import Kept
from .study import JudgedBy, Study

COUNTED = ("forwards", "flops", "bytes_up", "bytes_down")
"""What each row of a run's metrics counts for its own round."""


@dataclass(frozen=True)
class Run:
    """A run that has ended. `rows`: its metrics, the one before the first round included; `summary`: None where it
    diverged so far that it could not go on."""

    folder: Path
    recipe: Recipe
    rows: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None

    @property
    def rounds(self) -> int:
        return self.rows[-1]["rounds"]

    @property
    def evaluated(self) -> list[Mapping[str, Any]]:
        """The rows with an evaluation: the first, every `eval_every` rounds, and the last."""
        return [row for row in self.rows if "loss" in row]

    @property
    def loss(self) -> float:
        """On the test examples after the last round; infinite where it diverged."""
        return math.inf if self.summary is None else _loss(self.rows[-1])

    @cached_property
    def best(self) -> Mapping[str, Any]:
        """The evaluated row with the lowest loss (on held-out examples where clients hold some out), the earliest of
        equals."""
        return min(self.evaluated, key=lambda row: _finite(row.get("heldout_loss", row["loss"])))

    @property
    def lowest_loss(self) -> float:
        return self.lowest_until(self.rows[-1])

    def lowest_until(self, row: Mapping[str, Any]) -> float:
        """The lowest loss that was evaluated up to a row's round, before the training loss surged: a model that was
        destroyed may answer by chance, and so better than one that was sure of what is wrong."""
        return min(_loss(one) for one in self._calm if one["rounds"] <= row["rounds"])

    @property
    def _calm(self) -> list[Mapping[str, Any]]:
        """The rows with an evaluation before the first surge."""
        return [row for row in self.evaluated if row["rounds"] < (self.first_surge or math.inf)]

    def judged(self, by: JudgedBy) -> float:
        """The loss that a study goes by."""
        return self.loss if by == "last" else self.lowest_loss

    @property
    def stopped_by(self) -> str | None:
        return "divergence" if self.summary is None else self.summary["stopped_by"]

    @property
    def first_surge(self) -> int | None:
        """The round in which the guard saw the training loss surge for the first time, counted from 1."""
        return next((row["rounds"] for row in self.rows if row.get("surge")), None)

    def total(self, counted: str) -> float:
        """Forwards, FLOPs or bytes of the whole run."""
        return sum(row.get(counted) or 0 for row in self.rows)

    def until(self, row: Mapping[str, Any], counted: str) -> float:
        """Rounds, seconds, forwards, FLOPs or bytes up to the end of a row's round."""
        if counted == "rounds":
            return row["rounds"]
        if counted == "seconds":
            return row["elapsed_seconds"]
        return sum(one.get(counted) or 0 for one in self.rows if one["rounds"] <= row["rounds"])

    def reached(self, loss: float) -> Mapping[str, Any] | None:
        """The first evaluated row whose loss is at most `loss`."""
        return next((row for row in self.evaluated if _loss(row) <= loss), None)

    def spent(self, loss: float, counted: str) -> float | None:
        """Rounds, seconds, forwards, FLOPs or bytes until `loss` was reached, the loss taken as linear between two
        evaluations; None where it never was before a surge."""
        row = next((one for one in self._calm if _loss(one) <= loss), None)
        if row is None:
            return None
        earlier = [one for one in self._calm if one["rounds"] < row["rounds"]]
        if not earlier or math.isinf(_loss(earlier[-1])):
            return self.until(row, counted)
        share = (_loss(earlier[-1]) - loss) / (_loss(earlier[-1]) - _loss(row))
        start = self.until(earlier[-1], counted)
        return start + share * (self.until(row, counted) - start)


def _loss(row: Mapping[str, Any]) -> float:
    return _finite(row.get("loss"))


def _finite(value: float | None) -> float:
    """Infinite for what was not a finite number when it was written."""
    return math.inf if value is None else value


@dataclass(frozen=True)
class Result:
    """A case's runs, one a seed, at its learning rate; `tried`: the runs of its grid, the chosen rate's included;
    `judged_by`: as the study's."""

    label: str
    series: str
    x: float | None
    runs: tuple[Run, ...]
    tried: tuple[Run, ...] = ()
    judged_by: JudgedBy = "last"
    subject: str = ""

    @property
    def rate(self) -> float:
        return self.runs[0].recipe.first_rate

    @cached_property
    def loss(self) -> Estimate | None:
        """None where a seed diverged."""
        return estimate([run.judged(self.judged_by) for run in self.runs])

    def final(self, name: str) -> Estimate | None:
        """A quality or a cost ("loss", "accuracy", "bytes_up" ...) at the end; None where a run has none."""
        if name == "loss":
            return self.loss
        if name in COUNTED:
            return self.total(name)
        return _over([run.rows[-1].get(name) for run in self.runs])

    @property
    def num_diverged(self) -> int:
        return sum(math.isinf(run.judged(self.judged_by)) for run in self.runs)

    @property
    def is_edge(self) -> bool:
        """Whether the chosen rate is the smallest or the largest of the grid: a better one may lie beyond."""
        rates = sorted(run.recipe.first_rate for run in self.tried)
        return len(rates) > 1 and self.rate in (rates[0], rates[-1])

    @property
    def surge_rounds(self) -> list[int]:
        """The first round with a surge, of each run that has one."""
        return [run.first_surge for run in self.runs if run.first_surge is not None]

    def total(self, counted: str) -> Estimate | None:
        return estimate([run.total(counted) for run in self.runs])

    def to_reach(self, loss: float, counted: str) -> Estimate | None:
        """What it took to come to `loss` for the first time; None where a seed never came there."""
        rows = [run.reached(loss) for run in self.runs]
        return _over([run.until(row, counted) if row else None for run, row in zip(self.runs, rows, strict=True)])


@dataclass(frozen=True)
class Taken:
    """A measurement of a case: of one seed, under the measure's name."""

    case: str
    subject: str
    name: str
    seed: int
    kept: Kept

    def value(self, quantity: str, part: str = "") -> float | None:
        """None where it was not measured, or is not known."""
        same = (one.value for one in self.kept.readings if (one.quantity, one.part) == (quantity, part))
        return next(same, None)


@dataclass(frozen=True)
class Measured:
    """All that a study's sentence and figure are made from, cases in the catalogue's order: the results of those with
    runs, and what else was measured."""

    study: Study
    results: tuple[Result, ...]
    num_seeds: int
    taken: tuple[Taken, ...] = ()

    def __getitem__(self, label: str) -> Result:
        return next(result for result in self.results if result.label == label)

    def over_seeds(self, case: str, name: str, quantity: str, part: str = "") -> Estimate | None:
        """The mean over seeds of one number that was measured; None where a seed has none."""
        return _over([one.value(quantity, part) for one in self.taken if (one.case, one.name) == (case, name)])


def _over(values: Sequence[float | None]) -> Estimate | None:
    """The mean over seeds; None where one of them has no value."""
    known = [value for value in values if value is not None]
    return estimate(known) if len(known) == len(values) else None


def common_loss(results: Iterable[Result]) -> float | None:
    """The lowest loss that every run came to, those that diverged apart; None where all did."""
    reached = [run.lowest_loss for result in results for run in result.runs if math.isfinite(run.loss)]
    return max(reached, default=None)
