"""A model in double precision: what a loss and its differences would be without rounding.

Models turn parts of their computation to float32 whatever their weights are: norms, softmax, rotary tables, the loss.
In the twin that `in_double` makes these parts stay in float64, so that a loss is exact to about 1e-15 of itself.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..data.batches import Batch
from ..models.load import Tuned
from ..zo.noise import Distribution
from ..zo.perturb import Perturber
from .subject import ProbedLoss, Tensors, direction


class _Double(TorchFunctionMode):
    """Every conversion to float32 is one to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(_wider(value) for value in args)
        return func(*args, **{name: _wider(value) for name, value in (kwargs or {}).items()})


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def in_double(probed: ProbedLoss) -> ProbedLoss:
    """The same loss at the same weights, in float64: `total` and `gradient` work, `at` does not (see `losses_at`).

    Memory: a copy of the whole model, in 8 bytes a weight.
    """
    module = deepcopy(probed.model.module).double()

    def objective(model: Tuned, batch: Batch) -> torch.Tensor:
        with _Double():
            return probed.objective(model, batch)

    model = replace(probed.model, module=module)
    return replace(probed, model=model, perturber=Perturber(module, probed.perturber.space), objective=objective)


@torch.no_grad()
def losses_at(probed: ProbedLoss, key: int, scales: Sequence[float], distribution: Distribution) -> np.ndarray:
    """F(theta + mu z(key)) for each mu, float64 [n], for what `in_double` gives; theta is unmoved in the end.

    mu as the kernels round it, to float32. Cost: a forward each.
    """
    z = direction(probed.perturber, key, distribution)
    start: Tensors = {name: tensor.detach().clone() for name, tensor in probed.parameters().items()}
    losses = []
    try:
        for mu in scales:
            for name, tensor in probed.parameters().items():
                tensor.copy_(start[name] + float(np.float32(mu)) * z[name].double())
            losses.append(probed.total().item())
    finally:
        for name, tensor in probed.parameters().items():
            tensor.copy_(start[name])
    probed.cost.forwards += len(scales)
    return np.array(losses)
