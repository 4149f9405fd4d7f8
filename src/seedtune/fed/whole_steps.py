"""The losses of a whole model at a step's points, in as many forwards as was decided for the run, counted.

Which points share a forward is decided in `seedtune.fed.evaluations`; no step is made and nothing is moved here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..zo.meter import WHOLE, Tally
from ..zo.perturb import Perturber
from ..zo.split import Point
from .evaluations import BatchedWhole, evaluated_whole


@dataclass(frozen=True)
class WholeLosses:
    """The `LossesAt` of one batch.

    whole: the loss by the whole model, a float32 scalar. batched: what runs several points in one forward. most: of
    them; None: all that are asked for together.
    """

    perturber: Perturber
    whole: Callable[[], torch.Tensor]
    tally: Tally
    batched: BatchedWhole | None = None
    most: int | None = 1

    def __call__(self, points: Sequence[Point]) -> list[float]:
        most = self.most or len(points)
        groups = [points[start : start + most] for start in range(0, len(points), most)]
        losses = [loss for group in groups for loss in self._of_group(group)]
        return torch.stack(losses).tolist()  # one wait for a device, whatever the number of forwards

    def _of_group(self, points: Sequence[Point]) -> list[torch.Tensor]:
        run = partial(evaluated_whole, self.perturber, self.whole, points, self.batched)
        return self.tally.counted(WHOLE, run, len(points))
