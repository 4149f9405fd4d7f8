"""A model's forwards at theta + mu z where the perturbed tensors are made once, for many batches.

`Perturber.at` makes perturbed weights anew in each forward and holds a chunk of them; here a point's tensors are
written into a copy, which the module then reads, and forwards are the model's own. So the noise of a point costs one
pass, whatever the number of batches, and memory is a second copy of the tuned tensors. Losses have the same bits: the
same values meet the same functions, in linear layers chunk by chunk as there, since products of other shapes may add in
another order.

Which forwards share a point is `seedtune.fed.cohort`'s. Tensors that no forward uses are not noticed here.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..space import Weights
from . import noise
from .perturb import Perturbation, Perturber, linear_by_chunks, rows_at_once

_ALIGNED = 64  # bytes: where torch's own storage begins, and the scratch of `Perturber`


@contextmanager
def at_copy(perturber: Perturber, weights: Weights, copy: Weights, point: Perturbation | None) -> Iterator[None]:
    """Within it, the module computes at a point, on `copy`, which is overwritten; `None`: on `weights`, as they are. No
    autograd graph is built.

    Args:
        perturber: its module's tuned tensors read `weights`, and do so again in the end.
        point: it moves every tuned tensor.
        copy: of the shapes and dtypes of `weights`, contiguous.

    Cost: one pass over the tuned tensors.
    """
    if point is None:
        with torch.no_grad():
            yield
        return
    for spec in perturber.space.tensors:
        out, held = copy[spec.name].view(-1), weights[spec.name].reshape(-1)
        noise.perturb(out, held, point.key, spec.start, point.mu, point.distribution)
    perturber.bind(copy)
    try:
        with torch.no_grad(), _as_in_chunks(perturber):
            yield
    finally:
        perturber.bind(weights)


def _as_in_chunks(perturber: Perturber) -> AbstractContextManager:
    """Nothing, where no tuned weight is larger than the scratch."""
    matrices = [parameter for parameter in perturber.parameters.values() if parameter.dim() == 2]
    rows_of = {id(weight): rows_at_once(weight, perturber.scratch_bytes) for weight in matrices}
    large = {id(weight): rows_of[id(weight)] for weight in matrices if rows_of[id(weight)] < len(weight)}
    return _InChunks(large) if large else nullcontext()


class _InChunks(TorchFunctionMode):
    """Runs linear layers by chunks of rows; `rows_of`: in one chunk, by the identity of the weight."""

    def __init__(self, rows_of: Mapping[int, int]):
        super().__init__()
        self._rows_of = rows_of

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return self._linear(*args, **kwargs) if func is functional.linear else func(*args, **kwargs)

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        step = self._rows_of.get(id(weight))
        if step is None or input.dim() < 2:
            return functional.linear(input, weight, bias)
        return linear_by_chunks(input, len(weight), step, lambda first, last: _aligned(weight[first:last]), bias)


def _aligned(rows: torch.Tensor) -> torch.Tensor:
    """Rows that begin where memory of their own would, since a product may depend on it."""
    return rows if rows.data_ptr() % _ALIGNED == 0 else rows.clone()
