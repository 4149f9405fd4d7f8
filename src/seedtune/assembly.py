"""From a recipe to objects: load the model, read the task, deal the examples, and stand where a trajectory says.

Nothing is trained, written or printed here.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .config import Machine, Recipe
from .data.batches import Batch, batch_of
from .data.encoding import EncodedSet, encode
from .data.examples import Task
from .data.keyed import client_batch_indices, keyed_permutation
from .data.partition import held_out, partition
from .data.tasks import load_task
from .errors import DataError, ModelError, TrajectoryError
from .fed.client import Replica, Site
from .fed.evaluations import evaluations_of
from .fed.private import PrivateSite
from .fed.split_steps import split_of
from .keeping import expect_examples, keep_activations
from .models import heads
from .models.blocks import Cut, cut_before, default_cut
from .models.evaluation import Evaluation, evaluate
from .models.finite import check_finite
from .models.load import Tuned, kind_of, load
from .models.objective import example_losses, loss
from .models.placement import device_of
from .pinned_inputs import BASE, check_inputs, digest_base, digest_inputs, library_versions
from .privacy.rules import checked
from .progress import phase
from .recipe_text import build
from .space import Space, Weights, bind, bound_weights, copy_into, digest, model_digest, space_of
from .trial import check_forward, check_tokens
from .zo import noise
from .zo.catching_up import CatchingUp, catching_up
from .zo.kept_activations import KeptActivations
from .zo.meter import Meter, new_frozen_flops, shape_of
from .zo.noise import Distribution
from .zo.perturb import Perturber
from .zo.trajectory import Header, RoundRecord, Trajectory, check_base, follow, path, replay, since_last_snapshot

PROBE_EXAMPLES = 512
TASK_KEY = noise.derive_key(0, "task")
"""Chooses the examples of `max_train` and `max_eval`: the same for every seed, so that runs can be compared."""


@dataclass(frozen=True)
class Experiment:
    """A recipe's objects, before its first round."""

    recipe: Recipe
    model: Tuned
    task: Task
    train: EncodedSet
    test: EncodedSet
    clients: tuple[np.ndarray, ...]
    heldout: tuple[np.ndarray, ...]
    header: Header
    site: Site
    secret: bytes = field(default=b"", repr=False)
    kept: KeptActivations | None = None

    @property
    def space(self) -> Space:
        return self.site.perturber.space

    def check_forward(self) -> None:
        """Try one forward, as every client will make it (`trial`).

        Raises:
            ModelError: it would fail, or not use every tuned tensor.
        """
        needs_all = self.recipe.local.order == "zeroth"
        check_forward(self.model, self.site.perturber, (self.train, self.test), needs_all)

    def evaluate(self) -> Evaluation:
        """On the test examples, at the server's weights."""
        bind(self.model.module, self.site.replica.weights)
        with phase("evaluating test examples", len(self.test)) as told:
            return evaluate(self.model, self.test, prepare=self.prepare, advance=told.advance)

    def evaluate_clients(self) -> dict[int, Evaluation]:
        """Each client's held-out examples, at the server's weights; clients without any are left out."""
        bind(self.model.module, self.site.replica.weights)
        kept = {client: own for client, own in enumerate(self.heldout) if len(own)}
        with phase("evaluating held-out examples", sum(map(len, kept.values()))) as told:
            return {
                client: evaluate(self.model, self.train.subset(own), prepare=self.prepare, advance=told.advance)
                for client, own in kept.items()
            }

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch on the model's device, with the outputs of frozen layers where these are kept."""
        return prepared(self.model, self.kept, batch)


