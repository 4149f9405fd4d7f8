"""How a run looks while it goes: a progress bar on a terminal, plain lines elsewhere, and tables of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from .console import pairs, table
from .foreign_text import MOST_REASON, sanitize
from .heartbeat import Clock, Heartbeat, Pace
from .progress import Watch, watching
from .quantities import amount, duration

if TYPE_CHECKING:  # a list of recipes is printed without loading torch
    from .experiment import Listener
    from .fed.rounds import RoundResult
    from .metrics import Evaluated

PLAIN_LINES = 20
"""A piped run prints about this many lines, and one for each evaluation."""
SILENCE, LOOK, MOMENT = 10.0, 1.0, 0.5
"""Seconds: the longest that nothing is said, between two looks for that, and that a phase lasts before it is shown."""


@contextmanager
def progress(console: Console, num_rounds: int, sent: int = 0, clock: Clock = time.monotonic) -> Iterator[Listener]:
    """A listener that shows rounds as they end: loss, quality, bytes sent in all, time left.

    Phases (`progress.phase`) show too. Where nobody looks at a terminal a line comes every `SILENCE` seconds at least.
    `sent`: bytes of the rounds before an interruption.
    """
    with watching() as watch:
        if not console.is_terminal:
            lines = _PlainLines(console, num_rounds, sent, watch, clock)
            with lines.heartbeat.beating():
                yield lines
            return
        done, left = (column(table_column=Column(no_wrap=True)) for column in (MofNCompleteColumn, TimeRemainingColumn))
        state = _State(watch, table_column=Column(overflow="ellipsis", no_wrap=True))
        with Progress(BarColumn(bar_width=8), done, state, left, console=console) as bar:
            yield _Bar(bar, num_rounds, sent)


@contextmanager
def waiting(console: Console) -> Iterator[None]:
    """Show the phases of work that has no rounds, on `console`: a line that is drawn again, or one now and then."""
    with watching() as watch:
        began = time.monotonic()

        def beat() -> None:
            if watch.innermost:
                console.print(f"{watch.innermost}  {duration(round(time.monotonic() - began))} so far", soft_wrap=True)

        if not console.is_terminal:
            with Heartbeat(beat, SILENCE).beating():
                yield
            return
        with Progress(SpinnerColumn(), _State(watch), console=console, transient=True) as bar:
            bar.add_task("", total=None, state="")
            yield


class _State(ProgressColumn):
    """The phase that goes on, once it has lasted a moment; else what the task's field `state` says."""

    def __init__(self, watch: Watch, table_column: Column | None = None) -> None:
        super().__init__(table_column=table_column)
        self._watch = watch

    def render(self, task: Task) -> Text:
        phase = self._watch.innermost
        is_worth_saying = phase is not None and time.monotonic() - phase.began > MOMENT
        return Text(str(phase) if is_worth_saying else task.fields["state"])


class _Bar:
    """Everything that is known of a run so far, on one line that is drawn again."""

    def __init__(self, bar: Progress, num_rounds: int, sent: int) -> None:
        self._bar, self._sent, self._quality = bar, sent, ""
        self._task = bar.add_task("rounds", total=num_rounds, state="")

    def __call__(self, num_rounds: int, result: RoundResult | None, evaluation: Evaluated | None) -> None:
        self._sent += _bytes_of(result)
        self._quality = quality(evaluation).replace("test loss", "test") if evaluation else self._quality
        training = _training(result).replace("train loss", "train")  # 80 columns hold it all
        if surge := _surge(result):  # above the bar, where it stays: the bar has no room, and shows the next round soon
            self._bar.console.print(f"round {num_rounds}: {surge}", markup=False, soft_wrap=True)
        state = _joined(training, self._quality, amount(self._sent), _left_out(result))
        self._bar.update(self._task, completed=num_rounds, state=state)


