"""Rows say all that a resumed run needs; the best evaluation is a fold over them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_federation import recipe

from seedtune.fed.guard import Surge
from seedtune.fed.rounds import RoundResult
from seedtune.metrics import Evaluated, History, result_of, round_row, scores_of
from seedtune.models.evaluation import Evaluation
from seedtune.zo.trajectory import RoundRecord

NAN = float("nan")
RECORD = RoundRecord(4, (1, 3), np.zeros((2, 1, 1), np.float32), np.ones(2), bytes(range(16)))
RESULT = RoundResult(
    RECORD, cohort=(0, 1, 2, 3), dropped=(0,), failed={2: "KeyError: 'ill'"}, losses={1: 0.1, 3: 1 / 3},
    signals={1: 2e-17, 3: 0.7}, scalar_rms=1e-9 / 3, rate=3e-4, bytes_down=700, bytes_up=300, num_forwards=8,
    num_flops=2**40 + 1, skipped_steps=1, seconds=0.12345678,
)  # fmt: skip


def through_json(row):
    return json.loads(json.dumps(row, allow_nan=False))


def read_back(result: RoundResult) -> RoundResult:
    return result_of(result.record, through_json(round_row(result.record.round + 1, 9.5, result, None)))


def same(found: RoundResult, sent: RoundResult) -> bool:
    """But for the cohort and the surge, which `after` does not read, and the clock."""
    return repr(replace(found, seconds=0)) == repr(replace(sent, seconds=0, cohort=(), surge=None))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"losses": {1: NAN, 3: NAN}, "signals": {}, "scalar_rms": NAN},
        {"losses": {1: NAN, 3: 0.25}},
        {"losses": {}, "signals": {}, "scalar_rms": NAN, "dropped": (0, 1, 2, 3), "failed": {},
         "record": replace(RECORD, clients=(), scalars=np.zeros((0, 1, 1), np.float32), factors=np.zeros(0))},
        {"surge": Surge(NAN, 2.0, 3, "a cause")},
        {"surge": Surge(9.0, 2.0, 3, "a cause"), "record": replace(RECORD, scalars=np.zeros((2, 0, 0)), back_to=3)},
    ],
    ids=["plain", "skipped", "some", "nobody", "surge", "back"],
)  # fmt: skip
def test_what_a_resumed_run_reads_of_a_round_is_what_was_written(changed):
    result = replace(RESULT, **changed)
    found = read_back(result)
    assert same(found, result) and repr(found.train_loss) == repr(result.train_loss)


def test_a_row_says_what_a_reader_looks_for():
    row = through_json(round_row(5, 9.5, RESULT, Evaluated(Evaluation(0.5, 0.75, 10), {})))
    assert row == {
        "rounds": 5, "elapsed_seconds": 9.5, "train_loss": (0.1 + 1 / 3) / 2, "bytes_up": 300, "bytes_down": 700,
        "forwards": 8, "flops": 2**40 + 1, "seconds": 0.1235, "replied": 2, "cohort": 4, "dropped": [0],
        "failed": {"2": "KeyError: 'ill'"}, "losses": {"1": 0.1, "3": 1 / 3}, "signals": {"1": 2e-17, "3": 0.7},
        "scalar_rms": 1e-9 / 3, "learning_rate": 3e-4, "skipped_steps": 1, "state_digest": bytes(range(16)).hex(),
        "loss": 0.5, "accuracy": 0.75, "perplexity": None,
    }  # fmt: skip


def test_the_row_before_the_first_round_is_an_evaluation_alone():
    row = round_row(0, 0.5, None, Evaluated(Evaluation(2.0, None, 10), {}))
    assert row == {"rounds": 0, "elapsed_seconds": 0.5, "loss": 2.0, "accuracy": None, "perplexity": np.exp(2.0)}


def test_a_surge_and_the_way_back_are_in_the_row():
    ignored = round_row(5, 1.0, replace(RESULT, surge=Surge(9.0, 2.0, 3, "a cause")), None)
    assert ignored["surge"] == "the training loss rose from 2.000 to 9.000: a cause" and ignored["back_to"] is None
    back = replace(RESULT, surge=Surge(NAN, 2.0, 3, "a cause"), record=replace(RECORD, back_to=3))
    row = round_row(5, 1.0, back, None)
    assert (row["surge"], row["back_to"]) == ("the training loss is not finite: a cause", 3)
    assert "surge" not in round_row(5, 1.0, RESULT, None)


def test_clients_count_in_the_mean_as_often_as_they_have_examples():
    clients = {2: Evaluation(1.0, 0.5, 1), 5: Evaluation(3.0, 1.0, 3)}
    row = round_row(0, 0.0, None, Evaluated(Evaluation(9.0, 0.0, 10), clients))
    assert (row["heldout_loss"], row["heldout_accuracy"], row["heldout_perplexity"]) == (2.5, 0.875, None)
    assert row["heldout"]["5"] == {"loss": 3.0, "accuracy": 1.0, "perplexity": None} and row["loss"] == 9.0

    texts = {0: Evaluation(1.0, None, 1), 1: Evaluation(NAN, None, 1)}
    row = through_json(round_row(0, 0.0, None, Evaluated(Evaluation(9.0, None, 10), texts)))
    assert row["heldout_loss"] is None and row["heldout"]["1"] == {"loss": None, "accuracy": None, "perplexity": None}


def test_scores_that_are_not_there_are_none():
    assert scores_of(None, "a_") == {"a_loss": None, "a_accuracy": None, "a_perplexity": None}
    assert scores_of(Evaluation(NAN, 0.5, 1)) == {"loss": None, "accuracy": 0.5, "perplexity": None}


# The best evaluation.


def evaluations(losses, heldout=None):
    """One row a number of rounds; None is a loss that was not finite, "-" a round that was not evaluated."""
    rows = []
    for rounds, loss in enumerate(losses):
        row = {"rounds": rounds}
        if loss != "-":
            row |= {"loss": loss, "accuracy": rounds / 10}
            row |= {"heldout_loss": heldout[rounds]} if heldout else {}
        rows.append(row)
    return rows


def after(losses, patience=0, heldout=None) -> History:
    return History.of(recipe(run={"patience": patience}), evaluations(losses, heldout))


@pytest.mark.parametrize(
    "losses, best, since",
    [
        ([], (0, None, None), 0),
        ([3.0], (0, 3.0, 0.0), 0),
        ([3.0, 2.0, 2.5, 2.2], (1, 2.0, 0.1), 2),
        ([3.0, 2.0, 2.0], (1, 2.0, 0.1), 1),  # as good is not better
        ([3.0, "-", "-", 2.0, "-"], (3, 2.0, 0.3), 0),
        ([None, None], (0, None, None), 2),
        ([None, 2.0, None], (1, 2.0, 0.1), 1),
    ],
)
def test_the_best_is_the_first_of_the_lowest_losses(losses, best, since):
    history = after(losses)
    assert (history.best_rounds, history.best_loss, history.best_accuracy) == best
    assert history.num_since_best == since


def test_held_out_examples_decide_which_is_best():
    history = after([3.0, 2.0, 1.0], heldout=[3.0, 1.0, 2.0])
    assert (history.best_rounds, history.best_loss) == (1, 2.0)
    history = after([3.0, 2.0, 1.0], heldout=[3.0, None, 4.0])
    assert (history.best_rounds, history.best_loss, history.num_since_best) == (0, 3.0, 2)
    history = after([None, 2.0], heldout=[1.0, 2.0])
    assert (history.best_rounds, history.best_loss) == (0, None)


@pytest.mark.parametrize("patience, ends", [(0, []), (1, [2, 4, 5, 6]), (2, [5, 6]), (3, [6]), (4, [])])
def test_patience_ends_after_so_many_evaluations_without_a_better_one(patience, ends):
    losses = [3.0, 2.0, 2.5, 1.0, 1.5, None, 1.0]
    found = [n for n in range(len(losses)) if after(losses[: n + 1], patience).is_out_of_patience]
    assert found == ends
