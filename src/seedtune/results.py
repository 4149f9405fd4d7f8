"""The last lines of a run: whether it helped, the numbers side by side, what was sent, what it means."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from . import verdict
from .console import table
from .foreign_text import sanitize
from .quantities import amount

MOST_SAMPLES, MOST_DOMAINS, MOST_LETTERS = 6, 12, 70
"""Shown: test examples, domains, letters of an example."""


def results(summary: dict[str, Any], folder: Path) -> Iterator[Table | str]:
    """What a run came to: whether it helped, quality, what to know of the way there, traffic, time, digest."""
    yield from verdict.sentences(summary)
    yield outcome(summary)
    yield from by_domain(summary)
    yield from answers(summary)
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
    yield from activations(summary)
    yield f"sent in all: {both}; the tuned model is {folder}/trajectory.seedtune, {amount(summary['trajectory_bytes'])}"
    if summary["round_seconds"] is not None:  # withheld where it would tell the size of a secret cohort
        pace = summary["round_seconds"] / max(1, summary["rounds"])
        yield f"{summary['rounds']} rounds in {summary['seconds']:.0f} s ({pace:.3f} s a round, evaluation apart)"
    yield f"state digest {summary['state_digest']}"
    yield from meaning(summary)


_NOTES = {
    "truncated_examples": "examples were cut to the task's window",
    "skipped_steps": "local steps were skipped, since a loss was not finite",
    "failed_replies": "replies were missing or not usable; metrics.jsonl names clients and reasons",
}


def outcome(summary: dict[str, Any]) -> Table:
    """Zero-shot, tuned and, where it is known, backpropagation, side by side."""
    name, form = ("accuracy", ".1%") if summary["zero_shot_accuracy"] is not None else ("perplexity", ".2f")
    shown = table("", name, "test loss")
    same = "backpropagation of the same tensors"
    labels = {"zero_shot_": "zero-shot", "": tuned_by(summary["method"]), "backprop_": same}
    for prefix, label in labels.items():
        if prefix != "backprop_" or summary["backprop_steps"]:
            shown.add_row(label, _number(summary[f"{prefix}{name}"], form), _number(summary[f"{prefix}loss"], ".3f"))
    if whole := summary.get("backprop_all_accuracy"):
        shown.add_row("backpropagation of all tensors*", format(whole, ".1%"), "")
        shown.caption = f"* measured before: {summary['backprop_all_command']}"
        shown.caption_justify = "left"
    return shown


def by_domain(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Accuracy before and after in each of the task's domains; nothing where it has none."""
    after, before = summary.get("accuracy_by_domain") or {}, summary.get("zero_shot_accuracy_by_domain") or {}
    if len(after) > 1:
        shown = table("accuracy by domain", "zero-shot", "tuned")
        for name in list(after)[:MOST_DOMAINS]:
            shown.add_row(name, format(before[name], ".1%") if name in before else "", format(after[name], ".1%"))
        yield shown


def answers(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Some test examples with the model's answer before and after; nothing for texts."""
    if samples := (summary.get("samples") or [])[:MOST_SAMPLES]:
        shown = table("some test examples", "label", "before", "after")
        for sample in samples:
            shown.add_row(shorten(sample["text"], MOST_LETTERS), sample["truth"], sample["before"], sample["after"])
        yield shown


def shorten(text: str, most: int) -> str:
    """
    >>> shorten("a long prompt", 8), shorten("short", 8)
    ('a long …', 'short')
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def activations(summary: Mapping[str, Any]) -> Iterator[str]:
    """What keeping the outputs of frozen layers saved; nothing where no layer is frozen."""
    kept = summary.get("kept_activations")
    if kept and kept["flops_without"]:
        spared = 1 - kept["flops"] / kept["flops_without"]
        size = amount(kept["bytes_in_memory"] + kept["bytes_on_disk"])
        yield (
            f"{kept['layers']} frozen layers: computed once for {kept['sequences']} sequences and kept ({size}); "
            f"{max(0.0, spared):.1%} of their operations were spared"
        )


def meaning(summary: Mapping[str, Any]) -> Iterator[str]:
    """Two sentences on what a run with a comparison shows: how far it went, and what it took."""
    start, end, aim = (summary.get(f"{prefix}accuracy") for prefix in ("zero_shot_", "", "backprop_"))
    if start is None or end is None or aim is None or aim <= start or summary["outcome"] != "helped":
        return
    if summary["exchange"] != "scalars" or summary["bytes_up"] is None:
        return
    sent_in_all = summary["bytes_up"] + summary["bytes_down"]
    yield (
        f"Forward passes alone went {(end - start) / (aim - start):.0%} of the way from zero-shot to backpropagation "
        f"of the same {summary['tuned_parameters']:,} numbers, so a device needs only the memory to run the model."
    )
    yield (
        f"No example and no weight left a client: {amount(sent_in_all)} of scalars were exchanged in all, and the "
        f"trajectory of {amount(summary['trajectory_bytes'])} rebuilds the tuned model from the base, bit for bit."
    )


def tuned_by(method: str) -> str:
    """
    >>> tuned_by("fedmezo"), tuned_by("custom")
    ('tuned (fedmezo)', 'tuned')
    """
    return "tuned" if method == "custom" else f"tuned ({method})"


def events(summary: dict[str, Any]) -> list[str]:
    """What a reader of the results must know of the way there: surges, an early end, a better round before the last."""
    found = [
        f"loss surge in round {sanitize(rounds)}: {sanitize(reason)}" for rounds, reason in summary["surges"].items()
    ]
    if summary["stopped_by"]:
        reasons = {
            "patience": "no better evaluation for run.patience of them", "surge": "the loss surged",
            "privacy": "another round would be worth more than privacy.target_epsilon",
        }  # fmt: skip
        if reason := reasons.get(summary["stopped_by"]):  # the first sentence tells of a divergence
            found.append(f"ended early, after {summary['rounds']} rounds: {reason}")
    found += verdict.better_state(summary)
    return found


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


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