class _PlainLines:
    """A line for each piece of news, some between, and one where nothing was said for long."""

    def __init__(self, console: Console, num_rounds: int, sent: int, watch: Watch, clock: Clock) -> None:
        self._console, self._total, self._sent, self._watch = console, num_rounds, sent, watch
        self._pace, self._clock, self._said = Pace(num_rounds, clock), clock, clock()
        self.heartbeat = Heartbeat(self.beat, LOOK)

    def __call__(self, num_rounds: int, result: RoundResult | None, evaluation: Evaluated | None) -> None:
        self.heartbeat.check()
        self._sent += _bytes_of(result)
        self._pace.note(num_rounds, result is not None)
        is_resumed = result is None and evaluation is None
        is_news = is_resumed or evaluation is not None or bool(result and (result.failed or result.surge))
        if is_news or num_rounds % max(1, self._total // PLAIN_LINES) == 0:
            text = "resumed" if is_resumed else _joined(
                _training(result), quality(evaluation) if evaluation else "", f"sent {amount(self._sent)}",
                _left_out(result), _surge(result), self._pace.left(SILENCE),
            )  # fmt: skip
            self._say(f"round {num_rounds}/{self._total}  {text}")

    def beat(self) -> None:
        """Say where the run is, if nothing was said for `SILENCE` seconds."""
        if self._clock() - self._said >= SILENCE:
            pace, phase = self._pace, self._watch.innermost
            doing = str(phase) if phase else f"round {pace.done + 1} goes on"
            self._say(_joined(f"round {pace.done}/{self._total}", doing, pace.so_far(), pace.left()))

    def _say(self, text: str) -> None:
        self._said = self._clock()
        self._console.print(text, soft_wrap=True)


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def _bytes_of(result: RoundResult | None) -> int:
    return result.bytes_up + result.bytes_down if result else 0


def _training(result: RoundResult | None) -> str:
    if not result:
        return ""
    return f"train loss {result.train_loss:.3f}" if result.epsilon is None else f"epsilon {result.epsilon:.3f}"


def _surge(result: RoundResult | None) -> str:
    if not result or not result.surge:
        return ""
    back = result.record.back_to
    return f"SURGE: {result.surge}" + ("" if back is None else f"; back to round {back}, at half the rate")


def _left_out(result: RoundResult | None) -> str:
    """The first of the clients that failed, and why; the others are in metrics.jsonl."""
    if not result or not result.failed:
        return ""
    client = min(result.failed)
    others = f", and {len(result.failed) - 1} more" if len(result.failed) > 1 else ""
    return f"left out: client {client} ({sanitize(result.failed[client], MOST_REASON)}){others}"


def quality(evaluation: Evaluated) -> str:
    """An evaluation in a few words."""
    test = evaluation.test
    if test.accuracy is not None:
        return f"test loss {test.loss:.3f}  accuracy {test.accuracy:.1%}"
    return f"test loss {test.loss:.3f}  perplexity {test.perplexity:.2f}"


def classes(rows: Sequence[dict[str, Any]]) -> Table:
    """How well each class was told from the others, one a row."""
    shown = table("class", "examples", "precision", "recall", "F1", "most often taken for")
    for row in rows:
        shares = ("none" if row[name] is None else f"{row[name]:.1%}" for name in ("precision", "recall", "f1"))
        shown.add_row(row["class"], str(row["examples"]), *shares, row["mistaken_for"] or "")
    return shown


def confusion(rows: Sequence[dict[str, Any]], counts: Sequence[Sequence[int]]) -> Table:
    """How many examples of each class, a row, were taken for which, a column by its number."""
    shown = table("confusion: class", *(str(number) for number in range(1, len(rows) + 1)))
    for number, (row, taken) in enumerate(zip(rows, counts, strict=True), start=1):
        shown.add_row(f"{number} {row['class']}", *map(str, taken))
    return shown


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Told how far a probe is, it shows so on one line of a terminal; elsewhere a line as each stage begins."""
    if not console.is_terminal:
        begun: list[str] = []

        def tell(stage: str, done: int, total: int | None) -> None:
            if not begun or begun[-1] != stage:
                begun.append(stage)
                console.print(stage, soft_wrap=True)

        yield tell
        return
    with console.status("") as status:
        yield lambda stage, done, total: status.update(f"{stage}  {done}" + (f"/{total}" if total else ""))


def finding_lines(found: dict[str, Any]) -> Iterator[Table | str]:
    """A probe's finding in JSON's form: what was probed, numbers with their intervals, tables, cost and notes."""
    yield pairs(found["about"])
    yield ""
    yield pairs({name: _measured(value) for name, value in found["values"].items()})
    for name, rows in found["tables"].items():
        if rows:
            yield f"\n{name}"
            shown = table(*rows[0])
            for row in rows:
                shown.add_row(*(_measured(value) for value in row.values()))
            yield shown
    yield ""
    spent = ", ".join(f"{value:g} {name.replace('_', ' ')}" for name, value in found["cost"].items() if value)
    yield f"cost: {spent}"
    yield from (f"note: {note}" for note in found["notes"])


def _measured(value: Any) -> str:
    """A number, or [value, low, high]."""
    if isinstance(value, list):
        middle, *bounds = (_measured(part) for part in value)
        return middle if value[1] is None and value[2] is None else f"{middle} ({bounds[0]} to {bounds[1]})"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
