"""What a run's metrics say: the row of each round, what a resumed run reads back from it, and the best evaluation.

Rows are plain data, one line of metrics.jsonl each; a number that is not finite is null, since JSON has no word for it.
Files are the run store's.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .config import Recipe
from .fed.rates import Told
from .fed.rounds import RoundResult
from .models.evaluation import Evaluation
from .privacy.ledger import published
from .privacy.plan import Plan
from .zo.trajectory import RoundRecord

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """The server's weights on the test examples, and on each client's held-out ones (none where none are held out)."""

    test: Evaluation
    clients: Mapping[int, Evaluation]


def round_row(
    num_rounds: int,
    seconds: float,
    result: RoundResult | None,
    evaluated: Evaluated | None,
    plan: Plan | None = None,
) -> Row:
    """The row after `num_rounds` rounds; `result` is None before the first, `evaluated` where nothing was evaluated.
    Of a private run, as its `plan` lets it be published."""
    row: Row = {"rounds": num_rounds, "elapsed_seconds": seconds}
    if result is not None:
        row |= {
            "train_loss": _finite(result.train_loss), "bytes_up": result.bytes_up, "bytes_down": result.bytes_down,
            "forwards": result.num_forwards, "flops": result.num_flops, "seconds": round(result.seconds, 4),
            "replied": len(result.record.clients), "cohort": len(result.cohort), "dropped": list(result.dropped),
            "failed": {str(client): reason for client, reason in result.failed.items()},
            "losses": {str(client): _finite(loss) for client, loss in result.losses.items()},
            "signals": {str(client): signal for client, signal in result.signals.items()},
            "scalar_rms": _finite(result.scalar_rms), "learning_rate": result.rate,
            "skipped_steps": result.skipped_steps, "state_digest": result.record.digest.hex(),
        }  # fmt: skip
        if first := result.num_prefix_flops:
            row |= {"flops_prefix": first, "flops_suffix": result.num_flops - first}
        if result.slopes:
            row["slopes"] = {str(client): list(slopes) for client, slopes in result.slopes.items()}
        if (ratio := result.record.rate_ratio) is not None:
            row["rate_ratio"] = ratio
        if result.surge:
            row |= {"surge": str(result.surge), "back_to": result.record.back_to}
        row = published(plan, row) if plan else row
    return row if evaluated is None else row | _evaluation_row(evaluated)


def _evaluation_row(evaluated: Evaluated) -> Row:
    row = scores_of(evaluated.test)
    if not evaluated.clients:
        return row
    each = {str(client): scores_of(evaluation) for client, evaluation in evaluated.clients.items()}
    return row | scores_of(_pooled(evaluated.clients.values()), "heldout_") | {"heldout": each}


def _pooled(evaluations: Iterable[Evaluation]) -> Evaluation:
    """The mean over clients, each as often as it has examples."""
    all_ = list(evaluations)
    sizes = [evaluation.num_examples for evaluation in all_]
    accuracies = [evaluation.accuracy for evaluation in all_ if evaluation.accuracy is not None]
    accuracy = float(np.average(accuracies, weights=sizes)) if len(accuracies) == len(all_) else None
    return Evaluation(float(np.average([e.loss for e in all_], weights=sizes)), accuracy, sum(sizes))


def scores_of(evaluation: Evaluation | None, prefix: str = "") -> dict[str, float | None]:
    """An evaluation as plain data, None for what is not finite or was not evaluated."""
    names = ("loss", "accuracy", "perplexity")
    return {f"{prefix}{name}": _finite(getattr(evaluation, name, None)) for name in names}


def result_of(record: RoundRecord, row: Row) -> RoundResult:
    """The finished round that left `record` and `row`, as far as a resumed run needs it."""
    told = told_of(row)
    return RoundResult(
        record, (), tuple(row["dropped"]), {int(client): reason for client, reason in row["failed"].items()},
        {int(client): _or_nan(loss) for client, loss in row["losses"].items()},
        told.signals, _or_nan(row["scalar_rms"]), row["learning_rate"], row["bytes_down"], row["bytes_up"],
        row["forwards"], row["flops"], row["skipped_steps"], row["seconds"] or 0.0,
        mean_loss=None if row["losses"] else row["train_loss"], slopes=told.slopes,
    )  # fmt: skip


def told_of(row: Mapping[str, Any]) -> Told:
    """What the round before `row` says of the next rates."""
    signals = {int(client): signal for client, signal in row["signals"].items()}
    slopes = {int(client): tuple(slopes) for client, slopes in row.get("slopes", {}).items()}
    return Told(signals, slopes, row.get("back_to"))


@dataclass(frozen=True)
class History:
    """What a run's evaluations say so far: a fold over its rows.

    The best is the one with the lowest loss: on held-out examples where clients hold some out, else on test examples.
    best_rounds: after how many rounds. num_since_best: evaluations since then.
    """

    patience: int
    best_rounds: int = 0
    best_loss: float | None = None
    best_accuracy: float | None = None
    num_since_best: int = 0
    _lowest: float = math.inf

    @classmethod
    def of(cls, recipe: Recipe, rows: Iterable[Row]) -> "History":
        history = cls(recipe.run.patience)
        for row in rows:
            history = history.after(row)
        return history

    @property
    def is_out_of_patience(self) -> bool:
        return 0 < self.patience <= self.num_since_best

    def after(self, row: Row) -> "History":
        if "loss" not in row:
            return self
        watched = row.get("heldout_loss", row["loss"])
        if watched is None or watched >= self._lowest:
            return replace(self, num_since_best=self.num_since_best + 1)
        return replace(self, best_rounds=row["rounds"], best_loss=row["loss"], best_accuracy=row["accuracy"],
                       num_since_best=0, _lowest=watched)  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
