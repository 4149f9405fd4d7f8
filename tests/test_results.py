"""The last lines of a run: domains, answers, what was spared, what it means."""

import io

import pytest
from rich.console import Console

from seedtune import results

DOMAINS = {"accuracy_by_domain": {"news": 0.7, "tweets": 0.9}, "zero_shot_accuracy_by_domain": {"tweets": 0.5}}
KEPT = {"layers": 30, "sequences": 1800, "bytes_in_memory": 4_000_000, "bytes_on_disk": 200_000, "flops": 10,
        "flops_without": 400}  # fmt: skip
COMPARED = {
    "outcome": "helped", "zero_shot_accuracy": 0.5, "accuracy": 0.8, "backprop_accuracy": 0.9, "bytes_up": 1000,
    "bytes_down": 2000, "exchange": "scalars", "tuned_parameters": 1576, "trajectory_bytes": 500,
}  # fmt: skip


def lines(parts) -> list[str]:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    for part in parts:
        console.print(part)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_accuracy_is_told_by_domain():
    assert lines(results.by_domain(DOMAINS)) == [
        "accuracy by domain  zero-shot  tuned",
        "news                           70.0%",
        "tweets              50.0%      90.0%",
    ]


@pytest.mark.parametrize("summary", [{}, {"accuracy_by_domain": {"one": 0.5}}])
def test_a_task_without_domains_has_no_table(summary):
    assert not list(results.by_domain(summary))


def test_six_answers_are_shown_before_and_after():
    samples = [{"text": f"{i} " + "x" * 100, "truth": "no", "before": "yes", "after": "no"} for i in range(8)]
    found = lines(results.answers({"samples": samples}))
    assert found[0].split() == ["some", "test", "examples", "label", "before", "after"]
    assert len(found) == 7 and found[1].split() == ["0", "x" * 67 + "…", "no", "yes", "no"]
    assert not list(results.answers({}))


def test_what_kept_activations_spared_is_told():
    assert list(results.activations({"kept_activations": KEPT})) == [
        "30 frozen layers: computed once for 1800 sequences and kept (4.2 MB); 97.5% of their operations were spared"
    ]
    for nothing in (None, KEPT | {"flops_without": 0}):
        assert not list(results.activations({"kept_activations": nothing}))


def test_two_sentences_say_what_a_comparison_means():
    first, second = results.meaning(COMPARED)
    assert first.startswith(
        "Forward passes alone went 75% of the way from zero-shot to backpropagation of the same 1,576"
    )
    assert second.startswith("No example and no weight left a client: 3.0 kB of scalars were exchanged")


@pytest.mark.parametrize(
    "changed",
    [
        {"outcome": "worse"},
        {"backprop_accuracy": None},
        {"backprop_accuracy": 0.4},
        {"bytes_up": None},
        {"exchange": "weights"},
    ],
)
def test_nothing_is_said_without_a_comparison_that_helped(changed):
    assert not list(results.meaning(COMPARED | changed))


def test_backpropagation_of_all_tensors_names_the_command_that_measured_it():
    scores = {f"{prefix}{name}": 0.5 for prefix in ("zero_shot_", "") for name in ("accuracy", "loss")}
    summary = scores | {"method": "m", "backprop_steps": 0, "backprop_all_accuracy": 0.935,
                        "backprop_all_command": "seedtune run demo --rounds 0"}  # fmt: skip
    found = lines([results.outcome(summary)])
    assert "backpropagation of all tensors*  93.5%" in found
    assert "* measured before: seedtune run demo --rounds 0" in " ".join(found)
