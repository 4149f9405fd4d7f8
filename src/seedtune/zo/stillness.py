"""A first round in which nothing moved: every projected gradient exactly zero, and the scale that would move.

A weight w of a dtype of spacing eps (relative) keeps its value under a perturbation below |w| eps / 2. A scale of a few
times the tensors' root mean square times eps changes nearly all of them, by more than rounding takes away.
"""

import numpy as np
import torch

from ..space import Weights

SPACINGS = 4.0
"""Of the weights' dtype, in the scale that is proposed."""


def explain_stillness(scalars: np.ndarray, weights: Weights, perturbation_scale: float) -> str:
    """Return a line naming a scale that would move if all `scalars` are exactly 0; else an empty string.

    Cost: one read of the tuned tensors where all are 0, nothing else.
    """
    if not scalars.size or np.count_nonzero(scalars):
        return ""
    return (
        f"every projected gradient of the first round is exactly 0: at local.perturbation_scale = "
        f"{perturbation_scale:g} no weight moves, or the loss does not depend on what is tuned; try "
        f"{moving_scale(weights):.1g}, or 'auto'"
    )


def moving_scale(weights: Weights) -> float:
    """Return a perturbation scale that changes most coordinates of every tensor, in units of the weights."""
    scales = [_spacing(tensor) for tensor in weights.values()]
    return max(SPACINGS * max(scales), 1e-3)


def _spacing(tensor: torch.Tensor) -> float:
    """The dtype's relative spacing at the root mean square of a tensor."""
    rms = tensor.float().square().mean().sqrt().item()
    return rms * torch.finfo(tensor.dtype).eps
