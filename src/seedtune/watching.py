"""A run seen from beside it while it goes on: its folder is read again and again, and drawn on a terminal.

Nothing is locked, written or loaded, so a run may be watched from any number of places, also after it was stopped.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from . import run_store
from .config import Recipe
from .console import Table
from .foreign_text import MOST_REASON, sanitize
from .quantities import amount, duration, operations
from .verdict import method_name

LEVELS = "▁▂▃▄▅▆▇█"
CURVE = 40
"""Columns of a curve: the mean of as many rounds as come to one."""


@dataclass(frozen=True)
class Sight:
    """What a run's folder says. rows: one before the first round, then one a round; age: seconds since the last."""

    folder: Path
    recipe: Recipe
    rows: Sequence[Mapping[str, Any]]
    has_ended: bool
    age: float

    @property
    def num_rounds(self) -> int:
        return self.rows[-1]["rounds"] if self.rows else 0

    def known(self, name: str) -> list[tuple[int, float]]:
        """(rounds, value) of each row that has a number of that name."""
        return [(row["rounds"], row[name]) for row in self.rows if isinstance(row.get(name), (int, float))]

    def total(self, name: str) -> float:
        return sum(value for _, value in self.known(name))


def sight(folder: Path) -> Sight:
    """
    Raises:
        RunStoreError: no run there, or a damaged one.
    """
    recipe, rows = run_store.recipe_of(folder), run_store.metrics_of(folder)
    written = folder / (run_store.MANIFEST if rows else run_store.RECIPE)
    age = max(0.0, time.time() - written.stat().st_mtime)
    return Sight(folder, recipe, rows, run_store.summary_of(folder) is not None, age)


def sights(folder: Path, seconds: float) -> Iterator[Sight]:
    """The run every so many seconds, until it has ended; the last one is that of the end."""
    while True:
        seen = sight(folder)
        yield seen
        if seen.has_ended:
            return
        time.sleep(seconds)


def watch(console: Console, folder: Path, seconds: float = 1.0, once: bool = False) -> None:
    """Draws the run until it has ended; line by line, each round once, where nobody looks at a terminal."""
    if once:
        console.print(picture(sight(folder)))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for seen in sights(folder, seconds):
                live.update(picture(seen), refresh=True)
    else:
        told = 0
        for seen in sights(folder, seconds):
            for row in seen.rows[told:]:
                console.print(line(row, seen.recipe.federation.num_rounds), soft_wrap=True)
            told = len(seen.rows)


def line(row: Mapping[str, Any], num_rounds: int) -> str:
    """
    >>> line({"rounds": 3, "train_loss": 1.25, "loss": 1.5, "accuracy": 0.5, "failed": {"2": "no answer"}}, 9)
    'round 3/9  train loss 1.250  test loss 1.500  accuracy 50.0%  left out: client 2 (no answer)'
    """
    parts = [f"round {row['rounds']}/{num_rounds}"]
    for name, label, form in (("train_loss", "train loss ", ".3f"), ("loss", "test loss ", ".3f"),
                              ("accuracy", "accuracy ", ".1%"), ("epsilon", "epsilon ", ".3f")):  # fmt: skip
        if isinstance(row.get(name), (int, float)):
            parts.append(label + format(row[name], form))
    parts += [
        f"left out: client {client} ({sanitize(why, MOST_REASON)})" for client, why in row.get("failed", {}).items()
    ]
    parts += [f"SURGE: {sanitize(row['surge'])}"] if row.get("surge") else []
    return "  ".join(parts)


def picture(seen: Sight) -> Group:
    """All that is known, on a dozen lines."""
    total, recipe = seen.recipe.federation.num_rounds, seen.recipe
    head = Text(sanitize(seen.folder), style="bold")
    head.append(
        f"  {sanitize(method_name(recipe.run.method))}, {sanitize(recipe.task.name)}, "
        f"{recipe.partition.num_clients} clients",
        style="default",
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("rounds", f"{seen.num_rounds} of {total}, {_pace(seen)}")
    table.add_row("", ProgressBar(total=max(total, 1), completed=seen.num_rounds, width=CURVE))
    for name, label, form in (("train_loss", "train loss", ".3f"), ("loss", "test loss", ".3f"),
                              ("accuracy", "accuracy", ".1%"), ("perplexity", "perplexity", ".2f"),
                              ("epsilon", "epsilon", ".3f")):  # fmt: skip
        if points := seen.known(name):
            values = [value for _, value in points]
            first = f", from {values[0]:{form}}" if len(values) > 1 else ""
            table.add_row(label, f"{curve(values)} {values[-1]:{form}}{first}")
    sent = f"{amount(seen.total('bytes_up'))} up, {amount(seen.total('bytes_down'))} down"
    if not seen.recipe.is_private:
        table.add_row("sent", f"{sent}; {operations(seen.total('flops'))} floating-point operations")
    elif seen.known("bytes_up"):
        table.add_row("sent", sent)
    for text in _news(seen):
        table.add_row("", text)
    return Group(head, table)


def _pace(seen: Sight) -> str:
    """What a round takes, what is left, and when the last one was."""
    if seen.has_ended:
        elapsed = seen.rows[-1]["elapsed_seconds"]
        return "ended" if elapsed is None else f"ended after {duration(elapsed)}"
    if not seen.num_rounds:
        return f"none has ended yet, {duration(seen.age)} after the beginning"
    each = [value for _, value in seen.known("elapsed_seconds")]
    recent = each[-11:]
    if len(recent) < 2:  # of a secret cohort no times are told
        return f"the last {duration(seen.age)} ago"
    pace = (recent[-1] - recent[0]) / (len(recent) - 1)
    left = max(0.0, pace * (seen.recipe.federation.num_rounds - seen.num_rounds))
    return f"{duration(pace)} each, {duration(left)} left; the last {duration(seen.age)} ago"


def _news(seen: Sight) -> Iterator[str]:
    """The last surge, and the last client that was left out, with how many there were."""
    surges = [row for row in seen.rows if row.get("surge")]
    if surges:
        yield f"loss surge in round {surges[-1]['rounds']}: {sanitize(surges[-1]['surge'])}"
    failed = [(row["rounds"], *item) for row in seen.rows for item in row.get("failed", {}).items()]
    if failed:
        round_, client, reason = failed[-1]
        reason = sanitize(reason, MOST_REASON)
        yield f"{len(failed)} replies not usable, last that of client {client} in round {round_}: {reason}"


def curve(values: Sequence[float], width: int = CURVE) -> str:
    """Values from left to right as bars, between the lowest and the highest of them.

    >>> curve([3.0, 2.0, 1.0, 1.0]), curve([5.0]), curve([])
    ('█▅▁▁', '▁', '')
    """
    size = min(width, len(values))
    cuts = [round(i * len(values) / size) for i in range(size + 1)] if size else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((value - low) * scale)] for value in means)