def assemble(
    recipe: Recipe,
    machine: Machine,
    initial: Mapping[str, torch.Tensor] | None = None,
    own: Sequence[int] | None = None,
    secret: bytes = b"",
    scratch: Path | None = None,
) -> Experiment:
    """Loads the model and the task, deals the examples to clients, prepares one site for all of them.

    The model is on `machine.device` from here on, and so are its batches.

    `initial` is the start of a fresh head as a trajectory recorded it; by default the recipe's is computed. `own`: the
    clients that all examples of the task belong to, dealt alike, where a node has its own file; by default the recipe
    deals them. `secret`: what the server of a private run draws its noise from. `scratch`: the folder on whose disk
    kept activations may spill; by default the system's for temporary files.

    Cost: the model once, and one copy of the tuned tensors. Reads files; writes none.

    Raises:
        SeedtuneError: a device that is not there; a model, task, template or partition that cannot be used.
    """
    device = device_of(machine, recipe.model)
    if recipe.run.num_threads:
        torch.set_num_threads(recipe.run.num_threads)
    kind, seed = kind_of(recipe.model), recipe.run.seed
    task = load_task(recipe.task, TASK_KEY, kind, recipe.task.training == "nodes" or own is not None)
    with phase(f"loading model {recipe.model.name}"):
        model = load(recipe.model, len(task.label_names) or None, initial_values(seed))
        check_finite(model)
        model.module.to(device)
    clients, heldout = _dealt(recipe, task, own)
    judged = frozenset(indices_of(heldout).tolist())
    with phase("encoding the task's examples"):
        train = encode(task, task.train, model.tokenizer, kind, model.window, judged)
        test = encode(task, task.test, model.tokenizer, kind, model.window, range(len(task.test)))
    check_tokens(model, (train, test))
    if initial is None:
        initial = _head_start(recipe, model, task, train.subset(indices_of(clients)))
    install_initial(model, initial)
    space, cut = space_of(model.module, model.trainable), _cut(recipe, model.module)
    meter = Meter()
    header = Header(
        base=model.base_id, base_digest=model_digest(model.module).hex(), space=space.fingerprint, seed=seed,
        keys=recipe.federation.keys, distribution=Distribution(recipe.local.distribution),
        model=recipe.model.model_dump(exclude={"name", "base"}), num_choices=len(task.label_names) or None,
        initial=initial,
        key_pool=recipe.federation.key_pool, split=split_of(recipe, cut, space) if cut else None,
        inputs=digest_inputs(recipe, model, task, train, test, (clients, heldout), own, secret),
        versions=library_versions(recipe),
    )  # fmt: skip
    kept = keep_activations(model, machine, meter, scratch, header)
    site = _site(recipe, machine, model, space, header, train, clients, cut, meter, kept)
    if kept:
        expect_examples(kept, recipe, train.subset(indices_of(clients)), test)
    return Experiment(recipe, model, task, train, test, clients, heldout, header, site, secret, kept)


