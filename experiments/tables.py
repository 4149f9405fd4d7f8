"""Markdown tables of a study's rows: means over paired seeds with their 95 % intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t

from experiments.jobs import GRID, Job, Row, best_rates, rates_tried

LEVEL = 0.95
HEADER = (
    "method", "learning rate", "seeds", "accuracy, %", "to the best, points", "test loss", "forwards",
    "GFLOP behind", "kB up", "kB down", "seconds, least",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A method at one choice of rates: the row of each seed."""

    method: str
    rates: str
    of_seed: dict[int, Row]

    @property
    def accuracy(self) -> float:
        return fmean(row["accuracy"] for row in self.of_seed.values())


def interval(values: Sequence[float]) -> str:
    """Return a mean with the half width of its 95 % interval by Student's t; of one value, no interval.

    >>> interval([1.0, 2.0, 3.0]), interval([2.0])
    ('2.0 ± 2.5', '2.0')
    """
    if len(values) < 2:
        return format(fmean(values), ".1f")
    half = student_t.ppf((1 + LEVEL) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.1f} ± {half:.1f}"


def markdown(rows: Sequence[Row], task: str, budget: int) -> str:
    """Return the table of what is known of a task at a budget, best accuracy first; and what else was measured.

    Differences are paired by seed, to the forward-only method of highest mean accuracy, over the seeds of both.
    """
    own = [row for row in rows if row["job"]["task"] == task and row["job"]["budget"] == budget]
    lines = sorted(_lines(own), key=lambda line: -line.accuracy)
    if not lines:
        return f"Nothing is known of {task} at {budget} forward passes."
    best = next((line for line in lines if _is_forward_only(line)), lines[0])
    tried = rates_tried(own)
    table = [HEADER, ("---",) * len(HEADER), _zero_shot(own[0]), *(_cells(line, best, tried) for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _lines(rows: Sequence[Row]) -> Iterator[Line]:
    """Each method with measured rates, and at the best rate of its grid."""
    best, found = best_rates(rows), dict[tuple[str, str], dict[int, Row]]()
    for row in rows:
        job = Job(**row["job"])
        if job.rates != GRID or job.rate == best[job.method]:
            found.setdefault((job.method, job.rates), {})[job.seed] = row
    return (Line(*names, of_seed) for names, of_seed in found.items())


def _is_forward_only(line: Line) -> bool:
    return all(row["is_forward_only"] for row in line.of_seed.values())


def _zero_shot(row: Row) -> tuple[str, ...]:
    blank = ("",) * (len(HEADER) - 6)
    return ("zero-shot", "", "", f"{100 * row['zero_shot_accuracy']:.1f}", "", f"{row['zero_shot_loss']:.3f}", *blank)


def _cells(line: Line, best: Line, tried: dict[str, dict[float, float]]) -> tuple[str, ...]:
    rows = list(line.of_seed.values())
    shared = sorted(line.of_seed.keys() & best.of_seed.keys())
    apart = [100 * (line.of_seed[seed]["accuracy"] - best.of_seed[seed]["accuracy"]) for seed in shared]
    is_best = (line.method, line.rates) == (best.method, best.rates)
    return (
        line.method, _rate(line, tried), str(len(rows)), interval([100 * row["accuracy"] for row in rows]),
        "best" if is_best else interval(apart) if apart else "",
        _mean(rows, "loss", ".3f"), _mean(rows, "forwards", ",.0f"), _mean(rows, "flops", ".3g", 1e9),
        _mean(rows, "bytes_up", ",.0f", 1e3), _mean(rows, "bytes_down", ",.0f", 1e3),
        f"{least:.0f}" if (least := min(row["round_seconds"] for row in rows)) else "",
    )  # fmt: skip


def _rate(line: Line, tried: dict[str, dict[float, float]]) -> str:
    rates = [row["first_rate"] for row in line.of_seed.values()]
    if line.rates != GRID:
        return f"measured ({min(rates):.2g} to {max(rates):.2g} at first)"
    grid = tried[line.method]
    return f"{rates[0]:g} (of {min(grid):g} to {max(grid):g})"


def _mean(rows: Sequence[Row], name: str, form: str, unit: float = 1.0) -> str:
    """Empty where none was counted, as bytes are not where all examples are in one place."""
    values = [row[name] for row in rows]
    if not any(values) and None not in values:
        return ""
    return "not finite" if None in values else format(fmean(values) / unit, form)
