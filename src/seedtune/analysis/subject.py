"""What is probed: a model at its weights, a task dealt to clients, and a loss of fixed examples.

F(theta) is the mean, over a probe's examples, of the training objective: the mean of its batches' losses, weighted by
their examples. It is evaluated in two ways that know of the same weights: by forwards at perturbed points, in the
model's own dtype, exactly as a client would (`ProbedLoss.at`), and as a graph for autograd (`ProbedLoss.total`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import presets, run_store
from ..assembly import Experiment, assemble, indices_of, restore
from ..auto_start import started
from ..config import Machine, Recipe
from ..data.batches import Batch, batch_of
from ..data.keyed import client_batch_indices
from ..errors import ConfigError, ModelError
from ..models.load import Tuned
from ..models.objective import loss
from ..recipe_text import build, merged
from ..zo import noise
from ..zo.perturb import Perturber
from ..zo.split import Point
from .finding import Cost

Tensors = dict[str, torch.Tensor]
"""A vector in the space of the tuned tensors: each one's part by its name."""


def subject_of(
    source: str | None,
    method: str | None,
    settings: dict[str, Any],
    machine: Machine,
    say: Callable[[str], None] = lambda note: None,
) -> Experiment:
    """A recipe by name or file at its start, or a run folder at the weights that its run came to.

    `settings` are laid over the recipe; over a run's, as long as its weights still fit. `say` is called with what a
    recipe does not hand on (`presets.composed`).

    Raises:
        SeedtuneError: no such recipe, run, model, task or device; settings that a run's weights do not fit.
    """
    folder = run_of(source)
    if folder is None:
        return started(assemble(presets.composed(source, method, settings, say=say), machine))[0]
    if method:
        raise ConfigError(f"probe {folder}: --method {method!r} is for a recipe, and this is a run: leave it out")
    values = merged(run_store.recipe_of(folder).model_dump(), settings)
    state = run_store.trajectory_of(folder)
    experiment = assemble(build(values, f"run {folder}"), machine, state.header.initial)
    restore(experiment, state, lambda round_: run_store.snapshot_of(folder, round_))
    return started(experiment)[0]


def run_of(source: str | None) -> Path | None:
    """The run folder that a source names; None where it is a recipe."""
    return Path(source) if source and run_store.is_run(Path(source)) else None


def about(experiment: Experiment) -> dict[str, Any]:
    """Which weights of which model on which task."""
    recipe = experiment.recipe
    return {
        "model": experiment.model.base_id, "dtype": recipe.model.dtype, "adapter": recipe.model.adapter,
        "task": recipe.task.name, "tuned_parameters": experiment.space.num_parameters, "seed": recipe.run.seed,
        "state_digest": experiment.site.replica.digest.hex(),
    }  # fmt: skip


def refuse_quantised(experiment: Experiment, probe: str) -> None:
    """
    Raises:
        ConfigError: the base is packed, and packed weights have no derivatives of the second order.
    """
    way = experiment.recipe.model.quantisation
    if way != "none":
        raise ConfigError(
            f"probe {probe}: model.quantisation = {way!r}: packed layers cannot be differentiated as it needs; probe "
            "the model with --set model.quantisation=none"
        )


def key_of(recipe: Recipe, purpose: str, **where: int) -> int:
    """The key of one use of randomness in a probe; runs use other purposes."""
    return noise.derive_key(recipe.run.seed, f"probe {purpose}", **where)


def batches_of(experiment: Experiment, num_examples: int, size: int, key: int) -> tuple[Batch, ...]:
    """`num_examples` of the clients' training examples, drawn by `key`, in batches of at most `size`."""
    pool = indices_of(experiment.clients)
    chosen = pool[client_batch_indices(key, len(pool), num_examples)]
    return in_batches(experiment, chosen, size)


