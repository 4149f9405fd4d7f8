"""Exact products of the Hessian with vectors, by differentiating twice.

    H v = d/dtheta (grad F(theta) . v)        (Pearlmutter 1994, "Fast exact multiplication by the Hessian")

The Hessian itself, d x d, is never formed. Products are as exact as the dtype: float32's are, relative to the largest,
within about 1e-6.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .finding import Cost
from .subject import ProbedLoss, Tensors, differentiable, gradients_of


@dataclass(frozen=True, eq=False)
class Hessian:
    """The Hessian of a `ProbedLoss`, while `hessian_of` holds its graph."""

    parameters: dict[str, torch.nn.Parameter]
    gradient: Tensors
    cost: Cost

    def times(self, vector: Tensors) -> Tensors:
        """(H v) on the tensors of `vector`: of the whole Hessian, or of the diagonal block of the tensors given.

        Cost: about two backwards.
        """
        names = list(vector)
        products = torch.autograd.grad(
            [self.gradient[name] for name in names], [self.parameters[name] for name in names],
            [vector[name].to(self.gradient[name].dtype) for name in names], retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        self.cost.hessian_products += 1
        return dict(zip(names, products, strict=True))


@contextmanager
def hessian_of(probed: ProbedLoss) -> Iterator[Hessian]:
    """The Hessian of F at theta, in the dtype of the model.

    Cost: one forward and backward. Memory while it is held: the graphs of both, about four times the activations of
    all batches.

    Raises:
        ModelError: the model has no second derivatives.
    """
    with differentiable(probed.model):
        parameters = probed.parameters()
        gradient = gradients_of(probed.total(), parameters, create_graph=True)
        probed.cost.gradients += 1
        yield Hessian(parameters, dict(zip(parameters, gradient, strict=True)), probed.cost)


def blocks_of(module: torch.nn.Module, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The tuned tensors by layer, in the model's order: those of each member of its outermost `ModuleList`s, and those
    registered before and behind them.

    >>> stack = torch.nn.Sequential(torch.nn.Embedding(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)]))
    >>> blocks_of(stack, ["1.0.weight", "0.weight"])
    {'before the layers': ('0.weight',), 'layer 0': ('1.0.weight',)}
    """
    found: dict[str, list[str]] = {}
    layer_of, seen = _layers(module), False
    for name, _ in module.named_parameters():
        layer = next((label for prefix, label in layer_of.items() if name.startswith(prefix)), None)
        seen = seen or layer is not None
        if name in names:
            found.setdefault(layer or ("behind the layers" if seen else "before the layers"), []).append(name)
    return {label: tuple(members) for label, members in found.items()}


def _layers(module: torch.nn.Module, prefix: str = "") -> dict[str, str]:
    """Prefixes of parameter names, with the layer's label."""
    if isinstance(module, torch.nn.ModuleList):
        return {f"{prefix}{name}.": f"layer {name}" for name, _ in module.named_children()}
    found: dict[str, str] = {}
    for name, child in module.named_children():
        for inner, label in _layers(child, f"{prefix}{name}.").items():
            found[inner] = label if label not in found.values() else f"{inner.removesuffix('.')}"
    return found


Operator = Callable[[torch.Tensor], torch.Tensor]
"""A symmetric matrix by its products: float32 or float64 [n] to [n]."""


def operator_of(hessian: Hessian, names: Collection[str]) -> tuple[Operator, int]:
    """(the diagonal block of the named tensors as a matrix, its size n)."""
    shapes = {name: hessian.parameters[name].shape for name in names}
    sizes = [shape.numel() for shape in shapes.values()]

    def times(vector: torch.Tensor) -> torch.Tensor:
        device = next(iter(hessian.parameters.values())).device
        parts = vector.to(device).split(sizes)
        given = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return torch.cat([product.flatten() for product in hessian.times(given).values()]).cpu()

    return times, sum(sizes)
