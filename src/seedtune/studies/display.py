"""How a study looks while it goes, a line a run and on a terminal a bar, and its results as a table."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from .findings import amount
from .measured import Measured, Result, Run, Taken
from .measuring import Kept, Reading, sure
from .outcomes import Outcome, left
from .plan import Plan
from .runner import Listener, News


@contextmanager
def progress(console: Console, plan: Plan) -> Iterator[Listener]:
    """A listener that prints a line for each run that ends; on a terminal, with a bar over parts of runs too.

    First what the user should know of the plan.
    """
    for line in (*plan.notes, *(f"left out: {label}: {reason}" for label, reason in plan.left_out.items())):
        console.print(line, soft_wrap=True)
    if not console.is_terminal:
        yield lambda news: _print_news(console, news)
        return
    text = TextColumn("{task.fields[state]}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True))
    with Progress(BarColumn(bar_width=20), text, TimeElapsedColumn(), console=console) as bar:
        yield _Bar(console, bar)


class _Bar:
    """Runs that have ended, and shares of those that are running."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._shares: dict[str, float] = {}
        self._task = bar.add_task("runs", total=None, state="")

    def __call__(self, news: News) -> None:
        _print_news(self._console, news)
        state = f"{news.num_done}/{news.num_runs} runs"
        if news.job:
            total = 0 if news.job.measure else news.job.recipe.federation.num_rounds
            self._shares[news.job.name] = 0.0 if news.has_ended else news.rounds / max(1, total)
            state += f"  {news.job.name}" + (f": round {news.rounds}/{total}" if total else "")
        done = news.num_done + sum(self._shares.values())
        self._bar.update(self._task, completed=done, total=news.num_runs, state=state)


def _print_news(console: Console, news: News) -> None:
    if news.job is None and news.num_done:
        console.print(f"{news.num_done} of {news.num_runs} runs are there already", soft_wrap=True)
    elif news.job and news.has_ended:
        told = _told(news.run) if news.run else f"failed: {news.error}"
        console.print(f"{news.num_done}/{news.num_runs}  {news.job.name}  {told}", soft_wrap=True)


def _told(run: Run | Kept) -> str:
    if isinstance(run, Kept):
        return f"measured in {run.seconds:.0f} s"
    loss = f"test loss {run.loss:.3f}" if math.isfinite(run.loss) else "diverged"
    if run.lowest_loss < run.loss < math.inf:
        loss += f", lowest {run.lowest_loss:.3f}"
    stopped = f"  stopped by {run.stopped_by}" if run.stopped_by else ""
    return f"{loss}  {run.rounds} rounds in {run.rows[-1]['elapsed_seconds']:.0f} s{stopped}"


def show(console: Console, outcome: Outcome) -> None:
    """What a study came to, and where it is."""
    if outcome.measured.results:
        console.print(table(outcome.measured))
    if outcome.measured.taken:
        console.print(readings(outcome.measured.taken))
    console.print(outcome.finding, soft_wrap=True)
    files, raw = left(outcome.measured)
    console.print(f"{outcome.folder}: {', '.join(files)}, and {raw}", soft_wrap=True)


def readings(taken: tuple[Taken, ...]) -> Table:
    """A measurement a row, with its own numbers; those of parts, such as layers, are in the file alone."""
    quantities = list(dict.fromkeys(one.quantity for each in taken for one in each.kept.readings if _is_whole(one)))
    shown = Table(box=None, pad_edge=False)
    for column in ("case", "measured", "seed", *quantities):
        shown.add_column(column, overflow="fold")
    for each in taken:
        own = {one.quantity: one.value for one in each.kept.readings if _is_whole(one)}
        cells = ("" if own.get(name) is None else f"{own[name]:.4g}" for name in quantities)
        shown.add_row(each.case, each.name, str(each.seed), *cells)
    return shown


def _is_whole(one: Reading) -> bool:
    return one.part in ("", "whole")


def table(measured: Measured) -> Table:
    """A case a row: its learning rate, final quality with its band, and what a run cost in the mean."""
    shown = Table(box=None, pad_edge=False)
    for column in ("case", "rate", "test loss", "accuracy", "rounds", "forwards", "sent up"):
        shown.add_column(column, overflow="fold")
    for result in measured.results:
        shown.add_row(*_cells(result))
    return shown


def _cells(result: Result) -> tuple[str, ...]:
    accuracy = result.final("accuracy")
    costs = (sure(result.total(name)).mean for name in ("forwards", "bytes_up"))
    rounds = sorted({run.rounds for run in result.runs})
    return (
        result.label, f"{result.rate:g}", amount(result.loss) if result.loss else "diverged",
        f"{accuracy.mean:.1%}" if accuracy else "", " ".join(map(str, rounds)), *(f"{cost:,.0f}" for cost in costs),
    )  # fmt: skip
