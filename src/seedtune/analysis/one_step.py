"""One two-point step by itself, as a client makes it, on one batch: what is measured where nothing else should be.

No evaluation may build an autograd graph, which would cost the memory of backpropagation: one that does is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from ..data.batches import Batch
from ..errors import ModelError
from ..models.load import Tuned
from ..models.objective import loss
from ..space import Space, Weights, bound_weights, space_of
from ..zo.estimators import Probe, one_by_one, two_point
from ..zo.noise import Distribution, derive_key
from ..zo.perturb import Perturber
from ..zo.update import Update, apply

MU, RATE = 1e-3, 1e-7


def text_batch(vocabulary: int, num_tokens: int, num_scored: int) -> Batch:
    """One sequence; its last `num_scored` tokens are to be predicted."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, vocabulary, (1, num_tokens), generator=generator)
    columns = torch.arange(num_tokens - 1 - num_scored, num_tokens - 1)
    rows = torch.zeros_like(columns)
    return Batch(ids, torch.ones_like(ids), rows, columns, ids[0, columns + 1], None, None, 1)


@dataclass(frozen=True)
class Work:
    """A model bound to what a step needs."""

    model: Tuned
    batch: Batch
    space: Space
    perturber: Perturber
    weights: Weights


def work(model: Tuned, batch: Batch) -> Work:
    space = space_of(model.module, model.trainable)
    return Work(model, batch, space, Perturber(model.module, space), bound_weights(model.module, space))


@torch.no_grad()
def forward(work: Work) -> float:
    return float(loss(work.model, work.batch))


def two_point_step(work: Work, count: int, distribution: Distribution) -> Probe:
    """Step number `count`, one direction, as a client makes it; no evaluation may build an autograd graph.

    Raises:
        ModelError: one did.
    """

    def loss_at(point) -> float:
        with work.perturber.at(point), graphs_refused():
            return float(without_graph(loss(work.model, work.batch)))

    key = derive_key(0, "direction", round=count)
    probe = two_point(one_by_one(loss_at), [key], MU, distribution)
    update = Update((key,), -RATE * probe.scalars, derive_key(0, "rounding", round=count))
    apply(work.space, work.weights, [update], distribution)
    return probe


@contextmanager
def graphs_refused() -> Iterator[None]:
    """Within it, an operation that keeps a tensor for a backward pass is an error. Costs nothing where none does.

    Operations that keep no tensor, such as a sum, are not seen: `without_graph` sees them at the end.

    Raises:
        ModelError: names the tensor's dtype and shape.
    """

    def refuse(kept: torch.Tensor) -> None:
        raise ModelError(
            f"a zeroth-order evaluation built an autograd graph: {kept.dtype} {list(kept.shape)} was kept for a "
            "backward pass: run the forward without gradients, or its memory is that of backpropagation"
        )

    with saved_tensors_hooks(refuse, lambda kept: kept):
        yield


def without_graph(value: torch.Tensor) -> torch.Tensor:
    """`value`, if autograd does not know where it comes from.

    Raises:
        ModelError: names the operation that made it.
    """
    if value.grad_fn is not None:
        raise ModelError(
            f"a zeroth-order evaluation ended in an autograd graph ({type(value.grad_fn).__name__}): run the forward "
            "without gradients, or its memory is that of backpropagation"
        )
    return value
