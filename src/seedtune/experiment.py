"""A run: from assembled objects to rounds, records and a summary; begun anew or gone on with.

`run` and `resume` drive everything; a `Listener` hears of each round as it ends. What a round does is `fed.rounds`;
what survives a crash is `run_store`; how a recipe becomes objects is `assembly`. Nothing is printed here.
"""

import math
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import run_store
from .assembly import Experiment, assemble, initial_values, install_initial, restore
from .config import FederationConfig, Machine, Recipe
from .data.batches import batch_of
from .data.keyed import client_batch_indices
from .engines.in_process import InProcess
from .errors import MessageError, RunStoreError
from .fed.client import local_round
from .fed.messages import Order, unpack_weights
from .fed.rounds import RoundResult, Server, after, run_rounds
from .fed.seed_scalar import SeedScalar
from .fed.weight_average import WeightAverage
from .models.evaluation import Evaluation
from .models.load import load
from .run_folder import check_room
from .run_store import RunStore
from .space import bound_weights, copied, copy_into
from .zo import kernels
from .zo.trajectory import Trajectory

PROTOCOLS = {"scalars": SeedScalar, "weights": WeightAverage}

Listener = Callable[[int, RoundResult | None, Evaluation | None], None]
"""Hears (rounds done, the round that ended or None before the first, the evaluation if there was one)."""


def run(recipe: Recipe, machine: Machine, folder: Path, listen: Listener, replace_run: bool = False) -> dict[str, Any]:
    """A new run in `folder`, from the first round to its summary, which is returned.

    Raises:
        SeedtuneError: a folder that cannot hold the run, before anything is loaded; a model or a task that cannot be
            used, with the disk left as it was.
    """
    recipe = resolved(recipe)
    claimed = run_store.create(folder, replace_run, run_store.log_bytes(recipe))
    with kernels.using(machine.kernel), claimed as store:
        experiment = assemble(recipe, machine)
        check_room(folder, _snapshot_bytes(experiment))
        return _rounds(experiment, _begin(experiment, store, listen), store, listen)


def resume(folder: Path, machine: Machine, listen: Listener) -> dict[str, Any]:
    """Goes on with a run after its last whole round. Ends as the uninterrupted run would have, by digest, on the same
    machine with the same number of threads.

    Raises:
        RunStoreError: no run, in use, ended, or damaged. DigestMismatch: its model or its weights are no longer the
            same.
    """
    with run_store.open_run(folder) as store, kernels.using(machine.kernel):
        summary = run_store.summary_of(folder)
        if summary is not None:
            raise RunStoreError(f"run {folder}: has ended ({summary['rounds']} rounds); there is nothing to resume")
        recipe = run_store.recipe_of(folder)
        if store.recover() is None:
            experiment = assemble(recipe, machine)
            return _rounds(experiment, _begin(experiment, store, listen), store, listen)
        trajectory = run_store.trajectory_of(folder)
        experiment = assemble(recipe, machine, trajectory.header.initial)
        return _rounds(experiment, _continue(experiment, trajectory, store, listen), store, listen)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with what depends on the machine and the working directory written out, so that a run resumed from
    elsewhere uses the same."""
    threads = recipe.run.num_threads or torch.get_num_threads()
    task = {name: _absolute(getattr(recipe.task, name)) for name in ("path", "test_path")}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"name": _absolute(recipe.model.name)}),
            "task": recipe.task.model_copy(update=task),
            "run": recipe.run.model_copy(update={"num_threads": threads}),
        }
    )


def _absolute(name: str | None) -> str | None:
    """The whole path of what is there; a name of something else, such as a hub id, stays."""
    if name in (None, "starter") or not Path(name).expanduser().exists():
        return name
    return str(Path(name).expanduser().resolve())


def _snapshot_bytes(experiment: Experiment) -> int:
    """What the snapshots of a run of the weights protocol take at most."""
    recipe = experiment.recipe
    if recipe.federation.upload != "weights":
        return 0
    kept = 3 if recipe.run.keep_snapshots == "last" else recipe.federation.num_rounds
    return kept * sum(tensor.nbytes for tensor in experiment.site.replica.weights.values())


def _rounds(experiment: Experiment, start: Server, store: RunStore, listen: Listener) -> dict[str, Any]:
    recipe, clock = experiment.recipe, _Clock(time.perf_counter(), _seconds_before(store))
    engine, protocol = InProcess(experiment.site), PROTOCOLS[recipe.federation.upload]()
    for server, result in run_rounds(start, protocol, engine):
        evaluation = experiment.evaluate() if _is_evaluated(recipe, server.round) else None
        if result.record.is_snapshot:
            only_last = recipe.run.keep_snapshots == "last"
            store.keep_snapshot(result.record.round, server.replica.weights, only_last)
        store.append(result.record, _row(server.round, clock.seconds(), result, evaluation))
        listen(server.round, result, evaluation)
    summary = _summary(experiment, store)
    store.finish(summary)
    return summary


@dataclass(frozen=True)
class _Clock:
    """Seconds that a run has taken, those before an interruption included."""

    started: float
    before: float

    def seconds(self) -> float:
        return round(self.before + time.perf_counter() - self.started, 3)


def _seconds_before(store: RunStore) -> float:
    rows = run_store.metrics_of(store.folder)
    return rows[-1]["elapsed_seconds"] if rows else 0.0


def _begin(experiment: Experiment, store: RunStore, listen: Listener) -> Server:
    """The server before the first round, and the run's files begun."""
    started = time.perf_counter()
    zero_shot = experiment.evaluate()
    seconds = round(time.perf_counter() - started, 3)
    store.begin(experiment.recipe, experiment.header, _row(0, seconds, None, zero_shot))
    listen(0, None, zero_shot)
    return _server(experiment)