def in_batches(experiment: Experiment, indices: np.ndarray, size: int) -> tuple[Batch, ...]:
    parts = (indices[first : first + size] for first in range(0, len(indices), size))
    return tuple(experiment.prepare(batch_of(experiment.train, part)) for part in parts)


@dataclass(frozen=True, eq=False)
class ProbedLoss:
    """F of fixed batches; `cost` counts what is asked of it, in passes over all of them.

    objective(model, batch): the loss of one batch, a scalar.
    """

    model: Tuned
    perturber: Perturber
    batches: tuple[Batch, ...]
    cost: Cost = field(default_factory=Cost)
    objective: Callable[[Tuned, Batch], torch.Tensor] = loss

    @property
    def num_examples(self) -> int:
        return sum(batch.num_examples for batch in self.batches)

    def at(self, points: Sequence[Point]) -> np.ndarray:
        """F(theta + mu z) at each point (None: theta), float64 [n], by forwards in the model's dtype.

        Cost: a forward a point and batch, behind the frozen layers where batches bring their outputs.
        """
        values = np.zeros(len(points))
        for batch in self.batches:
            values += self._share(batch) * np.array(self._losses(batch, points))
        self.cost.forwards += len(points)
        return values

    def _losses(self, batch: Batch, points: Sequence[Point]) -> list[float]:
        losses = []
        for point in points:
            with self.perturber.at(point):
                losses.append(self.objective(self.model, batch))
        return torch.stack(losses).tolist()

    def total(self) -> torch.Tensor:
        """F(theta), with a graph where tensors require gradients. Cost: the activations of all batches."""
        losses = (self._share(batch) * self.objective(self.model, batch) for batch in self.batches)
        return torch.stack(list(losses)).sum()

    def _share(self, batch: Batch) -> float:
        return batch.num_examples / self.num_examples

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.model.parameters()

    def gradient(self) -> Tensors:
        """The gradient of F at theta, in the model's dtype. Cost: a forward and a backward, batch by batch."""
        total: Tensors = {}
        for batch in self.batches:
            with differentiable(self.model):
                value = self._share(batch) * self.objective(self.model, batch)
                for name, part in zip(self.parameters(), gradients_of(value, self.parameters()), strict=True):
                    total[name] = total[name] + part if name in total else part
        self.cost.gradients += 1
        return total


def probed_loss(experiment: Experiment, batches: tuple[Batch, ...]) -> ProbedLoss:
    return ProbedLoss(experiment.model, experiment.site.perturber, batches)


@contextmanager
def differentiable(model: Tuned) -> Iterator[None]:
    """Within it the tuned tensors require gradients, and attention has second derivatives.

    Fused attention kernels lack a double backward; torch's own form in plain operations (SDPBackend.MATH) has one, and
    differs from them in the last bits.

    Raises:
        ModelError: an operator of the model has no derivative, or no second one.
    """
    parameters = model.parameters().values()
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(
            f"{type(model.module).__name__} cannot be differentiated as this probe needs it: {reason}: probe it "
            "without quantisation, or another model"
        ) from error
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def gradients_of(
    value: torch.Tensor, parameters: dict[str, torch.nn.Parameter], create_graph: bool = False
) -> tuple[torch.Tensor, ...]:
    """Of a scalar, in the order of `parameters`; zeros where it does not depend on one."""
    gradients = partial(torch.autograd.grad, create_graph=create_graph, materialize_grads=True)
    return gradients(value, list(parameters.values()))


def direction(perturber: Perturber, key: int, distribution: noise.Distribution) -> Tensors:
    """z(key) as a vector: what a perturbation by `key` adds, at scale one, float32."""
    parameters = perturber.parameters
    return {
        spec.name: noise.values(key, spec.start, spec.num_elements, distribution, parameters[spec.name].device).view(
            spec.shape
        )
        for spec in perturber.space.tensors
    }


def dot(one: Tensors, other: Tensors) -> float:
    """The inner product, summed in float64."""
    return sum(float(one[name].double().flatten() @ part.double().flatten()) for name, part in other.items())
