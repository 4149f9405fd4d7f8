"""How many evaluations of a batch go through one forward: a rule of the recipe, the model and a batch's shape.

The points of a step differ in tuned tensors alone. Several in one forward pay where a single one's matrix products have
few rows: what does not move is then read once for all of them, which under LoRA is almost everything; where all moves,
each point's weights are made and multiplied by themselves all the same, and what is saved is the rest. With more tokens
products are as fast alone, and activations outgrow the processor's caches. The limits are what `benchmarks.batched` and
`benchmarks.split` showed on a CPU. They bound memory too: a forward of several points has at most `MOST_TOKENS` tokens,
a longer batch its own.

Nothing is timed, so that a run has the same digest again. A model is asked once, on a few tokens, whether its functions
can be batched. Here are also the two ways to evaluate: a whole model, and a suffix behind what its prefix kept. Which
points there are is said by `seedtune.zo.estimators` and `seedtune.zo.split`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from ..config import Recipe
from ..errors import ModelError
from ..models.batched_forward import BatchedSuffix, batched_forward, batched_suffix, trial_call
from ..models.blocks import Activations, Cut
from ..zo.batched import each_at
from ..zo.meter import Shape
from ..zo.noise import Distribution
from ..zo.perturb import Perturbation, Perturber
from ..zo.split import Point

Value = TypeVar("Value")

MOST_TOKENS = 512
"""Of one forward of several points."""
LEAST = 4
"""Points that must fit into one forward, so that a batch has at most 128 tokens. Two points of OPT-125m under LoRA in
one forward took 0.77 of one by one at 32 tokens, 0.89 at 128, 0.95 at 256 and 1.03 at 512."""
FEW = 1 / 8
"""A share of the parameters up to which a model counts as mostly frozen: a guess between LoRA's 0.01 and 1. With more,
`LEAST` points must be there too: two of OPT-125m took 1.01 of one by one at 32 tokens, 0.93 at 128, 1.04 at 256."""
_TRIAL_SCALE = 0.02


@dataclass(frozen=True)
class BatchedWhole:
    """The forward of a whole model for several points at once."""

    module: torch.nn.Module


@dataclass(frozen=True)
class Evaluations:
    """What was decided for a run.

    batched: what runs several points at once, a suffix behind layers that are the same for all of them or the whole
    model; None: one by one. most_tokens: of a forward of several; 0: no limit. note: the decision in words, a line.
    """

    batched: BatchedSuffix | BatchedWhole | None
    most_tokens: int
    note: str

    def most(self, shape: Shape) -> int | None:
        """Points in one forward of a batch; None: all that are asked for together."""
        if self.batched is None:
            return 1
        if not self.most_tokens:
            return None
        fitting = self.most_tokens // (shape.tokens[0] * shape.tokens[1])
        return fitting if fitting >= LEAST else 1


ONE_BY_ONE = Evaluations(None, 0, "evaluations: one by one")


def evaluations_of(
    recipe: Recipe, module: torch.nn.Module, cut: Cut | None, perturber: Perturber, frozen: Cut | None = None
) -> Evaluations:
    """The decision for a model whose tuned tensors stand at their start; `cut`: where the recipe's steps split it;
    `frozen`: behind the layers whose outputs batches bring along.

    Cost: none, or a few forwards on 12 tokens.

    Raises:
        ModelError: the model's functions cannot be batched, and `local.evaluations = "batched"` asked for it.
    """
    way, num = recipe.local.evaluations, num_together(recipe)
    if recipe.local.order == "first" or num == 1:
        return _one_by_one("a step has one" if recipe.local.order == "first" else "a prefix has one")
    if way == "one-by-one":
        return _one_by_one("as the recipe says")
    try:
        return _batched(module, cut, perturber, way, num, frozen)
    except Exception as error:  # whatever a model's own code raises where it is given more rows than it expects
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        if way == "auto":
            return _one_by_one(reason)
        raise ModelError(
            f"local.evaluations = 'batched': {type(module).__name__} cannot run several points in one forward: "
            f"{reason}: set it to 'auto' or 'one-by-one'"
        ) from error


def num_together(recipe: Recipe) -> int:
    """Evaluations that a step asks for at once."""
    if recipe.is_split:
        return recipe.split.num_suffix_directions
    return 2 * recipe.num_scalars if recipe.local.estimator == "two-point" else recipe.num_scalars + 1


def _one_by_one(reason: str) -> Evaluations:
    return Evaluations(None, 0, f"evaluations: one by one ({reason})")


def _batched(
    module: torch.nn.Module, cut: Cut | None, perturber: Perturber, way: str, num: int, frozen: Cut | None
) -> Evaluations:
    """
    Raises:
        ModelError: the model cannot be cut, or gives something else in a trial.
    """
    share, where = _tuned_share(module, cut or frozen, perturber), "block 2" if cut else "what runs"
    if way == "auto" and share > FEW and num < LEAST:
        return _one_by_one(f"{share:.0%} of {where} is tuned, and fewer than {LEAST} points save nothing then")
    batched = _tried(module, cut, perturber)
    if way == "batched":
        return Evaluations(batched, 0, f"evaluations: {num} in one forward (as the recipe says)")
    rule = f"up to {num} in one forward of at most {MOST_TOKENS} tokens, one by one where {LEAST} have more"
    return Evaluations(batched, MOST_TOKENS, f"evaluations: {rule} ({share:.1%} of {where} is tuned)")


def _tuned_share(module: torch.nn.Module, cut: Cut | None, perturber: Perturber) -> float:
    """Of the parameters that each evaluation reads: the model's, or those behind a cut."""
    parameters = module.named_parameters()
    sizes = {name: parameter.numel() for name, parameter in parameters if cut is None or name in cut.block2}
    return sum(sizes.get(spec.name, 0) for spec in perturber.space.tensors) / max(1, sum(sizes.values()))


