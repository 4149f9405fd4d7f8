"""From a recipe to objects to a run: load, deal the data, start the rounds, keep the results.

`run` and `resume` drive everything; a `Listener` hears of each round as it ends. What a round does is `fed.rounds`;
what survives a crash is `run_store`. Nothing is printed here.
"""

import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import run_store
from .config import FederationConfig, Machine, ModelConfig, Recipe
from .data.batches import batch_of
from .data.encoding import EncodedSet, encode
from .data.examples import Task
from .data.keyed import client_batch_indices
from .data.partition import partition
from .data.tasks import load_task
from .engines.in_process import InProcess
from .errors import RunStoreError
from .fed.client import Replica, Site, local_round
from .fed.messages import Order, unpack_weights
from .fed.rounds import RoundResult, Server, after, run_rounds
from .fed.seed_scalar import SeedScalar
from .fed.weight_average import WeightAverage
from .models import heads
from .models.evaluation import Evaluation, evaluate
from .models.load import Tuned, kind_of, load
from .models.objective import loss
from .run_store import RunStore
from .space import Space, bind, bound_weights, copied, copy_into, digest, model_digest, space_of
from .zo import kernels, noise
from .zo.noise import Distribution
from .zo.perturb import Perturber
from .zo.trajectory import Header, Trajectory, check_base, replay

PROBE_EXAMPLES = 512
PROTOCOLS = {"scalars": SeedScalar, "weights": WeightAverage}

Listener = Callable[[int, RoundResult | None, Evaluation | None], None]
"""Hears (rounds done, the round that ended or None before the first, the evaluation if there was one)."""


@dataclass(frozen=True)
class Experiment:
    """A recipe's objects, before its first round."""

    recipe: Recipe
    model: Tuned
    task: Task
    train: EncodedSet
    test: EncodedSet
    clients: tuple[np.ndarray, ...]
    header: Header
    site: Site

    @property
    def space(self) -> Space:
        return self.site.perturber.space

    def evaluate(self) -> Evaluation:
        """On the test examples, at the server's weights."""
        bind(self.model.module, self.site.replica.weights)
        return evaluate(self.model, self.test)


def assemble(recipe: Recipe, machine: Machine) -> Experiment:
    """Loads the model and the task, deals the examples to clients, prepares one site for all of them.

    Cost: the model once, and one copy of the tuned tensors. Reads files; writes none.

    Raises:
        SeedtuneError: a model, task, template or partition that cannot be used.
    """
    if recipe.run.num_threads:
        torch.set_num_threads(recipe.run.num_threads)
    kind, seed = kind_of(recipe.model), recipe.run.seed
    task = load_task(recipe.task, noise.derive_key(seed, "task"), kind)
    model = load(recipe.model, len(task.label_names) or None, initial_values(seed))
    train, test = (encode(task, part, model.tokenizer, kind, model.window) for part in (task.train, task.test))
    clients = partition(task.train, recipe.partition, noise.derive_key(seed, "partition"))
    initial = _start_head(recipe, model, task, train)
    space = space_of(model.module, model.trainable)
    header = Header(
        base=model.base_id, base_digest=model_digest(model.module).hex(), space=space.fingerprint, seed=seed,
        keys=recipe.federation.keys, distribution=Distribution(recipe.local.distribution),
        model=recipe.model.model_dump(), num_choices=len(task.label_names) or None, initial=initial,
    )  # fmt: skip
    site = _site(recipe, machine, model, space, header, train, clients)
    return Experiment(recipe, model, task, train, test, clients, header, site)


