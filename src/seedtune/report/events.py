"""What happened on the way: surges, rounds taken back, skipped steps, failed clients, an early end, the best round.

Rounds in a row of which the same is to be said are one event. It says what the files say; it judges nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from ..fed.auto import found_at_start
from .reading import Run, known, mapping, number, text

MOST_EVENTS = 200
"""Shown of one run; how many more there were is said."""
ENDS = {
    "patience": "ended early: no better evaluation for run.patience of them",
    "surge": "ended early: the loss surged",
    "privacy": "ended early: another round would be worth more than privacy.target_epsilon",
    "divergence": "diverged: nothing that clients sent was finite any more; these are the last weights that were",
}


@dataclass(frozen=True)
class Event:
    """`first` and `last`: rounds, counted from 1."""

    kind: str
    first: int
    last: int
    text: str

    @property
    def rounds(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def events(run: Run) -> tuple[list[Event], int]:
    """The events of a run in order, and how many more there were."""
    each = [event for i, row in enumerate(run.rows) for event in _of_round(i, row)]
    found = sorted((*_joined(each), *_of_run(run)), key=lambda event: (event.first, event.last))
    return found[:MOST_EVENTS], max(0, len(found) - MOST_EVENTS)


def surges(run: Run) -> list[int]:
    """After how many rounds the loss had surged."""
    return [i for i, row in enumerate(run.rows) if text(row.get("surge"))]


def _of_round(i: int, row: Mapping[str, Any]) -> Iterator[Event]:
    if reason := text(row.get("surge")):
        back = known(row.get("back_to"))
        after = "" if back is None else f"; taken back to round {back:.0f}, on at half the rate"
        yield Event("surge", i, i, reason + after)
    failed = mapping(row.get("failed"))
    for client in sorted(failed, key=lambda key: (len(key), key)):
        yield Event("failed", i, i, f"client {text(client)}: {text(failed[client])}")
    if (skipped := number(row.get("skipped_steps"))) > 0:
        yield Event("skipped", i, i, f"{skipped:.0f} local steps a round were skipped: a loss was not finite")


def _joined(each: list[Event]) -> Iterator[Event]:
    """Events that say the same of rounds in a row, as one."""
    ordered = sorted(each, key=lambda event: (event.kind, event.text, event.first))
    for _, alike in groupby(ordered, key=lambda event: (event.kind, event.text)):
        now, *others = alike
        for event in others:
            if event.first == now.last + 1:
                now = replace(now, last=event.last)
            else:
                yield now
                now = event
        yield now


def _of_run(run: Run) -> Iterator[Event]:
    losses, last = run.column("loss"), run.num_rounds
    if found := found_at_start(run.recipe):
        yield Event("measured", 0, 0, found)
    if np.isfinite(losses).any():
        best = int(np.nanargmin(losses))
        if best != last:
            yield Event("best", best, best, f"lowest test loss, {losses[best]:.4g} (replay --round {best})")
    if (stopped := text(run.summary.get("stopped_by"))) in ENDS:
        yield Event("end", last, last, ENDS[stopped])
    if not run.has_ended:
        yield Event("open", last, last, "the last whole round so far: the run goes on, or was interrupted")
