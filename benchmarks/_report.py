"""Timing in pairs and printing of results, for every benchmark.

Other processes may share the cores. So the things that are compared take turns, and what is reported is the median over
turns of what each turn found, with the quartiles beside it: a slow minute slows all sides of a ratio alike.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

Clock = Callable[[], float]
_LEAST_TURNS = 3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over turns."""

    median: float
    low: float
    high: float

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        median, low, high = (f"{x * scale:.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{median} ({low} to {high})"


def spread(numbers: Sequence[float]) -> Spread:
    low, median, high = np.quantile(numbers, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    num_turns: int,
    seconds: float = 0.02,
    clock: Clock = perf_counter,
    most_seconds: float = inf,
) -> dict[str, list[float]]:
    """Seconds a call of each, turn by turn: in every turn each runs, one after the other, for about `seconds`.

    `clock`: `process_time` leaves out the time that other processes have the core, and counts all threads' time.
    `most_seconds`: after so many, whole turns are left out, but for the first three.
    """
    started = perf_counter()
    repeats = {name: _repeats(call, seconds) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(num_turns):
        if turn >= _LEAST_TURNS and perf_counter() - started > most_seconds:
            break
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name], clock))
    return times


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """How many times faster the second is, from pairs of the same turn."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def _repeats(call: Callable[[], object], seconds: float) -> int:
    call()
    if seconds == 0:  # calls that are long enough alone
        return 1
    return max(1, round(seconds / min(_seconds(call, 1) for _ in range(3))))


def _seconds(call: Callable[[], object], num: int, clock: Clock = perf_counter) -> float:
    start = clock()
    for _ in range(num):
        call()
    return (clock() - start) / num


def options(description: str) -> argparse.ArgumentParser:
    """A parser of what every benchmark takes: `quick` and `json`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few turns and small sizes: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def arguments(description: str) -> argparse.Namespace:
    """What a benchmark without options of its own was given."""
    return options(description).parse_args()


def report(tables: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | None) -> None:
    """Prints each table by its title, rows with the same columns, a `Spread` as median and quartiles.

    With a path, writes {"machine": facts, title: rows, ...} there as JSON.
    """
    console = Console(width=None if os.isatty(1) else 160)
    for title, rows in tables.items():
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*(cell.text() if isinstance(cell, Spread) else str(cell) for cell in row.values()))
        console.print(table)
    if path:
        content = {"machine": machine(), **{title: [_plain(row) for row in rows] for title, rows in tables.items()}}
        path.write_text(json.dumps(content, indent=1) + "\n")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(cell) if isinstance(cell, Spread) else cell for name, cell in row.items()}


def has_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 matrices by the processor's own instructions; without, some 8 times slower."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def machine() -> dict[str, Any]:
    """What a reader must know to compare numbers."""
    return {
        "processor": platform.machine(),
        "bfloat16_instructions": has_bfloat16(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
