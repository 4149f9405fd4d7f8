import io

import numpy as np
import pytest
from rich.console import Console

from seedtune import results, tables, terminal
from seedtune.console import pairs
from seedtune.fed.guard import Surge
from seedtune.fed.rounds import RoundResult
from seedtune.metrics import Evaluated
from seedtune.models.evaluation import Evaluation
from seedtune.zo.trajectory import RoundRecord


def result(round_: int, failed=None, surge=None, back_to=None) -> RoundResult:
    record = RoundRecord(round_, (0,), np.zeros((1, 1, 1), np.float32), np.zeros(1), bytes(16), back_to)
    return RoundResult(
        record, (0, 1), (), failed or {}, losses={0: 0.5, 1: 0.0}, signals={}, scalar_rms=1.0, rate=0.1, bytes_down=700,
        bytes_up=300, num_forwards=2, num_flops=10, skipped_steps=0, seconds=0.1, surge=surge,
    )  # fmt: skip


def shown(console: Console, calls, num_rounds: int = 100, sent: int = 0) -> str:
    with terminal.progress(console, num_rounds, sent) as listen:
        for call in calls:
            listen(*call)
    return console.file.getvalue()


def piped() -> Console:
    """As the command line makes it where nobody looks at a terminal."""
    return Console(file=io.StringIO(), width=10_000, markup=False, emoji=False, highlight=False)


def test_a_piped_run_prints_plain_lines():
    calls = [(0, None, Evaluated(Evaluation(2.0, 0.5, 10), {}))]
    calls += [(n, result(n - 1), Evaluated(Evaluation(1.0, 0.75, 10), {}) if n == 100 else None) for n in range(1, 101)]
    lines = shown(piped(), calls).splitlines()
    assert lines[0] == "round 0/100  test loss 2.000  accuracy 50.0%  sent 0 B"
    assert lines[1] == "round 5/100  train loss 0.250  sent 5.0 kB"
    assert lines[-1] == "round 100/100  train loss 0.250  test loss 1.000  accuracy 75.0%  sent 100.0 kB"
    assert len(lines) == 21


def test_failures_and_resumption_are_news():
    failed = {3: "KeyError: 'x'", 1: "MessageError: [red]no[/red]"}
    lines = shown(piped(), [(7, None, None), (8, result(7, failed), None)], sent=7000).splitlines()
    assert lines == [
        "round 7/100  resumed",
        "round 8/100  train loss 0.250  sent 8.0 kB  left out: client 1 (MessageError: [red]no[/red]), and 1 more",
    ]


def test_a_terminal_shows_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    calls = [(0, None, Evaluated(Evaluation(2.0, None, 10), {})), *((n, result(n - 1), None) for n in range(1, 1001))]
    text = shown(console, calls, num_rounds=1000)
    assert " 1000/1000 train 0.250  test 2.000  perplexity 7.39  1.0 MB 0:00:00" in text


SURGE = Surge(60.0, 2.2, 7, "local.learning_rate is likely too large [red]")
TOLD = "SURGE: the training loss rose from 2.200 to 60.000: local.learning_rate is likely too large [red]"


@pytest.mark.parametrize("back_to, end", [(None, ""), (7, "; back to round 7, at half the rate"),
                                          (0, "; back to round 0, at half the rate")])  # fmt: skip
def test_a_surge_is_news(back_to, end):
    calls = [(n, result(n - 1), None) for n in (8, 9)]
    calls.insert(1, (9, result(8, surge=SURGE, back_to=back_to), None))
    lines = shown(piped(), calls).splitlines()
    assert lines == [f"round 9/100  train loss 0.250  sent 2.0 kB  {TOLD}{end}"]


