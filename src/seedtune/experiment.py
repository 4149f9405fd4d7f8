"""A run: from assembled objects to rounds, records and a summary; begun anew or gone on with.

`run` and `resume` drive everything; a `Listener` hears of each round as it ends. What a round does is `fed.rounds`;
what survives a crash is `run_store`; how a recipe becomes objects is `assembly`. Nothing is printed here.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import run_store
from .assembly import Experiment, assemble, indices_of, put_back, restore
from .auto_start import Spent, started
from .config import Machine, Recipe
from .cores import usable_cores
from .engines.engine import RunEngine
from .engines.in_process import InProcess
from .errors import ConfigError, RunStoreError
from .fed.private import SECRET as CLIENT_SECRET
from .fed.private_sum import PrivateSum
from .fed.replies import singly
from .fed.rounds import Exchange, ExchangeProtocol, RoundResult, Server, after, run_rounds
from .fed.seed_scalar import SeedScalar
from .fed.weight_average import WeightAverage
from .keeping import compute_ahead
from .metrics import Evaluated, History, result_of, round_row
from .models.finite import check_zero_shot
from .models.load import pinned
from .models.placement import slowness
from .models.source import KNOWN
from .pinned_inputs import describe_versions, library_versions
from .predictions import conclude, describe
from .privacy.ledger import without_cohort
from .privacy.plan import Plan
from .privacy.rules import resolved as with_noise
from .privacy.secrets import new_secret, secret_of
from .privacy.sum_plan import SumPlan
from .progress import phase
from .run_folder import check_room
from .run_store import RunStore
from .summary import summarize
from .zo import kernels
from .zo.stillness import explain_stillness
from .zo.trajectory import RoundRecord, Trajectory, path

PROTOCOLS: dict[str, type[SeedScalar] | type[WeightAverage]] = {"scalars": SeedScalar, "weights": WeightAverage}

Listener = Callable[[int, RoundResult | None, Evaluated | None], None]
"""Hears (rounds done, the round that ended or None before the first, the evaluation if there was one)."""
Say = Callable[[str], None]
"""Is told in a line, before the rounds, what was decided for a run that its recipe leaves open."""
MakeEngine = Callable[[Experiment, RunStore, Say], RunEngine]
"""What carries the messages of a run, made once its objects are there."""


def protocol_of(recipe: Recipe) -> ExchangeProtocol:
    """What a recipe's rounds exchange."""
    plan = Plan.of(recipe)
    if plan is not None and plan.noise != "local":
        return PrivateSum(plan)
    return PROTOCOLS[recipe.federation.upload]()


def exchange_of(recipe: Recipe) -> Exchange:
    """How the server and its clients exchange what they say: one by one, or so that it sees only sums.

    Raises:
        ConfigError: secure sums that this recipe cannot have, or whose libraries are not installed.
    """
    plan = SumPlan.of(recipe)
    if plan is None:
        return singly
    from .fed.secure_round import SecureRound  # it imports libraries that only secure sums need

    return SecureRound(plan)


def unsaid(note: str) -> None:
    """Tells nobody."""


def in_process(experiment: Experiment, store: RunStore, say: Say) -> RunEngine:
    """All clients here, on the server's own model."""
    memory = {CLIENT_SECRET: experiment.secret} if experiment.secret else {}
    return InProcess(experiment.site, memory)


