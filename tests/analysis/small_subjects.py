"""A tiny experiment whose Hessian can be formed whole, and that Hessian, by torch's own means in double precision."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.func import functional_call, hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

from seedtune.analysis.subject import ProbedLoss
from seedtune.assembly import Experiment, assemble
from seedtune.config import Machine
from seedtune.models import objective

FEW = ["model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"]
"""Two gains of 32 and a matrix [16, 32]: 576 numbers."""


def experiment_of(tiny_recipe, **over) -> Experiment:
    sections = {"model": {"trainable": FEW}} | over
    return assemble(tiny_recipe(**sections), Machine())


def whole_hessian(probed: ProbedLoss) -> torch.Tensor:
    """Float64 [d, d], of the tuned tensors in the order of `model.trainable`: forward over reverse, as `torch.func`
    has it, where the probe differentiates backwards twice."""
    model, shapes = probed.model, {name: p.shape for name, p in probed.parameters().items()}
    sizes = [shape.numel() for shape in shapes.values()]
    start = torch.cat([p.detach().flatten() for p in probed.parameters().values()])

    def at(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split(sizes)
        values = {f"inner.{name}": part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        losses = [functional_call(_Loss(model), values, (batch,)) * batch.num_examples for batch in probed.batches]
        return torch.stack(losses).sum() / probed.num_examples

    with forward_mode():
        return hessian(at)(start).double()


@contextmanager
def forward_mode() -> Iterator[None]:
    """Within it, attention has derivatives of every kind, and torch may load its compiler, which warns of itself."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        yield


class _Loss(torch.nn.Module):
    """The objective as a module, so that `functional_call` can set its parameters."""

    def __init__(self, model):
        super().__init__()
        self.inner, self._model = model.module, model

    def forward(self, batch):
        return objective.loss(self._model, batch)
