"""What a model answered on the test examples: confusion matrices, samples, and what guessing would come to.

All of it is read from a run's files and checked: a part of another type, or one that does not fit the others, is left
out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import verdict
from ..quantities import amount, duration
from . import facts
from .reading import Run, known, mapping, text

MOST_CLASSES, MOST_SAMPLES, SHADES = 50, 8, 9


@dataclass(frozen=True)
class Cell:
    """How many examples of a class were given which; shade: 0 to `SHADES`, by their share of the class."""

    count: int
    shade: int
    is_right: bool


@dataclass(frozen=True)
class Confusion:
    """A row a class as it is, a column a class as it was answered; right: examples of a class answered rightly."""

    when: str
    labels: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def shares(self) -> list[str]:
        """Of each class, how many were answered rightly."""
        totals = [sum(cell.count for cell in row) for row in self.rows]
        return [
            f"{row[i].count / total:.0%} of {total}" if total else "none"
            for i, (row, total) in enumerate(zip(self.rows, totals, strict=True))
        ]


@dataclass(frozen=True)
class Sample:
    """A test example with its answers; None where the run did not keep one."""

    text: str
    truth: str
    before: str | None
    after: str | None


def story(run: Run) -> list[str]:
    """What was tried and how it went, in two or three sentences."""
    recipe = run.recipe
    clients = recipe.partition.num_clients
    who = f"{clients} clients" if clients != 1 else "One client"
    tried = (
        f"{who} tuned {facts.model(run)} on {recipe.task.name} by {verdict.way(recipe.run.method, recipe.local.order)}"
    )
    spent = [f"{run.num_rounds} of {recipe.federation.num_rounds} rounds"]
    if run.rows and (seconds := known(run.rows[-1].get("elapsed_seconds"))) is not None:
        spent.append(duration(seconds))
    up, down = run.total("bytes_up"), run.total("bytes_down")
    if up is not None and down is not None:
        spent.append(f"{amount(up + down)} sent")
    went = verdict.sentences(run.summary) if run.has_ended else [verdict.so_far(run.rows)]
    return [f"{tried}: {', '.join(spent)}.", *(sentence.replace(" -> ", " → ") for sentence in went)]


def confusions(run: Run) -> list[Confusion]:
    """After tuning, and before it; what a run did not keep is left out."""
    kept = {"after tuning": run.summary, "before tuning": run.rows[0] if run.rows else {}}
    return [found for when, values in kept.items() if (found := _confusion(when, values))]


def _confusion(when: str, values: Mapping[str, Any]) -> Confusion | None:
    labels, counts = _labels(values), values.get("confusion")
    if not labels or not isinstance(counts, list) or len(counts) != len(labels):
        return None
    if not all(isinstance(row, list) and len(row) == len(labels) and all(map(_is_count, row)) for row in counts):
        return None
    rows = tuple(
        tuple(Cell(count, _shade(count, sum(row)), i == j) for j, count in enumerate(row))
        for i, row in enumerate(counts)
    )
    return Confusion(when, labels, rows)


def _labels(values: Mapping[str, Any]) -> tuple[str, ...]:
    labels = values.get("labels")
    if not isinstance(labels, list) or not 2 <= len(labels) <= MOST_CLASSES:
        return ()
    return tuple(text(label) or "(no name)" for label in labels)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _shade(count: int, total: int) -> int:
    return round(SHADES * count / total) if total else 0


def samples(run: Run) -> list[Sample]:
    """Test examples as the run kept them: with both answers once it has ended."""
    kept = run.summary.get("samples") or (run.rows[0].get("samples") if run.rows else None)
    return list(_samples(kept)) if isinstance(kept, list) else []


def _samples(kept: list[Any]) -> Iterator[Sample]:
    for each in map(mapping, kept[:MOST_SAMPLES]):
        before, after = each.get("before", each.get("predicted")), each.get("after")
        if text(each.get("text")) and text(each.get("truth")):
            yield Sample(text(each["text"]), text(each["truth"]), text(before) or None, text(after) or None)


def guides(run: Run) -> dict[str, float]:
    """Accuracies that need no model: of a guess among the classes, and of the class that comes most often."""
    found = next(iter(confusions(run)), None)
    if found is None:
        return {}
    totals = [sum(cell.count for cell in row) for row in found.rows]
    share = {"the most frequent class": max(totals) / sum(totals)} if sum(totals) else {}
    return {"chance": 1 / len(found.labels), **share}