def _dealt(
    recipe: Recipe, task: Task, own: Sequence[int] | None
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Each client's training and held-out examples; none where they are elsewhere."""
    seed, config = recipe.run.seed, recipe.partition
    key, key_held_out = noise.derive_key(seed, "partition"), noise.derive_key(seed, "held out")
    if own is not None:
        alike = config.model_copy(update={"kind": "iid", "num_clients": len(own)})
        of_client = dict(zip(own, partition(task.train, alike, key), strict=True))
        dealt = tuple(of_client.get(client, np.zeros(0, np.int64)) for client in range(config.num_clients))
        return dealt, ()
    if recipe.task.training == "nodes":
        return (), ()
    return held_out(partition(task.train, config, key), config, key_held_out)


def _cut(recipe: Recipe, module: torch.nn.Module) -> Cut | None:
    """The model in two blocks, where the recipe's local steps split it."""
    return cut_before(module, recipe.split.cut or default_cut(module)) if recipe.is_split else None


def initial_values(seed: int) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """Standard normal values for tensors that no checkpoint gives, keyed by run seed and tensor name."""

    def gaussian(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        key = noise.derive_key(seed, f"initial {name}")
        return noise.values(key, 0, int(np.prod(shape)), Distribution.GAUSSIAN).view(shape)

    return gaussian


def indices_of(clients: Sequence[np.ndarray]) -> np.ndarray:
    """All clients' indices, ascending."""
    return np.sort(np.concatenate([np.zeros(0, np.int64), *clients]))


def _head_start(recipe: Recipe, model: Tuned, task: Task, train: EncodedSet) -> Mapping[str, torch.Tensor]:
    """Where a fresh classification head starts, as the recipe says: the tensors that the base's id does not give."""
    if not model.fresh_head or recipe.model.head == "fresh":
        return {}
    if recipe.model.head == "labels":
        values = heads.from_labels(model, recipe.model.label_descriptions or task.label_descriptions)
    elif not len(train):
        raise DataError(
            "model.head = 'probe' is fitted on training examples, and task.training = 'nodes' leaves none here: choose "
            "'labels' or 'fresh'"
        )
    else:
        key = noise.derive_key(recipe.run.seed, "probe")
        chosen = client_batch_indices(key, len(train), PROBE_EXAMPLES)
        parts = (part for part in np.array_split(chosen, 16) if len(part))
        values = heads.from_probe(model, (batch_of(train, part).to(model.device) for part in parts))
    return {f"head.{name}": tensor for name, tensor in values.items()}


def prepared(model: Tuned, kept: KeptActivations | None, batch: Batch) -> Batch:
    """Return the batch on the model's device, with the outputs of frozen layers where these are kept."""
    batch = batch.to(model.device)
    return kept(batch) if kept else batch


def _site(
    recipe, machine: Machine, model: Tuned, space: Space, header: Header, train: EncodedSet, clients, cut: Cut | None,
    meter: Meter, kept: KeptActivations | None,
) -> Site:  # fmt: skip
    weights, size = bound_weights(model.module, space), recipe.federation.batch_size
    ready = partial(prepared, model, kept)

    def batch(client: int, key: int) -> Batch:
        own = clients[client]
        return ready(batch_of(train, own[client_batch_indices(key, len(own), size)]))

    def epoch(client: int, key: int) -> Iterator[Batch]:
        own = clients[client][keyed_permutation(key, len(clients[client]))]
        return (ready(batch_of(train, own[first : first + size])) for first in range(0, len(own), size))

    def chosen(client: int, places: np.ndarray) -> Batch:
        return ready(batch_of(train, clients[client][places]))

    plan, perturber = checked(recipe), Perturber(model.module, space, machine.scratch_bytes)
    private = PrivateSite(recipe, plan, chosen, partial(example_losses, model)) if plan else None
    return Site(
        recipe, header, model.module, perturber, Replica(weights, digest(weights)), {}, batch, epoch,
        lambda examples: loss(model, examples), shape_of, lambda client: len(clients[client]), meter, cut,
        new_frozen_flops, evaluations_of(recipe, model.module, cut, perturber, kept.cut if kept else None),
        private=private,
    )  # fmt: skip


def restore(
    experiment: Experiment,
    trajectory: Trajectory,
    snapshot: Callable[[int], Weights],
    parts: Collection[str] | None = BASE,
) -> None:
    """Brings the experiment's weights to where `trajectory` stands.

    `parts`: those of the header's inputs that must be the same (`pinned_inputs`); None: all, as to go on with a run.

    Raises:
        DigestMismatch: another base, other weights or inputs. TrajectoryError: another seed or other directions.
    """
    weights, header = experiment.site.replica.weights, experiment.header
    check_base(trajectory.header, bytes.fromhex(header.base_digest), experiment.space)
    for name in ("seed", "keys", "key_pool", "distribution", "split"):
        recorded, found = getattr(trajectory.header, name), getattr(header, name)
        if recorded != found:
            raise TrajectoryError(f"the trajectory was recorded with {name} = {recorded}, the recipe now says {found}: "
                                  f"put it back, or start another run")  # fmt: skip
    check_inputs(trajectory.header.inputs, header.inputs, parts)
    replay(experiment.space, weights, trajectory, None, snapshot)
    experiment.site.replica.digest = digest(weights)


def put_back(experiment: Experiment, records: tuple[RoundRecord, ...], snapshot: Callable[[int], Weights]) -> None:
    """Sets the experiment's weights to the end of a path of records: a snapshot's, or replayed from the base.

    Cost: the base is loaded again for the moment, and one `apply` a round.
    """
    weights = experiment.site.replica.weights
    copy_into(weights, base_weights(experiment))
    follow(experiment.space, weights, experiment.header, records, snapshot)


def base_weights(experiment: Experiment) -> Weights:
    """The tuned tensors as they were before the first round, from the base loaded anew."""
    base = load(experiment.recipe.model, experiment.header.num_choices, initial_values(experiment.recipe.run.seed))
    install_initial(base, experiment.header.initial)
    return bound_weights(base.module, experiment.space)


def load_replayed(
    trajectory: Trajectory,
    base: str | None,
    num_rounds: int | None,
    snapshot: Callable[[int], Weights] | None,
    before: Callable[[CatchingUp], None] = lambda cost: None,
) -> tuple[Tuned, Space]:
    """The tuned model from its base and its trajectory; `base` says where the base is found now, not what it is.

    `before` is told what the replay will take, before it begins.

    Raises:
        ModelError: the base is not found. DigestMismatch: the base is not the one recorded, its configuration and
            tokenizer included, or the outcome is not.
    """
    header = trajectory.header
    config = build({"model": {**header.model, "name": base or header.base}}, "the trajectory's header").model
    try:
        model = load(config, header.num_choices, initial_values(header.seed))
    except ModelError as error:
        hint = "" if base else "; if the base has moved, name it with --base"
        raise ModelError(f"{error}{hint}") from None
    install_initial(model, header.initial)
    space = space_of(model.module, model.trainable)
    check_base(header, model_digest(model.module), space)
    check_inputs(header.inputs, digest_base(config, model), BASE)
    before(catching_up(space, header, since_last_snapshot(path(trajectory.records[:num_rounds]))))
    replay(space, bound_weights(model.module, space), trajectory, num_rounds, snapshot)
    return model, space


def install_initial(model: Tuned, initial: Mapping[str, torch.Tensor]) -> None:
    """Sets a fresh head to the start that a trajectory recorded, if it did."""
    if initial:
        heads.install(model, {name.removeprefix("head."): tensor for name, tensor in initial.items()})
