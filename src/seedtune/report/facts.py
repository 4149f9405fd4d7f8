"""What one run came to, in words and numbers with units: results, traffic, time, environment."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import run_store
from ..quantities import amount, duration, operations
from .reading import Run, known, mapping, text

NOT_KNOWN = "not known"
SCORES = {
    "accuracy": ("test accuracy", ".1%"), "loss": ("test loss", ".4g"), "perplexity": ("perplexity", ".4g"),
    "heldout_accuracy": ("held-out accuracy", ".1%"), "heldout_loss": ("held-out loss", ".4g"),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A name, a value, and what a reader should know of it."""

    name: str
    value: str
    note: str = ""


def status(run: Run) -> str:
    """How far the run has come, and why no further."""
    planned = run.recipe.federation.num_rounds
    if not run.rows:
        return "stopped before its first round"
    if not run.has_ended:
        return f"not ended: {run.num_rounds} of {planned} rounds so far, going on or interrupted"
    reasons = {
        "patience": "ended early",
        "surge": "ended by a surge",
        "divergence": "diverged",
        "privacy": "ended early",
    }
    return f"{reasons.get(text(run.summary.get('stopped_by')), 'ended')}, {run.num_rounds} of {planned} rounds"


def model(run: Run) -> str:
    """The model's name, without the folders that it lies in."""
    return text(run.summary.get("model")) or Path(run.recipe.model.name).name


def results(run: Run) -> list[Fact]:
    """How well the model does and what it cost, the best first."""
    return [*_scores(run), *_costs(run)]


def _scores(run: Run) -> Iterator[Fact]:
    for name, (label, form) in SCORES.items():
        values = run.column(name)
        at = np.flatnonzero(np.isfinite(values))
        if len(at):
            after = "" if len(at) == 1 else f"from {values[at[0]]:{form}}"
            yield Fact(label, format(values[at[-1]], form), _backpropagation(run, name, form) or after)
    if not np.isfinite(run.column("loss")).any():
        yield Fact("test loss", NOT_KNOWN, "no evaluation gave a finite loss")


def _backpropagation(run: Run, name: str, form: str) -> str:
    """The start and, where the run compared itself with it, backpropagation."""
    value, first = known(run.summary.get(f"backprop_{name}")), run.column(name)[0]
    if value is None or np.isnan(first):
        return ""
    return f"from {first:{form}}; backpropagation {value:{form}}"


def _costs(run: Run) -> Iterator[Fact]:
    up, down = run.total("bytes_up"), run.total("bytes_down")
    if up is not None and down is not None:
        yield Fact("sent", amount(up + down), f"{amount(up)} up, {amount(down)} down")
    for name, label in (("forwards", "forwards"), ("flops", "FLOPs")):
        if (count := run.total(name)) is not None:
            yield Fact(label, operations(count))
    yield from _spared(run)
    if (seconds := _elapsed(run)) is not None:
        yield Fact("time", duration(seconds), f"{run.num_rounds} rounds")
    if (peak := known(run.summary.get("peak_memory_bytes"))) is not None:
        yield Fact("peak memory", amount(peak))


def _spared(run: Run) -> Iterator[Fact]:
    """What keeping the outputs of frozen layers saved, where a run had any."""
    kept = mapping(run.summary.get("kept_activations"))
    spent, without = (known(kept.get(name)) for name in ("flops", "flops_without"))
    layers, sequences = (known(kept.get(name)) for name in ("layers", "sequences"))
    if spent is not None and without and layers is not None and sequences is not None:
        note = f"of {layers:.0f} frozen layers' operations, each of {sequences:.0f} texts computed once"
        yield Fact("spared", f"{max(0.0, 1 - spent / without):.1%}", note)


def traffic(run: Run) -> list[Fact]:
    """Bytes and messages; what one message took in the mean."""
    if not run.num_rounds:
        return []
    asked, replied = run.total("cohort"), run.total("replied")
    lists = {name: sum(_size(row.get(name)) for row in run.rows) for name in ("dropped", "failed")}
    found = []
    for way, messages in (("up", replied), ("down", asked)):
        if (total := run.total(f"bytes_{way}")) is not None:
            each = f"{amount(total / messages)} a client and round" if messages else ""
            found.append(Fact(f"sent {way}", amount(total), each))
    if asked is not None and replied is not None:
        found.append(Fact("replies that counted", f"{replied:.0f}", f"of {asked:.0f} clients asked"))
    found.append(Fact("dropped out", str(lists["dropped"])))
    found.append(Fact("failed", str(lists["failed"])))
    if (size := known(run.summary.get("trajectory_bytes"))) is not None:
        found.append(Fact("trajectory file", amount(size)))
    return found


def _size(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


@dataclass(frozen=True)
class Share:
    """A part of a run's time."""

    name: str
    seconds: float
    percent: float

    @property
    def shown(self) -> str:
        return duration(self.seconds)

    @property
    def rounded(self) -> str:
        return f"{self.percent:.0f}"

    @property
    def told(self) -> str:
        return f"{self.name} {self.rounded} %"


def time_shares(run: Run) -> list[Share]:
    """Where the time went, as far as a run's files tell: rounds, the first evaluation, and the rest."""
    seconds, elapsed = run.column("seconds"), _elapsed(run)
    if not elapsed or elapsed <= 0:
        return []
    first, rounds = known(run.rows[0].get("elapsed_seconds")) or 0.0, float(np.nansum(seconds))
    parts = {
        "rounds": rounds, "evaluation before the first": first,
        "later evaluations, and writing": max(0.0, elapsed - first - rounds),
    }  # fmt: skip
    whole = sum(parts.values())
    return [Share(name, part, 100 * part / whole) for name, part in parts.items()]


def pace(run: Run) -> list[Fact]:
    """How long rounds took."""
    seconds = run.column("seconds")
    seconds = seconds[np.isfinite(seconds)]
    if not len(seconds):
        return []
    found = [
        Fact("median round", duration(float(np.median(seconds)))),
        Fact("slowest round", duration(float(seconds.max())), f"the fastest {duration(float(seconds.min()))}"),
    ]
    busy = float(seconds.sum())
    for name, label in (("forwards", "forwards a second"), ("flops", "FLOPs a second")):
        if busy > 0 and (count := run.total(name)) is not None:
            found.append(Fact(label, operations(count / busy)))
    prefix, flops = run.summary.get("flops_prefix"), run.total("flops")
    if flops and (first := known(prefix)):
        found.append(Fact("block 1 of the split", f"{first / flops:.1%}", "of the FLOPs"))
    return found


def _elapsed(run: Run) -> float | None:
    return known(run.rows[-1].get("elapsed_seconds")) if run.rows else None


def environment(run: Run) -> list[Fact]:
    """What ran it, and when its files last changed."""
    versions = mapping(run.summary.get("versions"))
    found = [Fact(text(name), text(version)) for name, version in versions.items()]
    if not found:
        found = [Fact("versions", NOT_KNOWN, "a run says them when it ends")]
    found.append(Fact("threads of a forward pass", str(run.recipe.run.num_threads)))
    return [*found, Fact("last round written", _last_written(run))]


def _last_written(run: Run) -> str:
    """When the manifest changed, which is after each round."""
    try:
        changed = (run.folder / run_store.MANIFEST).stat().st_mtime
    except OSError:
        return NOT_KNOWN
    return datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%d %H:%M UTC")


def digest(run: Run) -> str:
    """Of the weights after the last whole round, as hexadecimal digits; "" where no round is whole."""
    return text(run.rows[-1].get("state_digest")) if run.rows else ""