def evaluated_whole(
    perturber: Perturber, whole: Callable[[], Value], points: Sequence[Point], batched: BatchedWhole | None
) -> list[Value]:
    """What `whole` gives at each of `points`: in one forward if there is a way."""
    if batched is None or len(points) == 1:
        return [_at(perturber, [point], whole) for point in points]
    with each_at(perturber, points):
        return batched_forward(batched.module, whole, len(points))


def evaluated_suffix(
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


def _at(perturber: Perturber, points: Iterable[Point], run: Callable[[], Value]) -> Value:
    with perturber.at(*points):
        return run()


def of_block(point: Point, names: frozenset[str]) -> Point:
    """The point for the tensors of one block."""
    return point and replace(point, names=names)


@torch.no_grad()
def _tried(module: torch.nn.Module, cut: Cut | None, perturber: Perturber) -> BatchedSuffix | BatchedWhole:
    """
    Raises:
        ModelError: two points at once, on three sequences of four tokens, give something else than one by one.
    """
    call, points = trial_call(module, 3), [Perturbation(key, _TRIAL_SCALE, Distribution.RADEMACHER) for key in (1, 2)]
    batched: BatchedSuffix | BatchedWhole
    run: Callable[[Any], list[Any]]
    if cut is None:
        batched, run = BatchedWhole(module), partial(evaluated_whole, perturber, call, points)
    else:
        batched = batched_suffix(cut)
        with perturber.at(of_block(points[0], cut.block1)):
            kept = cut.prefix(call)
        run = partial(evaluated_suffix, cut, perturber, call, points[0], points, kept)
    both, each = ([output[0].float() for output in run(way)] for way in (batched, None))
    is_exact = all(parameter.dtype not in (torch.bfloat16, torch.float16) for parameter in module.parameters())
    distance = (each[0] - each[1]).norm()
    errors = torch.stack([(one - other).norm() for one, other in zip(both, each, strict=True)])
    if not (errors <= (1e-3 if is_exact else 0.25) * distance).all():
        raise ModelError("two points in one forward gave other results than one by one, in a trial on 12 tokens")
    return batched
