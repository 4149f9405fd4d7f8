"""How a run went: the rule by hand-made numbers, and the sentence for each outcome."""

import pytest

from seedtune.verdict import outcome, sentences, so_far

RUN = {
    "rounds": 9, "best_rounds": 9, "best_loss": 0.348, "stopped_by": None, "test_examples": 200,
    "zero_shot_accuracy": 0.558, "accuracy": 0.857, "zero_shot_loss": 1.004, "loss": 0.348,
}  # fmt: skip
TEXT = RUN | {
    "zero_shot_accuracy": None, "accuracy": None, "zero_shot_loss": 2.0, "loss": 1.5, "best_loss": 1.5,
    "zero_shot_perplexity": 7.389, "perplexity": 4.482,
}  # fmt: skip
WITHIN = "(200 test examples cannot tell accuracies apart by less than 9.9 points)"


@pytest.mark.parametrize(
    "summary, found, first",
    [
        (RUN, "helped", "Tuning helped: test accuracy 55.8% -> 85.7%, test loss 1.004 -> 0.348."),
        (TEXT, "helped", "Tuning helped: test loss 2.000 -> 1.500, perplexity 7.389 -> 4.482."),
        (RUN | {"accuracy": 0.3, "loss": 1.5, "best_rounds": 4, "best_loss": 0.9}, "worse",
         "Tuning made the model WORSE: test accuracy 55.8% -> 30.0%, test loss 1.004 -> 1.500. The best evaluation was "
         "after 4 rounds, test loss 0.900: 'seedtune replay --round 4' rebuilds that model."),
        (TEXT | {"loss": 2.5, "perplexity": 12.18, "best_rounds": 0, "best_loss": 2.0}, "worse",
         "Tuning made the model WORSE: test loss 2.000 -> 2.500, perplexity 7.389 -> 12.18. No evaluation was better "
         "than the base's own, test loss 2.000."),
        (RUN | {"accuracy": 0.6, "loss": 0.96}, "unchanged",
         f"No measurable change: test accuracy 55.8% -> 60.0%, test loss 1.004 -> 0.960 {WITHIN}."),
        (RUN | {"accuracy": 0.6, "loss": 0.5}, "helped",
         f"Tuning helped: test accuracy 55.8% -> 60.0%, test loss 1.004 -> 0.500 {WITHIN}."),
        (TEXT | {"loss": 1.99, "perplexity": 7.3}, "unchanged",
         "No measurable change: test loss 2.000 -> 1.990, perplexity 7.389 -> 7.3."),
        (RUN | {"rounds": 0, "best_rounds": 0}, "untuned",
         "Nothing was tuned: the run has no rounds. The base has test accuracy 55.8%, test loss 1.004."),
        (RUN | {"accuracy": 0.5, "loss": 147684.0, "zero_shot_loss": 0.618, "best_rounds": 0, "best_loss": 0.618},
         "diverged",
         "The run DIVERGED: test accuracy 55.8% -> 50.0%, test loss 0.618 -> 147684.000. No evaluation was better than "
         "the base's own, test loss 0.618."),
        (RUN | {"loss": None, "accuracy": 0.0}, "diverged",
         "The run DIVERGED: test accuracy 55.8% -> 0.0%, test loss 1.004 -> not finite."),
        (RUN | {"stopped_by": "divergence"}, "diverged",
         "The run DIVERGED: test accuracy 55.8% -> 85.7%, test loss 1.004 -> 0.348."),
    ],
)  # fmt: skip
def test_an_outcome_and_its_sentence(summary, found, first):
    assert outcome(summary) == found and sentences(summary)[0] == first


def test_a_divergence_says_what_to_do():
    assert sentences(RUN | {"stopped_by": "divergence", "rounds": 3})[1] == (
        "It ended after 3 rounds, since nothing that clients sent was finite any more; the model kept is the last one "
        "that was. Try a smaller local.learning_rate."
    )
    assert sentences(RUN | {"loss": None})[1] == (
        "The tuned model is not usable. Try a smaller local.learning_rate, or leave it to 'auto'."
    )


@pytest.mark.parametrize(
    "gain, found", [(0.098, "unchanged"), (0.100, "helped"), (-0.098, "unchanged"), (-0.1, "worse")]
)
def test_accuracy_counts_beyond_two_standard_errors(gain, found):
    """Of the difference of two shares near 1/2 on 200 examples: 2 sqrt(2 * 0.25 / 200) = 0.1, less where they part."""
    summary = RUN | {"zero_shot_accuracy": 0.5, "accuracy": 0.5 + gain, "loss": 1.0, "zero_shot_loss": 1.0}
    assert outcome(summary) == found


def test_without_the_number_of_examples_accuracy_decides_nothing():
    assert outcome(RUN | {"test_examples": None, "loss": 1.0, "zero_shot_loss": 1.0}) == "unchanged"


def test_a_run_that_goes_on_is_not_judged():
    rows = [{"rounds": 0, "loss": 2.0, "accuracy": 0.25}, {"rounds": 1}, {"rounds": 2, "loss": 1.5, "accuracy": 0.5}]
    assert so_far(rows) == "So far, after 2 rounds: test accuracy 25.0% -> 50.0%, test loss 2.000 -> 1.500."
    assert so_far(rows[:2]) == "Before the first round: test accuracy 25.0%, test loss 2.000."
    assert so_far([]) == "Nothing was evaluated yet."
