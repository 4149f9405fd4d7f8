"""What a study is, as data: one question, the cases that answer it, what its figure shows and how its sentence is made.

Nothing here runs anything, and nothing here loads torch: a list of studies is printed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..report.figure import Panel
    from .measured import Measured

JudgedBy = Literal["last", "best"]
Finding = Callable[["Measured"], str]
"""One sentence, computed from what was measured."""
Draw = Callable[["Measured"], "Panel"]
"""A panel of a study's own, for what no `View` shows."""


@dataclass(frozen=True)
class Measure:
    """What is measured of a case beside its runs, or in their place.

    name: in tables, and its folder. what: one of `measuring.WAYS`. options: that way's own.
    at: "start": the weights before the first round, of each seed; "end": each of the case's runs, once it has ended;
    "apart": neither run nor recipe, once, since the options say all.
    """

    name: str
    what: str
    at: Literal["start", "end", "apart"] = "start"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One of the things that a study compares.

    label: its name in tables and, as a slug, its folder; "{x}" stands for the value of the study's axis.
    method: a method preset laid over the base. over: settings laid over that, section by section.
    times: numbers ("section.key") as multiples of the base's; whole numbers are rounded, and stay at least 1.
    rates: a grid of learning rates, as multiples of the case's own: each is run on the first seed, and the one with
    the lowest loss (`Study.judged_by`) is the case's. Empty: it keeps its own.
    most_rates: while the best rate lies at an edge of the grid, the grid goes on there by its own ratio, up to so many
    rates in all; 0: the grid is as it stands.
    series: cases of one series are one line where final values are drawn over the axis.
    most_seeds: as many seeds at most, for what seeds do not change, such as bytes; None: as many as the study has.
    measures: what is measured of it. trained: whether it has runs at all. in_quick: whether `--quick` keeps it.
    """

    label: str
    over: Mapping[str, Any] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    method: str | None = None
    series: str = ""
    most_seeds: int | None = None
    most_rates: int = 0
    measures: tuple[Measure, ...] = ()
    trained: bool = True
    in_quick: bool = True


@dataclass(frozen=True)
class Axis:
    """The setting that a study sweeps ("section.key"), its symbol in a sentence, its name with unit on an axis."""

    setting: str
    symbol: str
    label: str
    log: bool = True


@dataclass(frozen=True)
class View:
    """One panel of the figure.

    over: "rounds", "forwards", "flops", "seconds" or "bytes_up" for curves, a line a case; "axis" for final values over
    the study's axis, a line a series; "cases" for final values side by side.
    """

    over: str = "rounds"
    y: str = "loss"
    log_y: bool = False


@dataclass(frozen=True)
class Study:
    """A study.

    source: where the question comes from. base: settings laid over the recipe `study`, for all cases; the user's are
    laid over them. fixed: settings without which it would be another study; the user cannot set them.
    quick: share of the rounds that `--quick` keeps, on one seed.
    budget: "rounds": all cases have as many rounds; "flops": all spend what the first case spends, as nearly as whole
    rounds allow; what a round costs is measured on a run of one round.
    judged_by: a run's loss on the test examples: after the last round, or the lowest that was evaluated, which is what
    a user keeps of a run that went on too long.
    over_subjects: whether the user may name further models and tasks, on which all cases are made again.
    """

    name: str
    question: str
    source: str
    cases: tuple[Case, ...]
    finding: Finding
    views: tuple[View | Draw, ...] = (View(),)
    base: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    axis: Axis | None = None
    num_seeds: int = 3
    quick: float = 0.25
    budget: Literal["rounds", "flops"] = "rounds"
    judged_by: JudgedBy = "last"
    over_subjects: bool = False

    @property
    def is_apart(self) -> bool:
        """Whether nothing in it depends on a recipe."""
        return all(not case.trained and {one.at for one in case.measures} == {"apart"} for case in self.cases)
