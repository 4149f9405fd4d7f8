"""How the learning rate goes over the rounds: a function of recipe and round alone, so a resumed run has the same."""

import math

from ..config import Recipe


def rate_share_at(recipe: Recipe, round_: int) -> float:
    """The share of eta in `round_` (from 0): rising over `warmup_rounds`, then 1, or falling towards 0 at the end.

    With t the share of the rounds after warm-up that are done, `linear` is 1 - t and `cosine` is (1 + cos pi t) / 2.

    >>> recipe = Recipe.model_validate({"federation": {"num_rounds": 4}, "local": {"schedule": "linear"}})
    >>> [rate_share_at(recipe, round_) for round_ in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    local, num_rounds = recipe.local, recipe.federation.num_rounds
    if round_ < local.warmup_rounds:
        return (round_ + 1) / local.warmup_rounds
    done = (round_ - local.warmup_rounds) / max(1, num_rounds - local.warmup_rounds)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[local.schedule]
