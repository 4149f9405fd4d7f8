"""What a study leaves beside its raw runs: two tables, a figure and a sentence, each replaced whole.

    results.csv   a row a run: what it was, what it came to, what it cost
    curves.csv    a row an evaluated round of a run: quality, and all costs up to there
    measures.csv  a row a number that was measured beside the runs
    figure.svg    what the study's views say, bands where there are several seeds
    finding.txt   one sentence

Nothing here runs anything. What a number that is not finite, or that a run does not have, leaves in a table is an
empty cell.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analysis.estimates import estimate
from ..report import figure
from ..run_folder import replace_text, writing
from .folders import OUTCOMES, flat
from .measured import COUNTED, Measured, Result, Run, common_loss
from .measuring import sure
from .plan import Plan
from .study import Study, View

RESULTS, CURVES, MEASURES, FIGURE, FINDING = OUTCOMES
COSTS = ("rounds", *COUNTED, "seconds")
QUALITY = ("loss", "accuracy", "perplexity")
LABELS = {
    "loss": "test loss (nats)", "accuracy": "test accuracy", "perplexity": "test perplexity",
    "train_loss": "training loss (nats)", "rounds": "rounds", "forwards": "forward passes", "flops": "FLOPs",
    "seconds": "seconds", "bytes_up": "bytes sent up", "bytes_down": "bytes sent down",
}  # fmt: skip
"""What a quantity is called on an axis, with its unit."""


@dataclass(frozen=True)
class Outcome:
    """A study that has ended; `folder` holds its files."""

    folder: Path
    plan: Plan
    measured: Measured
    finding: str


def write(plan: Plan, folder: Path, measured: Measured) -> Outcome:
    """Computes and writes all outcomes.

    Raises:
        RunStoreError: the folder cannot be written.
    """
    finding = plan.study.finding(measured)
    texts = {
        RESULTS: _table(result_rows(measured, folder)), CURVES: _table(curve_rows(measured)),
        MEASURES: _table(measure_rows(measured)),
        FIGURE: figure.draw(plan.study.question, f"{finding} {_conditions(plan)}", panels(measured)),
        FINDING: finding + "\n",
    }  # fmt: skip
    with writing(folder, "make room, then give the same command again"):
        for name, text in texts.items():
            if text:
                replace_text(folder / name, text)
    return Outcome(folder, plan, measured, finding)


def left(measured: Measured) -> tuple[list[str], str]:
    """(the names of the files that a study leaves, what they were made from)."""
    raw = [("the runs in runs/", (RESULTS, CURVES), measured.results), ("measures/", (MEASURES,), measured.taken)]
    made = [(where, names) for where, names, found in raw if found]
    return [*(name for _, names in made for name in names), FIGURE, FINDING], " and ".join(where for where, _ in made)


def _conditions(plan: Plan) -> str:
    """On what, and what a band is, for whoever sees the figure alone."""
    if plan.study.is_apart:
        return ""
    seeds, subjects = len(plan.seeds), {case.subject for case in plan.cases}
    band = f"Mean of {seeds} seeds with its 90 % band" if seeds > 1 else "One seed, hence no band"
    left_out = f" Left out: {', '.join(plan.left_out)}." if plan.left_out else ""
    if len(subjects) > 1:
        return f"{band}.{left_out}"
    return f"{band}; model {Path(plan.base.model.name).name}, task {plan.base.task.name}.{left_out}"


def result_rows(measured: Measured, folder: Path) -> list[dict[str, Any]]:
    """A row a run: first each case's results, then the runs of its grid at other rates (role "rate tried")."""
    if not measured.results:
        return []
    varied, level = _varied(measured), common_loss(measured.results)
    rows = []
    for result in measured.results:
        others = [run for run in result.tried if run not in result.runs]
        for role, runs in (("result", result.runs), ("rate tried", others)):
            rows += [_result_row(measured, result, role, run, varied, level, folder) for run in runs]
    return rows


def _varied(measured: Measured) -> list[str]:
    """The settings in which runs differ, apart from those that have a column of their own."""
    recipes = [flat(run.recipe) for result in measured.results for run in (*result.runs, *result.tried)]
    own = ("run.seed", "local.learning_rate")
    return [name for name in recipes[0] if name not in own and len({str(one[name]) for one in recipes}) > 1]


def _result_row(measured, result: Result, role: str, run: Run, varied, level, folder: Path) -> dict[str, Any]:
    settings = flat(run.recipe)
    last, best, reached = run.rows[-1], run.best, run.reached(level) if level is not None else None
    return {
        "study": measured.study.name, "case": result.label, "seed": run.recipe.run.seed, "role": role,
        **{name: settings[name] for name in varied},
        "learning_rate": run.recipe.first_rate,
        "rates_tried": " ".join(f"{one.recipe.first_rate:g}" for one in result.tried),
        "loss": _finite(run.loss), "best_loss": best.get("loss"), "best_round": best["rounds"],
        **{name: last.get(name) for name in QUALITY[1:]},
        "zero_shot_loss": run.rows[0].get("loss"),
        **{name: run.until(last, name) for name in COSTS},
        "common_loss": level, **{f"{name}_to_common_loss": reached and run.until(reached, name) for name in COSTS},
        "stopped_by": run.stopped_by, "state_digest": last.get("state_digest"),
        "recipe": (run.folder / "recipe.json").relative_to(folder).as_posix(),
    }  # fmt: skip


