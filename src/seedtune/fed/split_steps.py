"""Where the split estimator meets a model: a cut model's losses at two points, counted block by block.

`split_of` says how a recipe's split goes over a model's tuned tensors, `CutLosses` evaluates one batch. What is
evaluated where is `seedtune.zo.split`, what is made of it `seedtune.zo.expansion`, how a model is cut
`seedtune.models.blocks`, which suffixes share a forward `seedtune.fed.evaluations`. No step is made and nothing is
moved here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..config import Recipe
from ..errors import ConfigError
from ..models.batched_forward import BatchedSuffix
from ..models.blocks import Activations, Cut
from ..space import Space
from ..zo.expansion import Split
from ..zo.meter import Tally
from ..zo.perturb import Perturber
from ..zo.split import Point
from .evaluations import evaluated_suffix, of_block


def split_of(recipe: Recipe, cut: Cut, space: Space) -> Split:
    """
    Raises:
        ConfigError: all tuned tensors lie in one block.
    """
    config = recipe.split
    first = [cut.block_of(spec.name) == 1 for spec in space.tensors]
    if len(set(first)) == 1:
        raise ConfigError(
            f"split.cut: before layer {cut.k}, block {2 if first[0] else 1} has none of the {len(first)} tuned "
            f"tensors, such as {space.tensors[0].name!r}: choose another layer, tune tensors on both sides, or use an "
            "estimator without blocks"
        )
    return Split(
        config.reading, config.num_prefix_directions, config.num_suffix_directions, config.baseline,
        recipe.rate_ratio, f"{sum(1 << i for i, is_first in enumerate(first) if is_first):x}",
    )  # fmt: skip


@dataclass(frozen=True)
class CutLosses:
    """The `Blocks` of one batch.

    whole: the loss by the whole model, a float32 scalar. tally: counts each block's runs, as the parts ("prefix", k)
    and ("suffix", k). batched: the suffix for several points in one forward. most: of them; None: all that are
    asked for together.
    """

    cut: Cut
    perturber: Perturber
    whole: Callable[[], torch.Tensor]
    tally: Tally
    batched: BatchedSuffix | None = None
    most: int | None = 1

    def prefix(self, first: Point) -> Activations:
        with self.perturber.at(of_block(first, self.cut.block1)):
            return self.tally.counted(("prefix", self.cut.k), partial(self.cut.prefix, self.whole))

    def losses(self, first: Point, seconds: Sequence[Point], kept: Activations) -> list[float]:
        most = self.most or len(seconds)
        groups = [seconds[start : start + most] for start in range(0, len(seconds), most)]
        losses = [loss for group in groups for loss in self._of_group(first, group, kept)]
        return torch.stack(losses).tolist()  # one wait for a device, whatever the number of forwards

    def _of_group(self, first: Point, seconds: Sequence[Point], kept: Activations) -> list[torch.Tensor]:
        run = partial(evaluated_suffix, self.cut, self.perturber, self.whole, first, seconds, kept, self.batched)
        return self.tally.counted(("suffix", self.cut.k), run, len(seconds))
