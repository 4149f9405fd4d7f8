"""How a run went: one of five outcomes and the sentence that says it. Plain data in, words out.

The rule. Where a task has accuracy, a difference counts when it exceeds two standard errors of the difference between
two shares measured on n test examples, sqrt((p (1 - p) + q (1 - q)) / n), with n taken from the run. (The examples are
the same before and after, so the true error is smaller: the rule is cautious.) Where accuracy does not count, or there
is none, the test loss does once it changed by `LOSS_SHARE` of what it was, a tenth beside accuracy and a hundredth
alone. A run has diverged where it stopped since nothing finite came back, where its last test loss is not finite, or
where that is more than `BLOWN_UP` times what it was (or than one nat, if it was less).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, Literal

Outcome = Literal["helped", "worse", "unchanged", "untuned", "diverged"]
LOSS_SHARE = {True: 0.1, False: 0.01}
"""By whether the task has accuracy too."""
BLOWN_UP = 10.0
MARKS: Mapping[str, str] = {
    "helped": "helped", "worse": "WORSE", "unchanged": "no change", "untuned": "not tuned", "diverged": "DIVERGED",
}  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """Of one state of a model on the test examples; None: not finite, or the task has none."""

    loss: float | None
    accuracy: float | None
    perplexity: float | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any], prefix: str = "") -> "Scores":
        return cls(*(_number(values.get(f"{prefix}{name}")) for name in ("loss", "accuracy", "perplexity")))


def outcome(summary: Mapping[str, Any]) -> Outcome:
    """The outcome of a run that has ended, from its summary.

    >>> scores = {"zero_shot_accuracy": 0.5, "zero_shot_loss": 0.7, "test_examples": 200, "rounds": 9}
    >>> outcome(scores | {"accuracy": 0.8, "loss": 0.5}), outcome(scores | {"accuracy": 0.55, "loss": 0.69})
    ('helped', 'unchanged')
    """
    before, after = Scores.read(summary, "zero_shot_"), Scores.read(summary)
    if not summary.get("rounds") and summary.get("stopped_by") != "divergence":
        return "untuned"
    if summary.get("stopped_by") == "divergence" or has_blown_up(before, after):
        return "diverged"
    return compare(before, after, _number(summary.get("test_examples")))


def has_blown_up(before: Scores, after: Scores) -> bool:
    return after.loss is None or (before.loss is not None and after.loss > BLOWN_UP * max(before.loss, 1.0))


def compare(before: Scores, after: Scores, num_examples: float | None) -> Literal["helped", "worse", "unchanged"]:
    """Which of two states of a model is better, by the rule of this module; the losses are finite."""
    if before.accuracy is not None and after.accuracy is not None:
        change = after.accuracy - before.accuracy
        if abs(change) > tolerance(before.accuracy, after.accuracy, num_examples):
            return "helped" if change > 0 else "worse"
    if before.loss is None or after.loss is None:
        return "unchanged"
    share = (after.loss - before.loss) / max(abs(before.loss), 1e-12)
    if abs(share) < LOSS_SHARE[before.accuracy is not None]:
        return "unchanged"
    return "helped" if share < 0 else "worse"


def tolerance(before: float, after: float, num_examples: float | None) -> float:
    """Two standard errors of the difference of two accuracies; infinite where the number of examples is not known.

    >>> round(tolerance(0.5, 0.5, 200), 3)
    0.1
    """
    if not num_examples or num_examples < 0:
        return float("inf")
    return 2 * sqrt(max(0.0, before * (1 - before) + after * (1 - after)) / num_examples)


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What a person is told first of a run that has ended: one sentence, and another where it ended badly."""
    found, scores = outcome(summary), changes(summary)
    if found == "untuned":
        return [f"Nothing was tuned: the run has no rounds. The base has {standing(summary, 'zero_shot_')}."]
    if found == "diverged":
        return [f"The run DIVERGED: {scores}.{_best(summary)}", _why_diverged(summary)]
    opening = {
        "helped": "Tuning helped", "worse": "Tuning made the model WORSE", "unchanged": "No measurable change",
    }[found]  # fmt: skip
    return [f"{opening}: {scores}{_within(summary)}.{_best(summary) if found == 'worse' else ''}"]