def curve_rows(measured: Measured) -> list[dict[str, Any]]:
    """A row an evaluated round of each result's runs; costs are sums from the first round on."""
    return [
        {
            "study": measured.study.name, "case": result.label, "seed": run.recipe.run.seed,
            "learning_rate": run.recipe.first_rate, **{name: run.until(row, name) for name in COSTS},
            "train_loss": row.get("train_loss"), **{name: row.get(name) for name in QUALITY},
        }
        for result in measured.results for run in result.runs for row in run.evaluated
    ]  # fmt: skip


def measure_rows(measured: Measured) -> list[dict[str, Any]]:
    """A row a reading; a band of its own has its low and high."""
    return [
        {"study": measured.study.name, "case": one.case, "subject": one.subject, "seed": one.seed, "measure": one.name,
         **vars(reading)}
        for one in measured.taken for reading in one.kept.readings
    ]  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def panels(measured: Measured) -> list[figure.Panel]:
    """The figure's panels, as the study's views ask for them."""
    draw = {"axis": _over_axis, "cases": _side_by_side}
    return [
        draw.get(view.over, _curves)(measured, view) if isinstance(view, View) else view(measured)
        for view in measured.study.views
    ]


def _curves(measured: Measured, view: View) -> figure.Panel:
    lines = [_curve(result, view) for result in measured.results]
    label = LABELS[view.y] + (", lowest so far" if _is_lowest(measured.study, view.y) else "")
    return figure.Panel(LABELS[view.over], label, lines, log_y=view.log_y)


def _curve(result: Result, view: View) -> figure.Line:
    """A case's mean over seeds, at the rounds that all of its runs evaluated."""
    points = []
    for rows in _aligned(result.runs):
        pairs = list(zip(result.runs, rows, strict=True))
        y = estimate([_drawn(result, view.y, *pair) for pair in pairs])
        points.append((sum(run.until(row, view.over) for run, row in pairs) / len(pairs), y))
    return _line(result.label, points)


def _drawn(result: Result, name: str, run: Run, row: Mapping[str, Any]) -> float:
    """What a curve shows of a row: what was evaluated there, or the lowest loss so far where a study goes by that."""
    if name == "loss" and result.judged_by == "best":
        return run.lowest_until(row)
    return math.nan if row.get(name) is None else row[name]


def _is_lowest(study: Study, name: str) -> bool:
    return name == "loss" and study.judged_by == "best"


def _aligned(runs: Sequence[Run]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    by_round = [{row["rounds"]: row for row in run.evaluated} for run in runs]
    for round_ in by_round[0]:
        if all(round_ in rows for rows in by_round):
            yield tuple(rows[round_] for rows in by_round)


def _line(label: str, points: Iterable[tuple[float, Any]]) -> figure.Line:
    places, estimates = zip(*points, strict=True)
    columns = [[getattr(one, name, math.nan) for one in estimates] for name in ("mean", "low", "high")]
    banded = any(one and one.half_width is not None for one in estimates)
    return figure.Line(label, places, columns[0], *(columns[1:] if banded else ()))


def _over_axis(measured: Measured, view: View) -> figure.Panel:
    """Final values over the study's axis, a line a series."""
    axis = sure(measured.study.axis)
    series = dict.fromkeys(result.series for result in measured.results)
    lines = [
        _line(name, [(sure(one.x), one.final(view.y)) for one in measured.results if one.series == name])
        for name in series
    ]
    ticks = [(x, f"{x:g}") for x in sorted({sure(result.x) for result in measured.results})]
    return figure.Panel(axis.label, _at_the_end(measured, view.y), lines, axis.log, view.log_y, ticks)


def _side_by_side(measured: Measured, view: View) -> figure.Panel:
    line = _line("", [(i, result.final(view.y)) for i, result in enumerate(measured.results)])
    ticks = [(i, result.label) for i, result in enumerate(measured.results)]
    return figure.Panel("", _at_the_end(measured, view.y), [line], log_y=view.log_y, ticks=ticks, joined=False)


def _at_the_end(measured: Measured, name: str) -> str:
    row = "best" if _is_lowest(measured.study, name) else "last"
    return f"{LABELS[name]}, {f'{row} round' if name in QUALITY else 'whole run'}"


def described(outcome: Outcome) -> dict[str, Any]:
    """A study's results as plain data: of each case, means over seeds with half the width of their bands."""
    return {
        "study": outcome.plan.study.name, "question": outcome.plan.study.question, "finding": outcome.finding,
        "folder": str(outcome.folder), "seeds": list(outcome.plan.seeds), "notes": list(outcome.plan.notes),
        "left_out": dict(outcome.plan.left_out), "cases": [_case(result) for result in outcome.measured.results],
        "measures": measure_rows(outcome.measured),
    }  # fmt: skip


def _case(result: Result) -> dict[str, Any]:
    estimates = {name: result.final(name) for name in (*QUALITY, *COUNTED)}
    return {
        "case": result.label, "x": result.x, "learning_rate": result.rate,
        "rates_tried": [run.recipe.first_rate for run in result.tried], "diverged": result.num_diverged,
        "rounds": [run.rounds for run in result.runs],
        **{name: one and {"mean": one.mean, "half_width": one.half_width} for name, one in estimates.items()},
    }  # fmt: skip