def _continue(experiment: Experiment, trajectory: Trajectory, store: RunStore, listen: Listener) -> Server:
    """The server after the last whole round that the folder holds."""
    folder, num_rounds = store.folder, len(trajectory.records)
    restore(experiment, trajectory, lambda round_: run_store.snapshot_of(folder, round_))
    server = _server(experiment)
    for record, row in zip(trajectory.records, run_store.metrics_of(folder)[1:], strict=True):
        server = after(server, record, [int(client) for client in row["failed"]])
    listen(num_rounds, None, None)
    return server


def _server(experiment: Experiment) -> Server:
    return Server(experiment.recipe, experiment.header, experiment.space, experiment.site.replica, 0, (), {})


def _is_evaluated(recipe: Recipe, num_rounds: int) -> bool:
    return num_rounds % recipe.run.eval_every == 0 or num_rounds == recipe.federation.num_rounds


def _row(num_rounds: int, seconds: float, result: RoundResult | None, evaluation: Evaluation | None) -> dict[str, Any]:
    """One line of metrics.jsonl; a number that is not finite is null."""
    row: dict[str, Any] = {"rounds": num_rounds, "elapsed_seconds": seconds}
    if result is not None:
        row |= {
            "train_loss": _finite(result.train_loss), "bytes_up": result.bytes_up, "bytes_down": result.bytes_down,
            "forwards": result.num_forwards, "seconds": round(result.seconds, 4), "replied": len(result.record.clients),
            "cohort": len(result.cohort), "dropped": list(result.dropped),
            "failed": {str(client): reason for client, reason in result.failed.items()},
            "skipped_steps": result.skipped_steps, "state_digest": result.record.digest.hex(),
        }  # fmt: skip
    return row if evaluation is None else row | scores_of(evaluation)


def scores_of(evaluation: Evaluation | None, prefix: str = "") -> dict[str, float | None]:
    """An evaluation as plain data, None for what is not finite or was not evaluated."""
    names = ("loss", "accuracy", "perplexity")
    return {f"{prefix}{name}": _finite(getattr(evaluation, name, None)) for name in names}


def _finite(value: float | None) -> float | None:
    """The value, None where it is not a finite number: JSON has no other word for it."""
    return value if value is not None and math.isfinite(value) else None


def _summary(experiment: Experiment, store: RunStore) -> dict[str, Any]:
    recipe, rows, peak = experiment.recipe, run_store.metrics_of(store.folder), peak_memory_bytes()
    zero_shot = {f"zero_shot_{name}": rows[0][name] for name in ("loss", "accuracy", "perplexity")}
    counted = ("bytes_up", "bytes_down", "forwards", "skipped_steps")
    return {
        "method": recipe.run.method, "model": experiment.model.base_id, "task": recipe.task.name,
        "rounds": rows[-1]["rounds"], "clients": recipe.partition.num_clients,
        "tuned_parameters": experiment.space.num_parameters,
        **zero_shot, **{name: rows[-1][name] for name in ("loss", "accuracy", "perplexity")},
        "backprop_steps": recipe.baseline.num_steps,
        **scores_of(backpropagation(experiment) if recipe.baseline.num_steps else None, "backprop_"),
        **{name: sum(row.get(name, 0) for row in rows) for name in counted},
        "failed_replies": sum(len(row.get("failed", ())) for row in rows),
        "trajectory_bytes": (store.folder / run_store.TRAJECTORY).stat().st_size,
        "round_seconds": round(sum(row.get("seconds", 0) for row in rows), 2), "seconds": rows[-1]["elapsed_seconds"],
        "peak_memory_bytes": peak, "state_digest": experiment.site.replica.digest.hex(),
        "truncated_examples": experiment.train.num_truncated + experiment.test.num_truncated, "versions": versions(),
    }  # fmt: skip


def backpropagation(experiment: Experiment) -> Evaluation:
    """The same base tuned by backpropagation on all training examples: a federation of one client, first order.

    The experiment's weights are as before when it returns. Cost: `baseline.num_steps` steps, each about three
    forwards, and the memory of backpropagation.
    """
    recipe, site = experiment.recipe, experiment.site
    tuned = copied(site.replica.weights)
    base = load(recipe.model, experiment.header.num_choices, initial_values(recipe.run.seed))
    install_initial(base, experiment.header.initial)
    copy_into(site.replica.weights, bound_weights(base.module, experiment.space))
    everyone = np.arange(len(experiment.train))
    one = replace(
        site, recipe=_baseline_recipe(recipe), num_examples=lambda client: len(everyone),
        batch=lambda client, key: batch_of(
            experiment.train, client_batch_indices(key, len(everyone), recipe.federation.batch_size)
        ),
    )  # fmt: skip
    try:
        reply = local_round(one, Order(0, 0, site.replica.digest, recipe.baseline.learning_rate))
        copy_into(site.replica.weights, unpack_weights(reply.weights, experiment.space))
        return experiment.evaluate()
    except MessageError:  # weights that are not finite: the comparison diverged, the run did not
        return Evaluation(math.nan, None, len(experiment.test))
    finally:
        copy_into(site.replica.weights, tuned)


def _baseline_recipe(recipe: Recipe) -> Recipe:
    federation = FederationConfig(
        upload="weights", local_steps=recipe.baseline.num_steps, batch_size=recipe.federation.batch_size
    )
    local = recipe.local.model_copy(update={"order": "first", "optimizer": recipe.baseline.optimizer})
    return recipe.model_copy(update={"federation": federation, "local": local})


def peak_memory_bytes() -> int:
    """The most memory that this process has held (resident set).

    On Linux from /proc: `getrusage` also counts what a parent held when it started this process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    if peaks:
        return peaks[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("seedtune", "torch", "transformers", "peft", "numba", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