def check_data_is_here(recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: what clients train on is elsewhere.
    """
    if recipe.task.training == "nodes":
        raise ConfigError("task.training = 'nodes' needs nodes with data of their own: see 'seedtune deploy'")


def run(
    recipe: Recipe,
    machine: Machine,
    folder: Path,
    listen: Listener,
    replace_run: bool = False,
    say: Say = unsaid,
    engine: MakeEngine = in_process,
) -> dict[str, Any]:
    """A new run in `folder`, from the first round to its summary, which is returned.

    Raises:
        SeedtuneError: a folder that cannot hold the run, before anything is loaded; a model or a task that cannot be
            used, with the disk left as it was.
    """
    if engine is in_process:
        check_data_is_here(recipe)
    recipe = resolved(recipe)
    secret = new_secret() if recipe.is_private else b""
    exchange_of(recipe)  # what it refuses is refused before anything is loaded
    claimed = run_store.create(folder, replace_run, run_store.log_bytes(recipe))
    with kernels.using(machine.kernel), claimed as store:
        experiment, spent = _told(assemble(recipe, machine, None, None, secret, folder), say)
        check_room(folder, _snapshot_bytes(experiment))
        start = _begin(experiment, spent, store, listen)
        return _rounds(experiment, start, (), store, _noting(listen, experiment, say), engine(experiment, store, say))


def resume(
    folder: Path, machine: Machine, listen: Listener, say: Say = unsaid, engine: MakeEngine = in_process
) -> dict[str, Any]:
    """Goes on with a run after its last whole round. Ends as the uninterrupted run would have, by digest, on the same
    machine and device with the same number of threads.

    Raises:
        RunStoreError: no run, in use, ended, or damaged. DigestMismatch: its weights, or a part of what it computes
            from, is no longer the same; the part is named.
    """
    with run_store.open_run(folder) as store, kernels.using(machine.kernel):
        summary = run_store.summary_of(folder)
        if summary is not None:
            raise RunStoreError(f"run {folder}: has ended ({summary['rounds']} rounds); there is nothing to resume")
        recipe = run_store.recipe_of(folder)
        if engine is in_process:
            check_data_is_here(recipe)
        if store.recover() is None:
            secret = new_secret() if recipe.is_private else b""
            experiment, spent = _told(assemble(recipe, machine, None, None, secret, folder), say)
            start = _begin(experiment, spent, store, listen)
            return _rounds(
                experiment, start, (), store, _noting(listen, experiment, say), engine(experiment, store, say)
            )
        trajectory, secret = run_store.trajectory_of(folder), secret_of(folder) if recipe.is_private else b""
        if note := describe_versions(trajectory.header.versions, library_versions(recipe)):
            say(note)
        experiment, _ = _told(assemble(recipe, machine, trajectory.header.initial, None, secret, folder), say)
        start = _continue(experiment, trajectory, store, listen)
        return _rounds(experiment, start, trajectory.records, store, listen, engine(experiment, store, say))


def _told(experiment: Experiment, say: Say) -> tuple[Experiment, Spent]:
    """The experiment with what its recipe leaves open measured, and what that took."""
    if experiment.model.chosen:
        say(experiment.model.chosen)
    experiment.check_forward()
    with phase("measuring the perturbation scale and the learning rate"):
        experiment, spent = started(experiment)
    if spent.note:
        say(spent.note)
    if note := slowness(experiment.recipe.model, next(experiment.site.module.parameters()).device):
        say(note)
    return experiment, spent


def _noting(listen: Listener, experiment: Experiment, say: Say) -> Listener:
    """The listener, and a line after a first round in which nothing moved."""

    def noted(done: int, result: RoundResult | None, evaluated: Evaluated | None) -> None:
        listen(done, result, evaluated)
        if done == 1 and result is not None:
            weights = experiment.site.replica.weights
            if note := explain_stillness(result.record.scalars, weights, experiment.recipe.mu):
                say(note)

    return noted


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with what depends on the machine and the working directory written out, so that a run resumed from
    elsewhere uses the same; and the noise that a private run's target needs.

    Raises:
        ConfigError: a private run that cannot be accounted for.
    """
    recipe = with_noise(recipe)
    threads = recipe.run.num_threads or min(torch.get_num_threads(), usable_cores())
    task = {name: _absolute(getattr(recipe.task, name)) for name in ("path", "test_path")}
    named = {name: _absolute(getattr(recipe.model, name)) for name in ("name", "base")}
    return recipe.model_copy(
        update={
            "model": pinned(recipe.model.model_copy(update=named)),
            "task": recipe.task.model_copy(update=task),
            "run": recipe.run.model_copy(update={"num_threads": threads}),
        }
    )


def _absolute(name: str | None) -> str | None:
    """The whole path of what is there; a name of something else, such as a hub id, stays."""
    if name is None or name in KNOWN:
        return name
    try:
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name
    except (OSError, RuntimeError, ValueError):  # no path: whoever opens it says so
        return name


def _snapshot_bytes(experiment: Experiment) -> int:
    """What the snapshots of a run of the weights protocol take at most."""
    recipe = experiment.recipe
    if recipe.federation.upload != "weights":
        return 0
    kept = 6 if recipe.run.keep_snapshots == "last" else recipe.federation.num_rounds
    return kept * sum(tensor.nbytes for tensor in experiment.site.replica.weights.values())


def _rounds(
    experiment: Experiment,
    start: Server,
    done: Sequence[RoundRecord],
    store: RunStore,
    listen: Listener,
    engine: RunEngine,
) -> dict[str, Any]:
    """The rounds after those `done`, each kept before the next begins, and the summary."""
    recipe, clock = experiment.recipe, _Clock(time.perf_counter(), _seconds_before(store))
    records = list(done)
    protocol = protocol_of(recipe)
    history = History.of(recipe, run_store.metrics_of(store.folder))
    back, exchange = partial(_put_back, experiment, store), exchange_of(recipe)
    rounds = run_rounds(start, protocol, engine, back, engine.gather, exchange)
    server, evaluation = start, None
    for server, result in () if history.is_out_of_patience else rounds:
        evaluation = _evaluated(experiment) if _is_evaluated(server) else None
        row = round_row(server.round, clock.seconds(), result, evaluation, server.plan)
        history = history.after(row)
        if result.record.is_snapshot:
            others = _needed_snapshots(records, server, history)
            store.keep_snapshot(result.record.round, server.replica.weights, others)
        store.append(result.record, row)
        records.append(result.record)
        listen(server.round, result, evaluation)
        if history.is_out_of_patience:
            break
    ended = without_cohort(server.plan, engine.finish(server, protocol))
    summary = summarize(experiment, store, history, server) | {"engine": engine.name, **ended}
    first = run_store.metrics_of(store.folder)[0]
    summary |= conclude(experiment, evaluation.test if evaluation else None, first, summary)
    store.finish(summary)
    return summary


def _put_back(experiment: Experiment, store: RunStore, records: tuple[RoundRecord, ...]) -> None:
    put_back(experiment, records, partial(run_store.snapshot_of, store.folder))


def _needed_snapshots(records: Sequence[RoundRecord], server: Server, history: History) -> set[int] | None:
    """The rounds whose weights must stay on disk once one more follows on `records`, None for all: where a run that is
    killed now goes on, the best state, and those to which a surge would lead back, this round or later."""
    if server.recipe.run.keep_snapshots == "all":
        return None
    states = (len(records), history.best_rounds, *server.guard.good_states)
    return {record.round for state in states for record in _last_snapshot(records[:state])}


def _last_snapshot(records: Sequence[RoundRecord]) -> tuple[RoundRecord, ...]:
    """The one that holds the weights after `records`, none where these are the base's. It need not be the last of
    `records`: a round may have moved nothing, or have been taken back."""
    return tuple(record for record in path(records) if record.is_snapshot)[-1:]


@dataclass(frozen=True)
class _Clock:
    """Seconds that a run has taken, those before an interruption included."""

    started: float
    before: float

    def seconds(self) -> float:
        return round(self.before + time.perf_counter() - self.started, 3)


def _seconds_before(store: RunStore) -> float:
    rows = run_store.metrics_of(store.folder)
    return rows[-1]["elapsed_seconds"] or 0.0 if rows else 0.0


def _begin(experiment: Experiment, spent: Spent, store: RunStore, listen: Listener) -> Server:
    """The server before the first round, and the run's files begun."""
    began = time.perf_counter()
    zero_shot = _evaluated(experiment)
    check_zero_shot(experiment.model, zero_shot.test)
    ahead = compute_ahead(experiment.kept, experiment.recipe, len(indices_of(experiment.clients)))
    spent = spent if experiment.recipe.is_private else spent.with_flops(ahead)  # it follows from what clients have
    seconds = round(time.perf_counter() - began, 3)
    row = round_row(0, seconds, None, zero_shot) | spent.as_row() | describe(experiment, zero_shot.test)
    store.begin(experiment.recipe, experiment.header, row, experiment.secret)
    listen(0, None, zero_shot)
    return _server(experiment)


def _continue(experiment: Experiment, trajectory: Trajectory, store: RunStore, listen: Listener) -> Server:
    """The server after the last whole round that the folder holds."""
    folder, num_rounds = store.folder, len(trajectory.records)
    with phase(f"replaying {num_rounds} rounds"):
        restore(experiment, trajectory, lambda round_: run_store.snapshot_of(folder, round_), parts=None)
    server = _server(experiment)
    for record, row in zip(trajectory.records, run_store.metrics_of(folder)[1:], strict=True):
        server = after(server, result_of(record, row))
    listen(num_rounds, None, None)
    return server


def _server(experiment: Experiment) -> Server:
    return Server.at_start(
        experiment.recipe, experiment.header, experiment.space, experiment.site.replica, experiment.secret
    )


def _is_evaluated(server: Server) -> bool:
    recipe = server.recipe
    is_last = server.round == recipe.federation.num_rounds or server.must_stop
    return server.round % recipe.run.eval_every == 0 or is_last


def _evaluated(experiment: Experiment) -> Evaluated:
    return Evaluated(experiment.evaluate(), experiment.evaluate_clients())
