"""Rows and summaries with every key that a run writes."""

from functools import reduce
from typing import Any

from seedtune import run_store

SCORES = {"loss": 2.0, "accuracy": 0.5, "perplexity": None}


def chain(lines: bytes) -> str:
    """The digest of a run's rows that its manifest has."""
    return reduce(run_store._chained, lines.splitlines(keepends=True), "")


def first_row(**over: Any) -> dict[str, Any]:
    return {"rounds": 0, "elapsed_seconds": 1.0, **SCORES} | over


def row(rounds: int, **over: Any) -> dict[str, Any]:
    """Of a round in which clients 0 and 2 answered."""
    return {
        "rounds": rounds, "elapsed_seconds": 1.0 + rounds, "train_loss": 1.5, "bytes_up": 60, "bytes_down": 160,
        "forwards": 4, "flops": 10**9, "seconds": 0.4, "replied": 2, "cohort": 2, "dropped": [], "failed": {},
        "losses": {"0": 1.4, "2": 1.6}, "signals": {}, "scalar_rms": 2.0, "learning_rate": 1e-3, "skipped_steps": 0,
        "state_digest": "ab" * 16,
    } | over  # fmt: skip


def summary(**over: Any) -> dict[str, Any]:
    scores = {f"{prefix}{name}": value for prefix in ("", "zero_shot_", "backprop_") for name, value in SCORES.items()}
    return scores | {
        "method": "mine", "model": "starter", "task": "custom", "rounds": 2, "best_rounds": 2, "best_loss": 2.0,
        "best_accuracy": 0.5, "stopped_by": None, "surges": {}, "backprop_steps": 0, "bytes_up": 120, "bytes_down": 320,
        "bytes_up_per_client_round": 30.0, "bytes_down_per_client_round": 80.0, "forwards": 8, "flops": 2 * 10**9,
        "skipped_steps": 0, "failed_replies": 0, "truncated_examples": 0, "trajectory_bytes": 1234,
        "peak_memory_bytes": 10**8, "round_seconds": 0.8, "seconds": 3.0, "state_digest": "ab" * 16, "privacy": None,
    } | over  # fmt: skip
