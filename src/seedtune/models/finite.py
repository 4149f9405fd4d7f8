"""Refuse a base whose numbers are not finite before anything is tuned: no setting of a run can mend it."""

import math

import torch

from ..errors import ModelError
from .evaluation import Evaluation
from .load import Tuned


def check_finite(model: Tuned) -> None:
    """Look for NaN and infinity in every floating-point parameter. Cost: one pass over the weights, no copy.

    Raises:
        ModelError: names the first such tensor.
    """
    for name, parameter in model.module.named_parameters():
        if not _is_finite(parameter):
            wrong = int((~torch.isfinite(parameter)).sum())
            raise ModelError(
                f"model {model.base_id!r}: {wrong:,} of the {parameter.numel():,} values of its tensor {name!r} are "
                "not finite, before any tuning: the base is damaged, or overflowed when it was saved: get another copy"
            )


def check_zero_shot(model: Tuned, zero_shot: Evaluation) -> None:
    """Refuse a base whose weights are finite and whose loss is not.

    Raises:
        ModelError: names the tensor with the largest value.
    """
    if math.isfinite(zero_shot.loss):
        return
    name, largest = _largest(model.module)
    dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
    advice = "set model.dtype = 'float32'" if dtype == "float16" else "choose another base"
    raise ModelError(
        f"model {model.base_id!r}: its loss on the test examples is not finite before any tuning, though its weights "
        f"are (the largest, {largest:.3g}, is in {name!r}): its forward overflows in {dtype}; {advice}"
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(torch.isfinite(bound)) for bound in tensor.detach().aminmax())


def _largest(module: torch.nn.Module) -> tuple[str, float]:
    named = (pair for pair in module.named_parameters() if pair[1].is_floating_point() and pair[1].numel())
    sizes = {name: float(parameter.detach().abs().max()) for name, parameter in named}
    name = max(sizes, key=lambda each: sizes[each])
    return name, sizes[name]
