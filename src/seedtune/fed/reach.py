"""How far a round's scalars could move a weight, and where that is too far to go on from. Nothing is moved here."""

from math import sqrt

import numpy as np
import torch

from ..errors import NotFinite
from ..space import Space
from ..zo.trajectory import Header

_LARGEST_VALUE = 6.66  # of a direction (`zo.noise`)


def check_reach(
    header: Header,
    space: Space,
    rates: tuple[float, float | None],
    whose: str,
    scalars: np.ndarray,
    factor: float = 1.0,
) -> None:
    """
    Args:
        rates: the round's learning rate, and block 2's over it; None: the header's.
        whose: who has the scalars [H, P], such as "client 3 sent". factor: of the client's own rate.

    Raises:
        NotFinite: a scalar that could move a weight, in this round, so far that its square is no number of its dtype;
            or one that is none itself once the client's own rate scales it. Weights so large compute nothing any more.
    """
    largest, split = float(np.nanmax(np.abs(scalars), initial=0.0)), header.split_at(rates[1])
    dtypes = {getattr(torch, tensor.dtype) for tensor in space.tensors}
    ratio = split.rate_ratio * (2 if split.baseline == "leave-one-out" else 1) if split else 1.0
    reach = rates[0] * factor * max(1.0, ratio)
    far, limit = reach * len(scalars) * _LARGEST_VALUE * largest, sqrt(min(torch.finfo(d).max for d in dtypes))
    if far > limit or largest * factor > torch.finfo(torch.float32).max:
        raise NotFinite(
            f"{whose} a scalar of {largest:.3g}, which at its rate could move a weight by {far:.3g} "
            f"in one round, beyond {limit:.3g}, the square root of what the weights' type holds: lower "
            f"local.learning_rate, or set local.clip"
        )
