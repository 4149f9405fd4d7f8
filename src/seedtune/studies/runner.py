"""A study carried out: the runs and measurements that are wanted and not there yet, then its outcomes.

Guarantees: a run that has ended is never run again, nor is a measurement made twice; a run that was interrupted goes on
from its last whole round; a folder that holds another run is an error before anything is run; outcomes are there only
when all of it is done.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SeedtuneError
from ..report import figure
from . import folders, outcomes
from .jobs import Job, key, num_expected, results_of, wanted
from .measured import Measured, Result, Run, Taken
from .measuring import Kept
from .plan import Plan, Request, planned
from .workers import Crew, Ended, Task, crew_of


@dataclass(frozen=True)
class News:
    """How far a study is: `num_done` of `num_runs` runs and measurements have ended.

    `job`: whose round or end this is, None before the first; `run`: what it came to, once it has ended; `error`: why it
    failed.
    """

    num_done: int
    num_runs: int
    job: Job | None = None
    rounds: int = 0
    run: Run | Kept | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.run is not None or self.error is not None


Listener = Callable[[News], None]


def prepared(request: Request) -> Plan:
    """What will be run, after checking that it can be drawn in the end.

    Raises:
        ConfigError: a library is missing, or as `plan.planned`.
    """
    figure.check_installed()
    return planned(request)


def carry_out(plan: Plan, folder: Path, num_jobs: int | None, listen: Listener) -> outcomes.Outcome:
    """Runs what is missing, `num_jobs` at once (None: as many as there are cores), and writes the outcomes. What is
    measured apart goes one by one: whether a model fits is judged by the memory that is free.

    Raises:
        RunStoreError: the folder holds something else, or a run with other settings. SeedtuneError: runs failed; the
            first is named with its error, the others have ended.
    """
    with folders.claimed_for(plan, folder):
        state = _found(plan, folder)
        if state.startable():
            folders.remove_outcomes(folder)
        listen(News(state.num_done(), state.num_expected()))
        with crew_of(_size_of_crew(state, num_jobs)) as crew:
            _run_all(state, crew, listen)
        _check_failed(state)
        return outcomes.write(plan, folder, measured(plan, state.runs, state.measurements))


@dataclass
class _State:
    """Runs and measurements by key: where each lies, which have ended, are running, have failed."""

    plan: Plan
    folder: Path
    places: dict[str, Path]
    ended: dict[str, Run | Kept]
    running: dict[Path, Job] = field(default_factory=dict)
    failed: dict[str, tuple[Job, str | None]] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, Run]:
        """Those that have ended."""
        return {at: one for at, one in self.ended.items() if isinstance(one, Run)}

    @property
    def measurements(self) -> dict[str, Kept]:
        """Those that are done."""
        return {at: one for at, one in self.ended.items() if isinstance(one, Kept)}

    def startable(self) -> list[Job]:
        """The jobs that are wanted and neither ended, failed nor running, one for each key."""
        known = {*self.ended, *self.failed, *(job.key for job in self.running.values())}
        jobs = {job.key: job for job in reversed(wanted(self.plan, self.runs))}
        return [job for at, job in reversed(jobs.items()) if at not in known]

    def place(self, job: Job) -> Path:
        """Where a run lies already, or its own folder.

        Raises:
            RunStoreError: its own folder holds another run.
        """
        own = self.folder / job.folder
        if job.key not in self.places:
            folders.check_free(own, job)
        return self.places.setdefault(job.key, own)

    def task(self, job: Job) -> Task:
        """What a crew is given."""
        if not job.asked:
            return job.recipe
        return job.asked, self.places[key(job.recipe)] if job.asked.at == "end" else None

    def num_done(self) -> int:
        return sum(job.key in self.ended for job in wanted(self.plan, self.runs))

    def num_expected(self) -> int:
        return num_expected(self.plan, self.runs)


def _found(plan: Plan, folder: Path) -> _State:
    places = folders.held(folder)
    runs = {at: folders.ended(place) for at, place in places.items()}
    state = _State(plan, folder, places, {at: run for at, run in runs.items() if run})
    for job in state.startable():
        state.place(job)
    return state


def _size_of_crew(state: _State, num_jobs: int | None) -> int:
    if state.plan.study.is_apart:
        return 1
    return num_jobs or max(1, min(_num_cores(), state.num_expected() - state.num_done()))


def _run_all(state: _State, crew: Crew, listen: Listener) -> None:
    def hear(place: Path, rounds: int) -> None:
        listen(News(state.num_done(), state.num_expected(), state.running[place], rounds))

    while True:
        for job in state.startable():
            if crew.has_room():
                state.running[state.place(job)] = job
                crew.start(state.place(job), state.task(job))
        if not state.running:
            return
        listen(_noted(state, crew.next_ended(hear)))


def _noted(state: _State, end: Ended) -> News:
    """Files a run that ended, and the news of it."""
    job = state.running.pop(end.folder)
    run = None if end.error else folders.ended(end.folder)
    if run:
        state.ended[job.key] = run
    else:
        state.failed[job.key] = job, end.error
    error, rounds = None if run else end.error, run.rounds if isinstance(run, Run) else 0
    return News(state.num_done(), state.num_expected(), job, rounds, run, error)


def _check_failed(state: _State) -> None:
    if state.failed:
        job, error = next(iter(state.failed.values()))
        raise SeedtuneError(
            f"study {state.plan.study.name}: {len(state.failed)} of {state.num_expected()} runs failed, first "
            f"{job.name}: {error}; the others are kept, and the same command goes on with what is missing"
        )


def measured(plan: Plan, ended: Mapping[str, Run], kept: Mapping[str, Kept]) -> Measured:
    """All runs and measurements of a plan, case by case."""
    jobs = wanted(plan, ended)
    results = []
    for case in plan.cases:
        if case.trained:
            runs = tuple(ended[job.key] for job in results_of(plan, case, ended))
            grid = tuple(ended[job.key] for job in jobs if job.case is case and job.role == "rate")
            results.append(Result(case.label, case.series, case.x, runs, grid, plan.study.judged_by, case.subject))
    taken = tuple(
        Taken(job.case.label, job.case.subject, job.measure.name, job.recipe.run.seed, kept[job.key])
        for job in jobs if job.measure
    )  # fmt: skip
    return Measured(plan.study, tuple(results), len(plan.seeds), taken)


def _num_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
