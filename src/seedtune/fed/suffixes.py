"""How many directions of block 2 go through one forward: a rule of the recipe, the model and a batch's shape.

Several at once pay where a single one's matrix products have few rows. What does not move is then read once for all of
them, which under LoRA is almost everything; where all of block 2 moves, each direction is made and multiplied by itself
all the same, and what is saved is the rest. With more tokens products are as fast alone, and activations outgrow the
processor's caches. The limits are what `benchmarks.split` showed on a CPU. They bound memory too: a forward of several
directions has at most `MOST_TOKENS` tokens, a longer batch its own.

Nothing is timed, so that a run has the same digest again. A model is asked once, on a few tokens, whether its functions
can be batched. Which evaluations there are is `seedtune.zo.split`'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from ..config import SplitConfig
from ..errors import ModelError
from ..models.batched_suffix import BatchedSuffix, batched_suffix, trial_call
from ..models.blocks import Activations, Cut
from ..space import Space
from ..zo.batched import each_at
from ..zo.meter import Shape
from ..zo.noise import Distribution
from ..zo.perturb import Perturbation, Perturber
from ..zo.split import Point

Value = TypeVar("Value")

MOST_TOKENS = 512
"""Of one forward of several directions."""
LEAST = 4
"""Directions that must fit into one forward, so that a batch has at most 128 tokens."""
FEW = 1 / 8
"""A share of block 2's parameters up to which it counts as mostly frozen: a guess between LoRA's 0.01 and 1. With more,
`LEAST` directions must be there too: two or three save nothing."""
_TRIAL_SCALE = 0.02


@dataclass(frozen=True)
class Suffixes:
    """What was decided for a run.

    batched: the suffix for several directions; None: one by one. most_tokens: of a forward of several; 0: no limit.
    note: the decision in words, a line.
    """

    batched: BatchedSuffix | None
    most_tokens: int
    note: str

    def most(self, shape: Shape) -> int | None:
        """Directions in one forward of a batch; None: all of one prefix."""
        if self.batched is None:
            return 1
        if not self.most_tokens:
            return None
        fitting = self.most_tokens // (shape.tokens[0] * shape.tokens[1])
        return fitting if fitting >= LEAST else 1


ONE_BY_ONE = Suffixes(None, 0, "suffixes: one by one")


def suffixes_of(config: SplitConfig, cut: Cut, perturber: Perturber) -> Suffixes:
    """The decision for a model whose tuned tensors stand at their start. Cost: none, or a few forwards on 12 tokens.

    Raises:
        ModelError: the model's functions cannot be batched, and `split.suffixes = "batched"` asked for it.
    """
    num, share = config.num_suffix_directions, _tuned_share(cut, perturber.space)
    if reason := _why_not(config, share):
        return Suffixes(None, 0, f"suffixes: one by one ({reason})")
    try:
        batched = _tried(cut, perturber)
    except Exception as error:  # whatever a model's own code raises where it is given more rows than it expects
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        if config.suffixes == "auto":
            return Suffixes(None, 0, f"suffixes: one by one ({reason})")
        raise ModelError(
            f"split.suffixes = 'batched': {type(cut.module).__name__} cannot run several directions in one forward: "
            f"{reason}: set it to 'auto' or 'one-by-one'"
        ) from error
    if config.suffixes == "batched":
        return Suffixes(batched, 0, f"suffixes: {num} directions in one forward (as the recipe says)")
    rule = f"up to {num} directions in one forward of at most {MOST_TOKENS} tokens, one by one where {LEAST} have more"
    return Suffixes(batched, MOST_TOKENS, f"suffixes: {rule} ({share:.1%} of block 2 is tuned)")


def _why_not(config: SplitConfig, share: float) -> str | None:
    """Why nothing is to be batched, as far as the recipe and the share of block 2 that is tuned say it."""
    if config.num_suffix_directions == 1:
        return "a prefix has one"
    if config.suffixes == "one-by-one":
        return "as the recipe says"
    if config.suffixes == "auto" and share > FEW and config.num_suffix_directions < LEAST:
        return f"{share:.0%} of block 2 is tuned, and fewer than {LEAST} directions save nothing then"
    return None


def _tuned_share(cut: Cut, space: Space) -> float:
    """Of block 2's parameters."""
    sizes = {name: parameter.numel() for name, parameter in cut.module.named_parameters() if name in cut.block2}
    return sum(sizes.get(spec.name, 0) for spec in space.tensors) / max(1, sum(sizes.values()))


def evaluated(
    cut: Cut,
    perturber: Perturber,
    whole: Callable[[], Value],
    first: Point,
    seconds: Sequence[Point],
    kept: Activations,
    batched: BatchedSuffix | None,
) -> list[Value]:
    """What `whole` gives with block 1 at `first` and block 2 at each of `seconds`: in one forward if there is a way."""
    own = [of_block(second, cut.block2) for second in seconds]
    shared = of_block(first, cut.shared)
    if batched is None or len(own) == 1:
        return [_at(perturber, (shared, point), lambda: cut.suffix(whole, kept)) for point in own]
    with perturber.at(shared), each_at(perturber, own):
        return batched(whole, kept, len(own))


def _at(perturber: Perturber, points: Sequence[Point], run: Callable[[], Value]) -> Value:
    with perturber.at(*points):
        return run()


def of_block(point: Point, names: frozenset[str]) -> Point:
    """The point for the tensors of one block."""
    return point and replace(point, names=names)


@torch.no_grad()
def _tried(cut: Cut, perturber: Perturber) -> BatchedSuffix:
    """
    Raises:
        ModelError: two directions at once, on three sequences of four tokens, give something else than one by one.
    """
    batched, call = batched_suffix(cut), trial_call(cut, 3)
    first, second = (Perturbation(key, _TRIAL_SCALE, Distribution.RADEMACHER) for key in (1, 2))
    with perturber.at(of_block(first, cut.block1)):
        kept = cut.prefix(call)
    both, each = (
        [output[0].float() for output in evaluated(cut, perturber, call, first, (first, second), kept, way)]
        for way in (batched, None)
    )
    is_exact = all(parameter.dtype not in (torch.bfloat16, torch.float16) for parameter in cut.module.parameters())
    distance = (each[0] - each[1]).norm()
    errors = torch.stack([(one - other).norm() for one, other in zip(both, each, strict=True)])
    if not (errors <= (1e-3 if is_exact else 0.25) * distance).all():
        raise ModelError("two directions in one forward gave other results than one by one, in a trial on 12 tokens")
    return batched
