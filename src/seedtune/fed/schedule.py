"""The learning rate of each round: a function of recipe and round alone, so a resumed run has the same."""

import math

from ..config import Recipe


def learning_rate_at(recipe: Recipe, round_: int) -> float:
    """eta for `round_` (from 0): risen linearly over `warmup_rounds`, then constant, or falling towards 0 at the end.

    With t the share of the rounds after warm-up that are done, `linear` is eta (1 - t) and `cosine` is
    eta (1 + cos pi t) / 2.

    >>> recipe = Recipe.model_validate({"federation": {"num_rounds": 4}, "local": {"schedule": "linear"}})
    >>> [learning_rate_at(recipe, round_) / recipe.local.learning_rate for round_ in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    local, num_rounds = recipe.local, recipe.federation.num_rounds
    if round_ < local.warmup_rounds:
        return local.learning_rate * (round_ + 1) / local.warmup_rounds
    done = (round_ - local.warmup_rounds) / max(1, num_rounds - local.warmup_rounds)
    share = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[local.schedule]
    return local.learning_rate * share
