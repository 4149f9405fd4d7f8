"""Runs that end before their last round, and the states of a run that can be gone back to, killed or not."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from small_federation import recipe, site, without_a_model
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import experiment, run_store
from seedtune.experiment import resume, run
from seedtune.fed import cohort, guard
from seedtune.fed.rounds import Server, after
from seedtune.inspection import exported
from seedtune.metrics import History, result_of
from seedtune.models.evaluation import Evaluation
from seedtune.run_store import RunStore
from seedtune.space import digest
from seedtune.zo.trajectory import replay

CLOCKED = ("seconds", "round_seconds", "peak_memory_bytes")
pytestmark = pytest.mark.usefixtures("small_runs")


def counts(summary):
    """What does not depend on the clock, nor on the process."""
    return {name: value for name, value in summary.items() if name not in CLOCKED}


class Crash(BaseException):
    """The machine is gone."""


def crashing(patch, name, at_call=0):
    """Lets the so-manieth call of a method of the run store be the last thing that happens."""
    whole, calls = getattr(RunStore, name), []

    @functools.wraps(whole)
    def call(*args):
        calls.append(args)
        if len(calls) - 1 == at_call:
            raise Crash
        return whole(*args)

    patch.setattr(RunStore, name, call)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Makes runs whose evaluations after 0, 1, 2, ... rounds have given test losses, by the weights' digest."""

    def script(settings, losses, clients=lambda loss: {}):
        run(settings, MACHINE, tmp_path / "unscripted", NOTHING)
        ends = [site(settings).replica.digest]
        ends += [record.digest for record in run_store.trajectory_of(tmp_path / "unscripted").records]
        known = dict(zip(ends, losses, strict=False))

        def assembled(recipe, machine, initial=None, own=None, secret=b"", scratch=None):
            made = without_a_model(recipe)
            made.evaluate = lambda: Evaluation(known[made.site.replica.digest], 0.5, 10)
            made.evaluate_clients = lambda: clients(known[made.site.replica.digest])
            return made

        monkeypatch.setattr(experiment, "assemble", assembled)

    return script


def patient(**over):
    return recipe(**{"federation": {"num_rounds": 9}, "run": {"eval_every": 1, "patience": 2}, **over})


LOSSES = [5.0, 4.0, 3.0, 3.5, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0]


def test_patience_ends_a_run(scripted, tmp_path):
    scripted(patient(run={"eval_every": 1}), LOSSES)
    summary = run(patient(), MACHINE, tmp_path / "run", NOTHING)
    assert (summary["rounds"], summary["stopped_by"]) == (4, "patience") and summary["loss"] == 3.0
    assert (summary["best_rounds"], summary["best_loss"], summary["best_accuracy"]) == (2, 3.0, 0.5)
    assert len(run_store.trajectory_of(tmp_path / "run").records) == 4

    whole = run(patient(run={"eval_every": 1}), MACHINE, tmp_path / "whole", NOTHING)
    assert (whole["rounds"], whole["stopped_by"], whole["best_rounds"]) == (9, None, 6)


def test_patience_counts_evaluations_and_not_rounds(scripted, tmp_path):
    """Evaluated after 0, 2, 4, 6, 8 and 9 rounds: 5, 3, 3, 1, 1, 1."""
    every_other = {"eval_every": 2, "patience": 2}
    scripted(patient(run={"eval_every": 1}), LOSSES)
    summary = run(patient(run=every_other), MACHINE, tmp_path / "run", NOTHING)
    assert (summary["rounds"], summary["stopped_by"], summary["best_rounds"]) == (9, None, 6)
    summary = run(patient(run={**every_other, "patience": 1}), MACHINE, tmp_path / "less", NOTHING)
    assert (summary["rounds"], summary["stopped_by"], summary["best_rounds"]) == (4, "patience", 2)


def test_held_out_examples_decide_where_there_are_any(scripted, tmp_path):
    """Their loss rises from the first round on while that of the test examples falls."""
    scripted(patient(run={"eval_every": 1}), LOSSES, lambda loss: {1: Evaluation(10 - loss, 0.25, 4)})
    summary = run(patient(), MACHINE, tmp_path / "run", NOTHING)
    assert (summary["rounds"], summary["stopped_by"]) == (2, "patience")
    assert (summary["best_rounds"], summary["best_loss"], summary["heldout_loss"]) == (0, 5.0, 7.0)
    row = run_store.metrics_of(tmp_path / "run")[2]
    assert row["heldout"] == {"1": {"loss": 7.0, "accuracy": 0.25, "perplexity": None}}


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_is_as_patient(scripted, tmp_path, stop):
    scripted(patient(run={"eval_every": 1}), LOSSES)
    whole = run(patient(), MACHINE, tmp_path / "whole", NOTHING)
    with pytest.raises(KeyboardInterrupt):
        run(patient(), MACHINE, tmp_path / "stopped", StopAfter(stop))
    assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(whole)


SURGING = {"federation": {"num_rounds": 9}, "local": {"learning_rate": 3.0}, "run": {"on_surge": "stop"}}


