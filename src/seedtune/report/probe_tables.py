"""Findings of one kind side by side: values with their intervals as bars, tables, and what is drawn as charts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .curves import DIGITS, rounded
from .probes import KINDS, Cell, Finding, Measured

BAR_WIDTH, BAR_MARGIN = 150, 6


@dataclass(frozen=True)
class Bar:
    """Places along a bar, from 0 to `BAR_WIDTH`: of 0, of the value and of its bounds."""

    zero: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Value:
    """One value of each finding, in order, with its bar; None where a finding, or the value, has none."""

    name: str
    cells: Sequence[tuple[Cell | None, Bar | None]]


@dataclass(frozen=True)
class Kind:
    """All findings of one kind of probe. notes: each with the labels of those that say it, none where all do.
    is_named: whether it must be said whose each finding is."""

    probe: str
    about: str
    findings: Sequence[Finding]
    values: Sequence[Value]
    notes: Sequence[tuple[str, str]]
    is_named: bool

    @property
    def has_tables(self) -> bool:
        return any(each.tables for each in self.findings)


def kinds(found: Sequence[Finding], num_runs: int) -> list[Kind]:
    """Known kinds in their order, then others by name."""
    order = {name: i for i, name in enumerate(KINDS)}
    names = sorted({each.probe for each in found}, key=lambda name: (order.get(name, len(order)), name))
    return [_kind(name, [each for each in found if each.probe == name], num_runs) for name in names]


def _kind(probe: str, found: Sequence[Finding], num_runs: int) -> Kind:
    values = [_value(name, found) for name in dict.fromkeys(name for each in found for name in each.values)]
    is_named = num_runs > 1 or len(found) > 1 or found[0].look >= num_runs
    return Kind(probe, KINDS.get(probe, ""), found, values, _notes(found), is_named)


def _value(name: str, found: Sequence[Finding]) -> Value:
    cells = [each.values.get(name) for each in found]
    return Value(name, list(zip(cells, bars(cells), strict=True)))


def bars(cells: Sequence[Cell | None]) -> list[Bar | None]:
    """Of the values that have an interval, on one scale that holds 0."""
    spans = [(cell.value, *cell.bounds) if isinstance(cell, Measured) and cell.bounds else None for cell in cells]
    ends = [0.0, *(end for span in spans if span for end in span)]
    low, high = min(ends), max(ends)
    if not low < high < float("inf") or high - low == float("inf"):
        return [None] * len(cells)

    def place(number: float) -> float:
        return round(BAR_MARGIN + (BAR_WIDTH - 2 * BAR_MARGIN) * (number - low) / (high - low), 1)

    return [Bar(place(0.0), *map(place, span)) if span else None for span in spans]


def _notes(found: Sequence[Finding]) -> list[tuple[str, str]]:
    said = dict.fromkeys(note for each in found for note in each.notes)
    by = {note: [each.label for each in found if note in each.notes] for note in said}
    return [(note, "" if len(labels) == len(found) else "; ".join(labels)) for note, labels in by.items()]


@dataclass(frozen=True)
class Chart:
    """Columns of a table over another. tables: their names, none for every table, by its name. y: each column with
    its dashes; all but the first are drawn thin. spread: a column of what is to be added and taken for the bounds."""

    probe: str
    tables: tuple[str, ...]
    x: str
    y: tuple[tuple[str, str], ...]
    title: str
    x_label: str
    is_log_x: bool = False
    is_log_y: bool = False
    spread: str = ""


_SCALED: dict[str, Any] = {"x": "mu", "x_label": "μ", "is_log_x": True, "is_log_y": True}
_ALPHA: dict[str, Any] = {"x": "alpha", "x_label": "alpha", "is_log_x": True}
_CORRELATED = ("rank correlation with the distance of labels",)
CHARTS = (
    Chart("effective-rank", ("by layer",), "block", (("trace", ""),), "Trace by layer", "layer"),
    Chart("effective-rank", ("by layer",), "block", (("effective rank", ""),), "Effective rank by layer", "layer"),
    Chart("effective-rank", ("by layer",), "block", (("effective rank of |H|, at least", ""),),
          "Effective rank of |H| by layer, at least", "layer"),
    Chart("effective-rank", ("by layer",), "block", (("largest eigenvalue", ""),), "Largest eigenvalue by layer",
          "layer", spread="residual"),
    Chart("perturbation-scale", (), y=(("error", ""), ("truncation", "7 3"), ("rounding", "2 3")),
          title="Errors in {table}, as shares", **_SCALED),
    *(Chart("heterogeneity", _CORRELATED, y=((signal, ""),), title=f"Rank correlation of {signal} with labels",
            **_ALPHA) for signal in ("loss", "update distance", "gradient distance")),
)  # fmt: skip


def charts(kind: Kind) -> Iterator[dict[str, Any]]:
    """What the page's script draws of a kind: axes and lines, a line a finding and column; nothing of a single x."""
    for chart in (each for each in CHARTS if each.probe == kind.probe):
        tables = chart.tables or tuple(dict.fromkeys(name for each in kind.findings for name in each.tables))
        for table in tables:
            if drawn := _chart(chart, table, kind.findings):
                yield drawn


def _chart(chart: Chart, table: str, found: Sequence[Finding]) -> dict[str, Any] | None:
    with_it = [each for each in found if each.tables.get(table)]
    marks = dict.fromkeys(name for each in with_it for row in each.tables[table] for name in [row.get(chart.x)])
    categories = None if chart.is_log_x else [name for name in marks if isinstance(name, str)]
    lines = [line for each in with_it for line in _lines(chart, each, table, categories)]
    if len({x for line in lines for x in line["x"]}) < 2:
        return None
    return {
        "title": chart.title.format(table=table), "x_label": chart.x_label, "categories": categories,
        "is_log_x": chart.is_log_x, "is_log_y": chart.is_log_y, "lines": lines,
        "keys": [[name, dash] for name, dash in chart.y] if len(chart.y) > 1 else [],
    }  # fmt: skip


def _lines(chart: Chart, found: Finding, table: str, categories: list[str] | None) -> Iterator[dict[str, Any]]:
    for place, (column, dash) in enumerate(chart.y):
        points = sorted(_points(chart, found.tables[table], column, categories))
        x, y, low, high = zip(*points, strict=True) if points else ((), (), (), ())
        yield {
            "run": found.look, "label": found.label, "name": column, "dash": dash, "minor": place > 0,
            "x": x, "y": y, "low": low, "high": high,
        }  # fmt: skip


def _points(
    chart: Chart, rows: Sequence[Any], column: str, categories: list[str] | None
) -> Iterator[tuple[float, float | None, float | None, float | None]]:
    """(x, y and its bounds) of the rows that have both, each x once."""
    seen = set()
    for row in rows:
        x, y = row.get(chart.x), row.get(column)
        if categories is None:
            at = x.value if isinstance(x, Measured) and x.value > 0 else None
        else:
            at = float(categories.index(x)) if x in categories else None
        if at is None or at in seen or not isinstance(y, Measured):
            continue
        seen.add(at)
        bounds = y.bounds or _spread(y.value, row.get(chart.spread) if chart.spread else None) or (None, None)
        low, high = (None if end is None else rounded(end, DIGITS) for end in bounds)
        yield at, rounded(y.value, DIGITS), low, high


def _spread(value: float, spread: Cell | None) -> tuple[float, float] | None:
    if isinstance(spread, Measured) and spread.value >= 0:
        return value - spread.value, value + spread.value
    return None
