"""Curves of a run, thinned so that a page of ten thousand rounds stays small.

    x: rounds, forwards, FLOPs, bytes (both ways), seconds, all as totals
    y: losses, accuracies and the like of a round, and bytes up and down as totals

Rounds are kept by the losses and accuracies: of each stretch of rounds the lowest and the highest, so no peak is lost.
Other curves are read at the same rounds, and may lose peaks of theirs. Nothing is smoothed.
"""

from typing import Any

import numpy as np

from .reading import Run

KEPT_BY = ("train_loss", "loss", "accuracy")
MEASURES = (*KEPT_BY, "perplexity", "heldout_loss", "heldout_accuracy", "learning_rate", "scalar_rms")
MOST_POINTS, FEWEST_POINTS = 600, 100
"""Of one curve by which rounds are kept; fewer where many runs share a page."""
RUNS_AT_FULL_DETAIL = 4
DIGITS = 6


def curves(run: Run, num_runs: int) -> dict[str, Any]:
    """x and y values by name, and whether rounds were left out.

    None in place of an x that some round does not say, or of a y that no round has. Cost: a few passes over the rows.
    """
    most = max(FEWEST_POINTS, MOST_POINTS * RUNS_AT_FULL_DETAIL // max(num_runs, RUNS_AT_FULL_DETAIL))
    columns = {name: run.column(name) for name in MEASURES}
    kept = kept_rows([columns[name] for name in KEPT_BY], len(run.rows), most)
    up, down = run.totals("bytes_up"), run.totals("bytes_down")
    seconds = run.column("elapsed_seconds")
    x = {
        "rounds": np.arange(len(run.rows), dtype=np.float64), "forwards": run.totals("forwards"),
        "flops": run.totals("flops"), "bytes": None if up is None or down is None else up + down,
        "seconds": None if np.isnan(seconds).any() else seconds,
    }  # fmt: skip
    second = columns["learning_rate"] * run.column("rate_ratio")
    y = {**columns, "bytes_up": up, "bytes_down": down, "learning_rate_2": second}
    return {
        "x": {name: _plain(values, kept) for name, values in x.items()},
        "y": {name: _plain(values, kept) for name, values in y.items()},
        "is_thinned": len(kept) < len(run.rows),
    }


def kept_rows(columns: list[np.ndarray], num_rows: int, most: int) -> np.ndarray:
    """Indices of the rows to show, sorted: the first, the last, and of each column those of `thinned`."""
    if not num_rows:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.concatenate([[0, num_rows - 1], *(thinned(values, most) for values in columns)]).astype(int))


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` of the finite values: the lowest and highest of each of most / 2 stretches.

    >>> thinned(np.array([3.0, 1.0, 9.0, 2.0, np.nan, 2.5, 2.2, 0.0]), 4).tolist()
    [1, 2, 5, 7]
    """
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) <= most:
        return finite
    stretches = np.array_split(finite, most // 2)
    ends = [pick(values[part]) for part in stretches for pick in (np.argmin, np.argmax)]
    parts = [part for part in stretches for _ in range(2)]
    return np.unique([part[at] for part, at in zip(parts, ends, strict=True)])


def _plain(values: np.ndarray | None, kept: np.ndarray) -> list[float | None] | None:
    if values is None or not np.isfinite(values[kept]).any():
        return None
    return [rounded(value) for value in values[kept]]


def rounded(value: float, digits: int = DIGITS) -> float | int | None:
    """A number that is short in JSON; None where it is not finite.

    >>> rounded(0.123456789), rounded(1234567890.0), rounded(float("nan"))
    (0.123457, 1234567890, None)
    """
    if not np.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(f"{value:.{digits}g}")
