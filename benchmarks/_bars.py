"""The figures that this project holds itself to, and where in the benchmarks' results each one stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A figure that is to be at most `most`; `aim` is what it should be. It stands in column `column` of the row of
    `table` that has the values `where`, in the results of `benchmark`."""

    figure: str
    benchmark: str
    table: str
    where: Mapping[str, Any]
    column: str
    most: float
    aim: float


def _step(dtype: str, tuned: str, num_tokens: int, directions: str, most: float, aim: float) -> Bar:
    where = {"dtype": dtype, "tuned": tuned, "tokens": num_tokens, "scored": "16"}
    figure = f"step / its two forwards: {dtype}, {tuned} tuned, {num_tokens} tokens, {directions}"
    return Bar(figure, "step", "step", where, directions, most, aim)


def _batched(num_tokens: int) -> Bar:
    figure = f"two points in one forward / two forwards: float32, LoRA, {num_tokens} tokens"
    where = {"tuned": "LoRA", "directions": 1, "tokens": num_tokens}
    return Bar(figure, "batched", "batched", where, "batched / forwards", 1.0, 1.0)


def _memory(dtype: str, num_tokens: int) -> Bar:
    figure = f"peak memory of a step / inference: {dtype}, {num_tokens} tokens"
    where, column = {"dtype": dtype, "tokens": num_tokens}, "rademacher / inference"
    return Bar(figure, "step", "memory", where, column, 1.05, 1.02)


def _replay(dtype: str) -> Bar:
    figure = f"replay of a direction / one pass over the weights: {dtype}, Rademacher, fused"
    where = {"dtype": dtype, "directions": "rademacher", "as": "one round"}
    return Bar(figure, "replay", "replay", where, "a direction / one pass", 0.5, 0.2)


def _overhead(keys: str) -> Bar:
    figure = f"ms a client and round beyond its losses: {keys} keys, 10,000 clients, 100 a round"
    where = {"keys": keys, "varied": "N = 100, 1,000, 10,000"}
    return Bar(figure, "scale", "overhead", where, "at most", 2.0, 2.0)


def _start(kind: str) -> Bar:
    return Bar(f"seconds to deal to 10,000 clients: {kind}", "scale", "start", {"partition": kind}, "seconds", 10, 10)


_DTYPES, _DIRECTIONS = ("float32", "bfloat16"), ("rademacher", "gaussian")
_GAUSSIAN = {512: 1.30, 1024: 1.20}

BARS = (
    *(_step(dtype, "all", num, "rademacher", 1.10, 1.03) for dtype in _DTYPES for num in (512, 1024)),
    *(_step(dtype, "all", num, "gaussian", most, 1.08) for dtype in _DTYPES for num, most in _GAUSSIAN.items()),
    *(_step(dtype, "all", 128, directions, 1.5, 1.2) for dtype in _DTYPES for directions in _DIRECTIONS),
    *(_step("float32", "LoRA", num, "rademacher", 1.05, 1.02) for num in (512, 1024)),
    *(_batched(num) for num in (32, 128)),
    *(_memory(dtype, num) for dtype in _DTYPES for num in (512, 1024)),
    *(_replay(dtype) for dtype in _DTYPES),
    Bar(
        "a whole run / its own forwards: the first run's recipe", "scale", "run", {}, "whole / own forwards", 1.15, 1.05
    ),
    *(_overhead(keys) for keys in ("own", "shared")),
    *(_start(kind) for kind in ("iid", "dirichlet", "natural")),
)


def measured(bar: Bar, found: Mapping[str, Any]) -> tuple[float | None, str]:
    """The figure and its text with quartiles; None where the row was not measured."""
    rows = found.get(bar.benchmark, {}).get(bar.table, [])
    row = next((row for row in rows if all(row.get(name) == value for name, value in bar.where.items())), None)
    if row is None or bar.column not in row:
        return None, ""
    cell = row[bar.column]
    if isinstance(cell, Mapping):
        return cell["median"], f"{cell['median']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"
    return float(cell), f"{cell:.3g}"