def so_far(rows: Sequence[Mapping[str, Any]]) -> str:
    """How a run stands that has not ended, from its rows of metrics.jsonl.

    >>> so_far([{"rounds": 0, "loss": 2.0}, {"rounds": 1}, {"rounds": 2, "loss": 1.5}])
    'So far, after 2 rounds: test loss 2.000 -> 1.500.'
    """
    evaluated = [row for row in rows if "loss" in row]
    if not evaluated:
        return "Nothing was evaluated yet."
    first, last = evaluated[0], evaluated[-1]
    if len(evaluated) == 1:
        return f"Before the first round: {standing(first)}."
    before = {f"zero_shot_{name}": first.get(name) for name in ("loss", "accuracy", "perplexity")}
    return f"So far, after {last.get('rounds')} rounds: {changes({**last, **before})}."


def method_name(method: str) -> str:
    """
    >>> method_name("fedmezo"), method_name("custom")
    ('fedmezo', 'own settings')
    """
    return "own settings" if method == "custom" else method


def way(method: str, order: str) -> str:
    """How a recipe tunes, by its `run.method` and `local.order`.

    >>> way("fedmezo", "zeroth"), way("custom", "zeroth"), way("fedavg", "first")
    ('forward passes only (method fedmezo)', 'forward passes only', 'backpropagation (method fedavg)')
    >>> way("forward passes only", "zeroth")  # as the recipe 'demo' calls its own
    'forward passes only'
    """
    passes = "backpropagation" if order == "first" else "forward passes only"
    return passes if method in ("custom", passes) else f"{passes} (method {method})"


def changes(values: Mapping[str, Any]) -> str:
    """
    >>> changes({"zero_shot_accuracy": 0.558, "accuracy": 0.857, "zero_shot_loss": 1.004, "loss": 0.348})
    'test accuracy 55.8% -> 85.7%, test loss 1.004 -> 0.348'
    """
    before, after = Scores.read(values, "zero_shot_"), Scores.read(values)
    parts = []
    if before.accuracy is not None:
        parts.append(f"test accuracy {before.accuracy:.1%} -> {_shown(after.accuracy, '.1%')}")
    parts.append(f"test loss {_shown(before.loss, '.3f')} -> {_shown(after.loss, '.3f')}")
    if before.perplexity is not None:
        parts.append(f"perplexity {before.perplexity:.4g} -> {_shown(after.perplexity, '.4g')}")
    return ", ".join(parts)


def standing(values: Mapping[str, Any], prefix: str = "") -> str:
    """One state's scores in words."""
    at = Scores.read(values, prefix)
    accuracy = [] if at.accuracy is None else [f"test accuracy {at.accuracy:.1%}"]
    perplexity = [] if at.perplexity is None else [f"perplexity {at.perplexity:.4g}"]
    return ", ".join([*accuracy, f"test loss {_shown(at.loss, '.3f')}", *perplexity])


def better_state(summary: Mapping[str, Any]) -> list[str]:
    """A sentence where the best state is not the last, of a run whose first sentence does not say so."""
    found = outcome(summary)
    return [] if found in ("worse", "diverged", "untuned") else [text] if (text := _best(summary).strip()) else []


def _why_diverged(summary: Mapping[str, Any]) -> str:
    if summary.get("stopped_by") == "divergence":
        return (
            f"It ended after {summary.get('rounds')} rounds, since nothing that clients sent was finite any more; the "
            "model kept is the last one that was. Try a smaller local.learning_rate."
        )
    return "The tuned model is not usable. Try a smaller local.learning_rate, or leave it to 'auto'."


def _best(summary: Mapping[str, Any]) -> str:
    """Where the best state lies, if that is not the last."""
    best, loss = summary.get("best_rounds"), _number(summary.get("best_loss"))
    if loss is None or best == summary.get("rounds"):
        return ""
    if not best:
        return f" No evaluation was better than the base's own, test loss {loss:.3f}."
    hint = f"'seedtune replay --round {best}' rebuilds that model"
    return f" The best evaluation was after {best} rounds, test loss {loss:.3f}: {hint}."


def _within(summary: Mapping[str, Any]) -> str:
    """A remark where accuracy changed by no more than its error, so that the loss decided or nothing did."""
    before, after = (Scores.read(summary, prefix).accuracy for prefix in ("zero_shot_", ""))
    size = _number(summary.get("test_examples"))
    if before is None or after is None or not size:
        return ""
    bound = tolerance(before, after, size)
    if abs(after - before) > bound:
        return ""
    return f" ({size:.0f} test examples cannot tell accuracies apart by less than {100 * bound:.1f} points)"


def _shown(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _number(value: Any) -> float | None:
    """A finite number; None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        return float(value) if isfinite(value) else None
    return None
