"""How a run looks while it goes: a progress bar on a terminal, plain lines elsewhere, and tables of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from .console import pairs, table
from .quantities import amount, operations

if TYPE_CHECKING:  # a list of recipes is printed without loading torch
    from .experiment import Listener
    from .fed.rounds import RoundResult
    from .metrics import Evaluated

PLAIN_LINES = 20
"""A piped run prints about this many lines, and one for each evaluation."""


@contextmanager
def progress(console: Console, num_rounds: int, sent: int = 0) -> Iterator[Listener]:
    """A listener that shows rounds as they end: loss, quality, bytes sent in all, time left.

    `sent`: bytes of the rounds before an interruption.
    """
    if not console.is_terminal:
        yield _PlainLines(console, num_rounds, sent)
        return
    done, left = (column(table_column=Column(no_wrap=True)) for column in (MofNCompleteColumn, TimeRemainingColumn))
    state = TextColumn("{task.fields[state]}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True))
    with Progress(BarColumn(bar_width=8), done, state, left, console=console) as bar:
        yield _Bar(bar, num_rounds, sent)


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
    """A line for each piece of news, and some between."""

    def __init__(self, console: Console, num_rounds: int, sent: int) -> None:
        self._console, self._total, self._sent = console, num_rounds, sent

    def __call__(self, num_rounds: int, result: RoundResult | None, evaluation: Evaluated | None) -> None:
        self._sent += _bytes_of(result)
        is_resumed = result is None and evaluation is None
        is_news = is_resumed or evaluation is not None or bool(result and (result.failed or result.surge))
        if is_news or num_rounds % max(1, self._total // PLAIN_LINES) == 0:
            text = "resumed" if is_resumed else _joined(
                _training(result), quality(evaluation) if evaluation else "", f"sent {amount(self._sent)}",
                _left_out(result), _surge(result),
            )  # fmt: skip
            self._console.print(f"round {num_rounds}/{self._total}  {text}", soft_wrap=True)


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
    return f"left out: client {client} ({result.failed[client]}){others}"


def quality(evaluation: Evaluated) -> str:
    """An evaluation in a few words."""
    test = evaluation.test
    if test.accuracy is not None:
        return f"test loss {test.loss:.3f}  accuracy {test.accuracy:.1%}"
    return f"test loss {test.loss:.3f}  perplexity {test.perplexity:.2f}"


def results(summary: dict[str, Any], folder: Path) -> Iterator[Table | str]:
    """What a run came to: quality, what a reader must know of the way there, traffic, time, digest."""
    yield outcome(summary)
    for name, text in _NOTES.items():
        if summary[name]:
            yield f"{summary[name]} {text}"
    yield from events(summary)
    if privacy := summary.get("privacy"):
        yield spent(privacy)
    both = f"{sent(summary['bytes_up'])} up, {sent(summary['bytes_down'])} down"
    each = [summary[f"bytes_{way}_per_client_round"] for way in ("up", "down")]
    if None not in each:
        both += f" ({amount(each[0])} and {amount(each[1])} a client and round)"
    yield f"sent in all: {both}; the tuned model is {folder}/trajectory.seedtune, {amount(summary['trajectory_bytes'])}"
    if summary["round_seconds"] is not None:
        pace = summary["round_seconds"] / max(1, summary["rounds"])
        yield f"{summary['rounds']} rounds in {summary['seconds']:.0f} s ({pace:.3f} s a round, evaluation apart)"
    yield f"state digest {summary['state_digest']}"


_NOTES = {
    "truncated_examples": "examples were cut to the task's window",
    "skipped_steps": "local steps were skipped, since a loss was not finite",
    "failed_replies": "replies were missing or not usable; metrics.jsonl names clients and reasons",
}


def outcome(summary: dict[str, Any]) -> Table:
    """Zero-shot, tuned and, where it was run, backpropagation, side by side."""
    name, form = ("accuracy", ".1%") if summary["zero_shot_accuracy"] is not None else ("perplexity", ".2f")
    shown = table("", name, "test loss")
    labels = {"zero_shot_": "zero-shot", "": f"tuned ({summary['method']})", "backprop_": "backpropagation"}
    for prefix, label in labels.items():
        if prefix != "backprop_" or summary["backprop_steps"]:
            shown.add_row(label, _number(summary[f"{prefix}{name}"], form), _number(summary[f"{prefix}loss"], ".3f"))
    return shown


def events(summary: dict[str, Any]) -> list[str]:
    """What a reader of the results must know of the way there: surges, an early end, a better round before the last."""
    found = [f"loss surge in round {rounds}: {reason}" for rounds, reason in summary["surges"].items()]
    if summary["stopped_by"]:
        reasons = {
            "patience": "no better evaluation for run.patience of them", "surge": "the loss surged",
            "privacy": "another round would be worth more than privacy.target_epsilon",
            "divergence": "nothing that clients sent was finite any more; these are the last weights that were",
        }  # fmt: skip
        ended = "diverged" if summary["stopped_by"] == "divergence" else "ended early"
        found.append(f"{ended}, after {summary['rounds']} rounds: {reasons[summary['stopped_by']]}")
    if summary["best_rounds"] != summary["rounds"] and summary["best_loss"] is not None:
        best = _number(summary["best_loss"], ".3f")
        found.append(f"best evaluation: test loss {best} after {summary['best_rounds']} rounds (replay --round)")
    return found


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _seconds(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.1f}"


def side_by_side(rows: Sequence[dict[str, Any]]) -> Table:
    """Runs compared, one a row."""
    shown = table("run", "method", "rounds", "loss", "accuracy", "up", "down", "forwards", "FLOPs", "seconds")
    for row in rows:
        quality_ = "" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        loss = _number(row["loss"], ".4f")
        both = (sent(row["bytes_up"]), sent(row["bytes_down"]))
        shown.add_row(row["run"], row["method"], str(row["rounds"]), loss, quality_, *both,
                      _forwards(row["forwards"]),
                      _counted(row["flops"]), _seconds(row["seconds"]))  # fmt: skip
    return shown


def at_target(rows: Sequence[dict[str, Any]]) -> Table:
    """Runs compared by what they needed to one target, one a row; those that never reached it by their best."""
    measure, target = rows[0]["measure"], rows[0]["target"]
    bound, form = {"accuracy": (">=", ".1%"), "loss": ("<=", ".4f")}[measure]
    shown = table("run", "method", f"{measure} {bound} {target:g}", "rounds", "FLOPs", "forwards", "seconds", "up",
                   "down")  # fmt: skip
    for row in rows:
        if (needed := row["reached"]) is None:
            shown.add_row(row["run"], row["method"], f"not reached, best {_number(row['best'], form)}")
            continue
        both = (sent(needed["bytes_up"]), sent(needed["bytes_down"]))
        reached, flops = format(needed[measure], form), _counted(needed["flops"])
        shown.add_row(row["run"], row["method"], reached, str(needed["rounds"]), flops,
                      _forwards(needed["forwards"]), _seconds(needed["seconds"]), *both)  # fmt: skip
    return shown


def spent(privacy: dict[str, Any]) -> str:
    """A private run's ledger in a line."""
    return (
        f"privacy: epsilon {privacy['epsilon']:.3f} at delta {privacy['delta']:g}, for each {privacy['unit']} "
        f"({privacy['neighbours']}), {privacy['noise']} noise of {privacy['noise_multiplier']:.3f} times the clip, "
        f"{privacy['events']} rounds"
    )


def sent(num_bytes: int | None) -> str:
    """An amount of bytes, if it may be told."""
    return "withheld" if num_bytes is None else amount(num_bytes)


def _forwards(count: int | None) -> str:
    return "withheld" if count is None else str(count)


def _counted(flops: int | None) -> str:
    return "not counted" if flops is None else operations(flops)


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