def initial_values(seed: int) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """Standard normal values for tensors that no checkpoint gives, keyed by run seed and tensor name."""

    def gaussian(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        key = noise.derive_key(seed, f"initial {name}")
        return noise.values(key, 0, int(np.prod(shape)), Distribution.GAUSSIAN).view(shape)

    return gaussian


def _start_head(recipe: Recipe, model: Tuned, task: Task, train: EncodedSet) -> Mapping[str, torch.Tensor]:
    """Sets a fresh classification head as the recipe says; the tensors that the base's id does not give."""
    if not model.fresh_head or recipe.model.head == "fresh":
        return {}
    if recipe.model.head == "labels":
        values = heads.from_labels(model, recipe.model.label_descriptions or task.label_descriptions)
    else:
        key = noise.derive_key(recipe.run.seed, "probe")
        chosen = client_batch_indices(key, len(train), PROBE_EXAMPLES)
        values = heads.from_probe(model, [batch_of(train, part) for part in np.array_split(chosen, 16) if len(part)])
    heads.install(model, values)
    return {f"head.{name}": tensor for name, tensor in values.items()}


def _site(recipe, machine: Machine, model: Tuned, space: Space, header: Header, train: EncodedSet, clients) -> Site:
    weights = bound_weights(model.module, space)

    def batch(client: int, key: int):
        own = clients[client]
        return batch_of(train, own[client_batch_indices(key, len(own), recipe.federation.batch_size)])

    return Site(
        recipe, header, model.module, Perturber(model.module, space, machine.scratch_bytes),
        Replica(weights, digest(weights)), copied(weights), batch, lambda examples: loss(model, examples),
        lambda client: len(clients[client]),
    )  # fmt: skip


def run(recipe: Recipe, machine: Machine, folder: Path, listen: Listener, replace_run: bool = False) -> dict[str, Any]:
    """A new run in `folder`, from the first round to its summary, which is returned.

    Raises:
        SeedtuneError: what cannot be run is refused before the folder is touched; a folder that cannot hold the run,
            before the model is loaded.
    """
    recipe = resolved(recipe)
    with kernels.using(machine.kernel), run_store.create(folder, recipe, replace_run) as store:
        return _rounds(assemble(recipe, machine), store, listen)


def resume(folder: Path, machine: Machine, listen: Listener) -> dict[str, Any]:
    """Goes on with a run after its last whole round. Ends as the uninterrupted run would have, by digest, on the same
    machine with the same number of threads.

    Raises:
        RunStoreError: no run, in use, or damaged. DigestMismatch: its model or its weights are no longer the same.
    """
    with run_store.open_run(folder) as store, kernels.using(machine.kernel):
        summary = run_store.summary_of(folder)
        if summary is not None:
            raise RunStoreError(f"run {folder}: has ended ({summary['rounds']} rounds); there is nothing to resume")
        return _rounds(assemble(run_store.recipe_of(folder), machine), store, listen)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with what depends on the machine written out: a resumed run then uses the same."""
    threads = recipe.run.num_threads or torch.get_num_threads()
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"num_threads": threads})})


def _rounds(experiment: Experiment, store: RunStore, listen: Listener) -> dict[str, Any]:
    recipe, clock = experiment.recipe, _Clock(time.perf_counter(), _seconds_before(store))
    start = _begin(experiment, store, listen, clock)
    engine, protocol = InProcess(experiment.site), PROTOCOLS[recipe.federation.protocol]()
    for server, result in run_rounds(start, protocol, engine):
        evaluation = experiment.evaluate() if _is_evaluated(recipe, server.round) else None
        if result.record.is_snapshot:
            only_last = recipe.run.keep_snapshots == "last"
            store.keep_snapshot(result.record.round, server.replica.weights, only_last)
        store.append(result.record, _row(server.round, clock, result, evaluation))
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


def _begin(experiment: Experiment, store: RunStore, listen: Listener, clock: _Clock) -> Server:
    """The server at the run's first open round: anew, or from what the folder holds."""
    site = experiment.site
    server = Server(experiment.recipe, experiment.header, experiment.space, site.replica, 0, (), {})
    manifest = store.recover()
    if manifest is None:
        zero_shot = experiment.evaluate()
        store.begin(experiment.header, _row(0, clock, None, zero_shot))
        listen(0, None, zero_shot)
        return server
    run_store.drop_snapshots_after(store.folder, manifest.num_rounds)
    trajectory = run_store.trajectory_of(store.folder)
    restore(experiment, trajectory, lambda round_: run_store.snapshot_of(store.folder, round_))
    for record in trajectory.records:
        server = after(server, record)
    return server


def restore(experiment: Experiment, trajectory: Trajectory, snapshot=None, num_rounds: int | None = None) -> None:
    """Brings the experiment's weights to where `trajectory` stands.

    Raises:
        DigestMismatch: another base, or other weights.
    """
    weights = experiment.site.replica.weights
    check_base(trajectory.header, bytes.fromhex(experiment.header.base_digest), experiment.space)
    replay(experiment.space, weights, trajectory, num_rounds, snapshot)
    experiment.site.replica.digest = digest(weights)


def _is_evaluated(recipe: Recipe, num_rounds: int) -> bool:
    return num_rounds % recipe.run.eval_every == 0 or num_rounds == recipe.federation.num_rounds


def _row(num_rounds: int, clock: _Clock, result: RoundResult | None, evaluation: Evaluation | None) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    row: dict[str, Any] = {"rounds": num_rounds, "elapsed_seconds": clock.seconds()}
    if result is not None:
        loss_value = result.train_loss if np.isfinite(result.train_loss) else None
        row |= {
            "train_loss": loss_value, "bytes_up": result.bytes_up, "bytes_down": result.bytes_down,
            "forwards": result.num_forwards, "seconds": round(result.seconds, 4), "replied": len(result.record.clients),
            "cohort": len(result.cohort), "dropped": list(result.dropped),
            "failed": {str(client): reason for client, reason in result.failed.items()},
            "skipped_steps": int(np.isnan(result.record.scalars).any(-1).sum()),
            "state_digest": result.record.digest.hex(),
        }  # fmt: skip
    if evaluation is not None:
        row |= {"loss": evaluation.loss, "accuracy": evaluation.accuracy, "perplexity": evaluation.perplexity}
    return row


def _summary(experiment: Experiment, store: RunStore) -> dict[str, Any]:
    recipe, rows = experiment.recipe, run_store.metrics_of(store.folder)
    first, last = rows[0], rows[-1]
    totals = {name: sum(row.get(name, 0) for row in rows) for name in ("bytes_up", "bytes_down", "forwards")}
    baseline = backpropagation(experiment) if recipe.baseline.num_steps else None
    return {
        "method": recipe.run.method, "model": recipe.model.name, "task": recipe.task.name,
        "rounds": last["rounds"], "clients": recipe.partition.num_clients,
        "tuned_parameters": experiment.space.num_parameters,
        "zero_shot_loss": first["loss"], "zero_shot_accuracy": first["accuracy"],
        "zero_shot_perplexity": first["perplexity"],
        "loss": last["loss"], "accuracy": last["accuracy"], "perplexity": last["perplexity"],
        "backprop_loss": baseline and baseline.loss, "backprop_accuracy": baseline and baseline.accuracy,
        "backprop_perplexity": baseline and baseline.perplexity,
        **totals, "trajectory_bytes": (store.folder / run_store.TRAJECTORY).stat().st_size,
        "round_seconds": round(sum(row.get("seconds", 0) for row in rows), 2), "seconds": last["elapsed_seconds"],
        "peak_memory_bytes": peak_memory_bytes(), "state_digest": experiment.site.replica.digest.hex(),
        "truncated_examples": experiment.train.num_truncated + experiment.test.num_truncated,
        "skipped_steps": sum(row.get("skipped_steps", 0) for row in rows), "versions": versions(),
    }  # fmt: skip


def backpropagation(experiment: Experiment) -> Evaluation:
    """The same base tuned by backpropagation on all training examples: a federation of one client, first order.

    The experiment's weights are as before when it returns. Cost: `baseline.num_steps` steps, each about three
    forwards, and the memory of backpropagation.
    """
    recipe, site = experiment.recipe, experiment.site
    tuned = copied(site.replica.weights)
    base = load(recipe.model, experiment.header.num_choices, initial_values(recipe.run.seed))
    _install_initial(base, experiment.header)
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
    finally:
        copy_into(site.replica.weights, tuned)


def _baseline_recipe(recipe: Recipe) -> Recipe:
    federation = FederationConfig(
        protocol="weights", local_steps=recipe.baseline.num_steps, batch_size=recipe.federation.batch_size
    )
    local = recipe.local.model_copy(update={"order": "first", "optimizer": recipe.baseline.optimizer})
    return recipe.model_copy(update={"federation": federation, "local": local})


def load_replayed(
    header: Header, records: Trajectory, base: str | None, num_rounds: int | None, snapshot=None
) -> tuple[Tuned, Space]:
    """The tuned model from its base and its trajectory; `base` overrides where the base is found, not what it is.

    Raises:
        DigestMismatch: the base is not the one recorded, or the outcome is not.
    """
    config = ModelConfig(**{**header.model, **({"name": base} if base else {})})
    model = load(config, header.num_choices, initial_values(header.seed))
    _install_initial(model, header)
    space = space_of(model.module, model.trainable)
    check_base(header, model_digest(model.module), space)
    replay(space, bound_weights(model.module, space), records, num_rounds, snapshot)
    return model, space


def _install_initial(model: Tuned, header: Header) -> None:
    if header.initial:
        heads.install(model, {name.removeprefix("head."): tensor for name, tensor in header.initial.items()})


def peak_memory_bytes() -> int:
    """The most memory that this process has held (resident set)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("seedtune", "torch", "transformers", "peft", "numba", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