@pytest.mark.parametrize("settings, reason", [({}, "patience"), (SURGING, "surge")], ids=["patience", "surge"])
def test_a_run_killed_before_its_summary_ends_as_it_would_have(scripted, monkeypatch, tmp_path, settings, reason):
    """Nothing is left to do then but to say how it ended: no round is run again, and none more."""
    scripted(patient(**settings | {"run": {"eval_every": 1}}), LOSSES)
    whole = run(patient(**settings), MACHINE, tmp_path / "whole", NOTHING)
    assert whole["stopped_by"] == reason and whole["rounds"] < 9
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crashing(patch, "finish")
        run(patient(**settings), MACHINE, tmp_path / "killed", NOTHING)
    heard = []
    ended = resume(tmp_path / "killed", MACHINE, lambda rounds, result, evaluation: heard.append(rounds))
    assert counts(ended) == counts(whole) and heard == [whole["rounds"]]


def test_a_surge_that_ends_a_run_is_evaluated_and_told(tmp_path):
    summary = run(patient(**SURGING), MACHINE, tmp_path / "run", NOTHING)
    last = run_store.metrics_of(tmp_path / "run")[-1]
    assert (summary["rounds"], summary["stopped_by"]) == (2, "surge") and last["loss"] == summary["loss"] == 1.0
    assert summary["surges"] == {"2": last["surge"]} and last["surge"].startswith("the training loss rose from 82.")
    assert last["back_to"] is None


# Runs of which nothing finite comes back any more.

OVERFLOWING = {
    "weights": {"federation": {"upload": "weights", "num_rounds": 9}, "local": {"order": "first"}},
    "zeroth-order weights": {"federation": {"upload": "weights", "num_rounds": 9}},
    "scalars": {"federation": {"num_rounds": 9}},
    "shared keys": {"federation": {"num_rounds": 9, "keys": "shared"}},
}


def overflowing(monkeypatch, settings, since=4, rounds=()):
    """Lets every client's loss be without bounds from a round on, or in some; the weights instead, where it moves them
    by backpropagation."""
    local_round = cohort.local_round

    def round_(site, order):
        bad = order.round in rounds if rounds else order.round >= since
        if bad and site.recipe.local.order == "first":
            return local_round(site, replace(order, rate=3e38))
        return local_round(replace(site, loss=lambda batch: site.loss(batch) * (torch.inf if bad else 1)), order)

    monkeypatch.setattr(cohort, "local_round", round_)
    monkeypatch.setattr(cohort, "MOST_COPIED", -1)  # so that nobody rides past it
    return recipe(**settings)


@pytest.mark.parametrize("settings", OVERFLOWING.values(), ids=OVERFLOWING)
def test_a_run_ends_where_nothing_finite_comes_back(monkeypatch, tmp_path, settings):
    settings = overflowing(monkeypatch, settings)
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    assert (summary["rounds"], summary["stopped_by"]) == (7, "divergence") and list(summary["surges"]) == ["5"]
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary

    rows = run_store.metrics_of(tmp_path / "run")
    last_good, replied = rows[4]["state_digest"], 0 if settings.local.order == "first" else 4
    assert [row["replied"] for row in rows[1:]] == [4] * 4 + [replied] * 3
    assert summary["state_digest"] == last_good == replayed(tmp_path / "run", 7).hex()
    for stop in (3, 5, 6, 7):
        with pytest.raises(KeyboardInterrupt):
            run(settings, MACHINE, tmp_path / "stopped", StopAfter(stop), replace_run=True)
        assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(summary), f"stopped after {stop}"


@pytest.mark.parametrize("settings", OVERFLOWING.values(), ids=OVERFLOWING)
def test_two_such_rounds_in_a_row_do_not_end_a_run(monkeypatch, tmp_path, settings):
    settings = overflowing(monkeypatch, settings, rounds=(2, 3, 5, 6))
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    assert (summary["rounds"], summary["stopped_by"]) == (9, None)


@pytest.mark.parametrize("num_rounds, since, reason", [(7, 4, "divergence"), (6, 4, None), (2, 0, "divergence")])
def test_a_run_may_diverge_with_its_last_round(monkeypatch, tmp_path, num_rounds, since, reason):
    settings = overflowing(monkeypatch, {"federation": {"num_rounds": num_rounds}}, since)
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    assert (summary["rounds"], summary["stopped_by"]) == (num_rounds, reason)


@pytest.mark.parametrize("settings", OVERFLOWING.values(), ids=OVERFLOWING)
def test_acting_on_a_surge_comes_before_that(monkeypatch, tmp_path, settings):
    """The first such round ends the run, or is taken back and halves the rate."""
    stopped = overflowing(monkeypatch, settings | {"run": {"on_surge": "stop"}})
    summary = run(stopped, MACHINE, tmp_path / "stop", NOTHING)
    assert (summary["rounds"], summary["stopped_by"]) == (5, "surge")
    summary = run(recipe(**settings, run={"on_surge": "backoff"}), MACHINE, tmp_path / "back", NOTHING)
    rows = run_store.metrics_of(tmp_path / "back")
    assert (summary["rounds"], summary["stopped_by"]) == (9, None) and list(summary["surges"]) == list("56789")
    assert [row["learning_rate"] for row in rows[5:]] == [0.01 * 0.5**n for n in range(5)]


