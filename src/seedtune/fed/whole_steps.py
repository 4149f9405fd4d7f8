"""The losses of a whole model at a step's points, in as many forwards as was decided for the run, counted.

Layers that end before the first tuned tensor are computed once for all points either way: by `Perturber.one_batch`
where evaluations go one by one, by a cut behind them where several share a forward. Which do is decided in
`seedtune.fed.evaluations`; no step is made and nothing is moved here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..models.batched_forward import BatchedSuffix
from ..zo.meter import WHOLE, Tally
from ..zo.perturb import Perturber
from ..zo.split import Point
from .evaluations import BatchedWhole, evaluated_whole
from .split_steps import CutLosses


@dataclass(frozen=True)
class WholeLosses:
    """The `LossesAt` of one batch, to be used within `Perturber.one_batch`.

    whole: the loss by the whole model, a float32 scalar. batched: what runs several points in one forward. most: of
    them; None: all that are asked for together.
    """

    perturber: Perturber
    whole: Callable[[], torch.Tensor]
    tally: Tally
    batched: BatchedSuffix | BatchedWhole | None = None
    most: int | None = 1

    def __call__(self, points: Sequence[Point]) -> list[float]:
        most = self.most or len(points)
        if most > 1 and isinstance(self.batched, BatchedSuffix):
            return self._behind_frozen(self.batched, points)
        batched = self.batched if isinstance(self.batched, BatchedWhole) else None
        groups = [points[start : start + most] for start in range(0, len(points), most)]
        losses = [loss for group in groups for loss in self._of_group(group, batched)]
        return torch.stack(losses).tolist()  # one wait for a device, whatever the number of forwards

    def _of_group(self, points: Sequence[Point], batched: BatchedWhole | None) -> list[torch.Tensor]:
        run = partial(evaluated_whole, self.perturber, self.whole, points, batched)
        return self.tally.counted(WHOLE, run, len(points))

    def _behind_frozen(self, batched: BatchedSuffix, points: Sequence[Point]) -> list[float]:
        parts = CutLosses(batched.cut, self.perturber, self.whole, self.tally, batched, self.most)
        return parts.losses(None, points, parts.prefix(None))