def test_a_surge_stays_above_the_bar():
    """On the bar it would be cut to a few letters, and gone with the next round."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    calls = [(n, result(n - 1, surge=SURGE if n == 9 else None, back_to=7 if n == 9 else None), None)
             for n in range(1, 1001)]  # fmt: skip
    text = shown(console, calls, num_rounds=1000)
    assert text.count(f"round 9: {TOLD}; back to round 7, at half the rate\n") == 1
    assert " 1000/1000 train 0.250  1.0 MB 0:00:00" in text


EVENTLESS = {
    "rounds": 100, "surges": {}, "stopped_by": None, "best_rounds": 100, "best_loss": 1.25, "zero_shot_loss": 2.0,
    "loss": 1.5,
}  # fmt: skip
BETTER = "The best evaluation was after 40 rounds, test loss 1.250: 'seedtune replay --round 40' rebuilds that model."


@pytest.mark.parametrize(
    "changed, lines",
    [
        ({}, []),
        ({"best_rounds": 0, "best_loss": None}, []),  # no loss was finite
        ({"best_rounds": 40}, [BETTER]),
        ({"best_rounds": 0}, ["No evaluation was better than the base's own, test loss 1.250."]),
        ({"best_rounds": 40, "loss": 9.0}, []),  # a run that went wrong says so in its first sentence
        ({"stopped_by": "surge"}, ["ended early, after 100 rounds: the loss surged"]),
        ({"stopped_by": "divergence", "rounds": 7, "best_rounds": 7}, []),
        ({"stopped_by": "patience", "rounds": 60, "best_rounds": 40},
         ["ended early, after 60 rounds: no better evaluation for run.patience of them", BETTER]),
        ({"surges": {"9": "the training loss rose", "31": "it is not finite"}},
         ["loss surge in round 9: the training loss rose", "loss surge in round 31: it is not finite"]),
    ],
)  # fmt: skip
def test_events_are_what_the_results_do_not_show(changed, lines):
    assert results.events(EVENTLESS | changed) == lines


SUMMARY = {
    "method": "seedtune", "backprop_steps": 0, "zero_shot_loss": 2.0, "zero_shot_accuracy": 0.25,
    "zero_shot_perplexity": None, "loss": 1.5, "accuracy": 0.5, "perplexity": None, "backprop_loss": None,
    "backprop_accuracy": None, "backprop_perplexity": None,
}  # fmt: skip


def first(parts):
    """The table alone: what follows it reads run folders."""
    return next(iter(parts))


def table(rows) -> list[str]:
    console = piped()
    console.print(rows)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    "changed, lines",
    [
        ({}, ["zero-shot         25.0%     2.000", "tuned (seedtune)  50.0%     1.500"]),
        ({"loss": None}, ["zero-shot         25.0%     2.000", "tuned (seedtune)  50.0%     not finite"]),
        (
            {"backprop_steps": 9},
            [
                "zero-shot                            25.0%       2.000",
                "tuned (seedtune)                     50.0%       1.500",
                "backpropagation of the same tensors  not finite  not finite",
            ],
        ),
    ],
)
def test_the_outcome_beside_zero_shot_and_backpropagation(changed, lines):
    assert table(results.outcome(SUMMARY | changed))[1:] == lines


def test_texts_are_judged_by_perplexity():
    text = {"zero_shot_accuracy": None, "zero_shot_perplexity": 7.389, "accuracy": None, "perplexity": 4.48}
    assert table(results.outcome(SUMMARY | text))[1].split() == ["zero-shot", "7.39", "2.000"]


def test_runs_at_a_target_say_what_they_needed_or_their_best():
    needed = {"rounds": 40, "seconds": 12.34, "forwards": 320, "bytes_up": 950, "bytes_down": 31_000}
    reached = {"run": "runs/a", "method": "fedmezo", "measure": "accuracy", "target": 0.8, "best": 0.9,
               "reached": {"accuracy": 0.8125, "flops": 2_101_881_081_344, **needed}}  # fmt: skip
    short = {"run": "runs/b", "method": "fedavg", "measure": "accuracy", "target": 0.8, "best": 0.713, "reached": None}
    assert table(first(tables.at_target([reached, short]))) == [
        "run     method   accuracy >= 0.8          rounds  FLOPs   forwards  seconds  up     down",
        "runs/a  fedmezo  81.2%                    40      2.10 T  320       12.3     950 B  31.0 kB",
        "runs/b  fedavg   not reached, best 71.3%",
    ]


def test_a_target_of_loss_and_rounds_that_were_not_metered():
    needed = {"loss": 0.25, "rounds": 4, "seconds": 1.0, "flops": None, "forwards": 8, "bytes_up": 0, "bytes_down": 0}
    row = {"run": "r", "method": "m", "measure": "loss", "target": 0.5, "best": 0.25, "reached": needed}
    lines = table(first(tables.at_target([row, row | {"reached": None, "best": None}])))
    assert "  loss <= 0.5  " in lines[0] and lines[1].split()[2:6] == ["0.2500", "4", "not", "counted"]
    assert lines[2].split(maxsplit=2)[2] == "not reached, best not finite"


def test_no_value_of_a_table_is_cut():
    long = "/a/path/" + "x" * 200
    counts = {"rounds": 10, "bytes_up": 10**9, "bytes_down": 1, "forwards": 7, "flops": None, "seconds": 1.25}
    named = {"run": long, "task": "topics", "model": "tiny", "method": "seedtune", "outcome": "helped"}
    row = named | {"loss": None, "accuracy": 0.5, "perplexity": None, "zero_shot_accuracy": 0.25, **counts}
    printed = table(first(tables.compare([row, row | {"flops": 2.5e9}])))
    assert printed[1].split()[:5] == [long, "topics", "tiny", "seedtune", "10"] and len(printed) == 3
    assert "  25.0% -> 50.0%  not finite -> not finite  helped  " in printed[1] and "perplexity" not in printed[0]
    assert printed[1].split()[-3:] == ["not", "counted", "1.2"] and printed[2].split()[-3:] == ["2.50", "G", "1.2"]
    assert table(pairs({"digest": "f" * 300}))[0].split() == ["digest", "f" * 300]
    narrow = Console(file=io.StringIO(), width=40)
    narrow.print(pairs({"digest": "f" * 300}))
    assert narrow.file.getvalue().count("f") == 300
