"""Where the split estimator meets a model: a cut model's losses at two points, counted block by block.

`split_of` says how a recipe's split goes over a model's tuned tensors, `CutLosses` evaluates one batch. What is
evaluated where is `seedtune.zo.split`, what is made of it `seedtune.zo.expansion`, how a model is cut
`seedtune.models.blocks`. No step is made and nothing is moved here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..config import SplitConfig
from ..errors import ConfigError
from ..models.blocks import Activations, Cut
from ..space import Space
from ..zo.expansion import Split
from ..zo.meter import Tally
from ..zo.perturb import Perturber
from ..zo.split import Point


def split_of(config: SplitConfig, cut: Cut, space: Space) -> Split:
    """
    Raises:
        ConfigError: all tuned tensors lie in one block.
    """
    first = [cut.block_of(spec.name) == 1 for spec in space.tensors]
    if len(set(first)) == 1:
        raise ConfigError(
            f"split.cut: before layer {cut.k}, block {2 if first[0] else 1} has none of the {len(first)} tuned "
            f"tensors, such as {space.tensors[0].name!r}: choose another layer, tune tensors on both sides, or use an "
            "estimator without blocks"
        )
    return Split(
        config.reading, config.num_prefix_directions, config.num_suffix_directions, config.baseline,
        config.rate_ratio, f"{sum(1 << i for i, is_first in enumerate(first) if is_first):x}",
    )  # fmt: skip


@dataclass(frozen=True)
class CutLosses:
    """The `Blocks` of one batch, to be used within `Perturber.one_batch`.

    whole: the loss by the whole model, a float32 scalar. tally: counts each block's runs, as the parts ("prefix", k)
    and ("suffix", k).
    """

    cut: Cut
    perturber: Perturber
    whole: Callable[[], torch.Tensor]
    tally: Tally

    def prefix(self, first: Point) -> Activations:
        with self.perturber.at(_of(first, self.cut.block1)):
            return self.tally.counted(("prefix", self.cut.k), partial(self.cut.prefix, self.whole))

    def loss(self, first: Point, second: Point, kept: Activations) -> float:
        points = _of(first, self.cut.shared), _of(second, self.cut.block2)
        with self.perturber.at(*points):
            run = partial(self.cut.suffix, self.whole, kept)
            return float(self.tally.counted(("suffix", self.cut.k), run))


def _of(point: Point, names: frozenset[str]) -> Point:
    """The point for the tensors of one block."""
    return point and replace(point, names=names)
