"""Runs in processes of their own: the same results, and a lost process costs one run."""

import os
import select
import signal
import subprocess
import sys

import pytest
import tiny_runs

from seedtune import experiment, run_store
from seedtune.errors import EngineError, NotFinite
from seedtune.fed import cohort
from seedtune.studies import folders
from seedtune.studies.workers import Ended, Here, Processes, crew_of, perform


def test_one_at_a_time_needs_no_process():
    assert isinstance(crew_of(1), Here) and crew_of(3) == Processes(3)


def test_processes_run_as_here_and_a_lost_one_costs_its_run(tiny_recipe, tmp_path):
    recipes = [tiny_recipe(run={"seed": seed, "num_threads": 1}) for seed in (0, 1)]
    heard, (lost, kept) = [], (tmp_path / "lost", tmp_path / "kept")

    with Processes(2) as crew:
        crew.start(lost, recipes[0])
        os.kill(crew.workers[0].process.pid, signal.SIGKILL)
        crew.start(kept, recipes[1])
        assert not crew.has_room()
        ends = {end.folder: end for end in (crew.next_ended(lambda *news: heard.append(news)) for _ in range(2))}
        assert ends[lost].error == "its process ended with exit code -9" and ends[kept] == Ended(kept)
        assert crew.has_room() and [news for news in heard if news[0] == kept] == [(kept, n) for n in range(4)]
        survivor = crew.workers[0].process
    assert not survivor.is_alive() and crew.workers[0].pipe.closed
    here = experiment.run(experiment.resolved(recipes[1]), experiment.Machine(), tmp_path / "here", lambda *_: None)
    assert run_store.summary_of(kept)["state_digest"] == here["state_digest"]


def test_leaving_stops_what_runs(tiny_recipe, tmp_path):
    endless = tiny_recipe(federation={"num_rounds": 1_000_000, "batch_size": 4})

    def enough(folder, rounds):
        if rounds > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Processes(1) as crew:
        crew.start(tmp_path / "run", endless)
        crew.next_ended(enough)
    assert not crew.workers[0].process.is_alive()
    assert len(run_store.metrics_of(tmp_path / "run")) >= 3


MEASURES_FOR_EVER = """
import multiprocessing
import time
from dataclasses import dataclass

@dataclass
class Case:  # imports nothing
    path: str

    def row(self):
        return {}

def hold(case):
    with open(case.path, "w") as held:
        print("begun", file=held, flush=True)
        time.sleep(600)

def measured(path, *_):
    with open(path, "w"):
        return memory.in_fresh_process(hold, Case(path))

def serve(pipe):
    global memory
    from seedtune.analysis import memory
    from seedtune.studies import workers
    memory.Case, workers.perform = Case, measured
    workers._serve(pipe)

def study(path):
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,)).start()
    ours.send((path, None))
    time.sleep(600)
"""


def test_what_measures_ends_where_the_study_is_ended(tmp_path):
    """The worker, and the interpreter that it started in turn; both hold a named pipe open while they run."""
    (tmp_path / "for_ever.py").write_text(MEASURES_FOR_EVER)
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-c", "import for_ever, sys; for_ever.study(sys.argv[1])", tmp_path / "pipe"]
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(command, env=os.environ | paths) as study, open(tmp_path / "pipe") as held:
        assert held.readline() == "begun\n"
        study.terminate()
        assert select.select([held], [], [], 60)[0] and not held.read()


def failing_with(text: str):
    def run(*_):
        raise EngineError(f"round 0: 0 usable replies, federation.min_replies is 1; 4 failed, first client 0: {text}")

    return run


@pytest.mark.parametrize("before", [None, 2])
def test_a_run_that_ends_in_divergence_is_no_result(tiny_recipe, tmp_path, monkeypatch, before):
    """Neither at once nor when the study comes upon it again; whatever its last good weights are."""

    def overflowing(site, order):
        raise NotFinite("weights are finite")

    recipe = tiny_recipe(federation={"upload": "weights", "num_rounds": 9}, local={"order": "first"})
    monkeypatch.setattr(cohort, "local_round", overflowing)
    if before is not None:
        with pytest.raises(KeyboardInterrupt):
            experiment.run(recipe, experiment.Machine(), tmp_path / "run", tiny_runs.StopAfter(before))
    end = perform(tmp_path / "run", recipe, lambda *_: None)
    assert end.error is None
    run = folders.ended(tmp_path / "run")
    assert run.loss == float("inf") and run.rounds == 3 and run.stopped_by == "divergence"


def test_another_failure_of_the_engine_is_none(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "run", failing_with("TimeoutError"))
    end = perform(tmp_path / "run", tiny_recipe(), lambda *_: None)
    assert end.error.endswith("first client 0: TimeoutError")