# Which weights stay on disk where clients upload theirs.

SILENT = {"upload": "weights", "num_rounds": 12, "cohort_size": 1, "dropout_rate": 0.5}
"""One client is asked, and every other round it stays silent: the round moves nothing and has no weights."""
BACK = {
    "local": {"learning_rate": 0.08, "warmup_rounds": 14},
    "federation": {"upload": "weights", "num_rounds": 20, "batch_size": 12, "dropout_rate": 0.08, "min_replies": 4},
    "run": {"on_surge": "backoff"},
}


def replayed(folder, num_rounds):
    fresh = site(run_store.recipe_of(folder))
    snapshot = lambda round_: run_store.snapshot_of(folder, round_)  # noqa: E731
    replay(fresh.perturber.space, fresh.replica.weights, run_store.trajectory_of(folder), num_rounds, snapshot)
    return digest(fresh.replica.weights)


def states_needed(folder):
    """Numbers of rounds: where the run stands, its best evaluation, and where a surge would lead it back to."""
    settings, rows = run_store.recipe_of(folder), run_store.metrics_of(folder)
    at, records = site(settings), run_store.trajectory_of(folder).records
    state = Server.at_start(settings, at.header, at.perturber.space, at.replica)
    for record, row in zip(records, rows[1:], strict=True):
        state = after(state, result_of(record, row))
    return len(records), History.of(settings, rows).best_rounds, *state.guard.good_states


@pytest.mark.parametrize("settings", [{"federation": SILENT}, BACK], ids=["silent", "back"])
@pytest.mark.parametrize("losses", [range(99, 0, -1), [9, 8, 7, 6, 5, 4, *[9] * 99], [9, 8, *[9] * 99]])
def test_few_weights_stay_and_those_that_are_needed(scripted, tmp_path, monkeypatch, settings, losses):
    monkeypatch.setattr(guard, "_BLOCK", 3)
    settings = recipe(**{"run": {}, **settings} | {"run": {"eval_every": 1, **settings.get("run", {})}})
    scripted(settings, [float(loss) for loss in losses])
    folder, seen = tmp_path / "run", []

    def listen(num_rounds, result, evaluation):
        files = list((folder / "snapshots").glob("*"))
        assert len(files) <= 5
        for rounds in states_needed(folder):
            assert replayed(folder, rounds).hex() == ends(folder)[rounds]
        seen.append(len(files))

    run(settings, MACHINE, folder, listen)
    assert max(seen) >= 2 and len(seen) == settings.federation.num_rounds + 1


def ends(folder):
    start = site(run_store.recipe_of(folder)).replica.digest.hex()
    return [start, *(row["state_digest"] for row in run_store.metrics_of(folder)[1:])]


@pytest.mark.parametrize("settings", [{"federation": SILENT}, BACK], ids=["silent", "back"])
def test_a_run_killed_before_any_round_is_whole_goes_on(tmp_path, settings):
    """Its new weights are on disk by then, and older ones have gone."""
    settings = recipe(**settings)
    whole = run(settings, MACHINE, tmp_path / "whole", NOTHING)
    for round_ in range(1, settings.federation.num_rounds, 2):
        folder = tmp_path / f"killed-{round_}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
            crashing(patch, "append", round_)
            run(settings, MACHINE, folder, NOTHING)
        assert counts(resume(folder, MACHINE, NOTHING)) == counts(whole), f"killed in round {round_}"


def test_all_weights_stay_where_that_is_wanted(tmp_path):
    settings = recipe(federation={**SILENT, "dropout_rate": 0.0}, run={"keep_snapshots": "all"})
    run(settings, MACHINE, tmp_path / "run", NOTHING)
    assert len(list((tmp_path / "run/snapshots").glob("*"))) == 12
    assert [replayed(tmp_path / "run", rounds).hex() for rounds in range(13)] == ends(tmp_path / "run")


def test_the_best_round_of_a_real_run_is_replayed(tiny_recipe, tmp_path, monkeypatch):
    """Its rate is too large, so the best model is one that it passed."""
    monkeypatch.undo()  # no small runs here
    settings = tiny_recipe(
        federation={"upload": "weights", "num_rounds": 6}, local={"learning_rate": 0.03}, run={"eval_every": 1}
    )
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    rows = run_store.metrics_of(tmp_path / "run")
    best = min(rows, key=lambda row: row["loss"])
    assert 0 < summary["best_rounds"] == best["rounds"] < 4 and summary["best_loss"] == best["loss"]
    stands = exported(tmp_path / "run", tmp_path / "best", None, summary["best_rounds"], merge=False)
    assert stands == {"rounds": best["rounds"], "state_digest": best["state_digest"]}
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary
