"""Recipes that privacy can be accounted for, over the small federation."""

from small_federation import recipe

from seedtune.config import Recipe
from seedtune.recipe_text import merged

ALLOWED = {
    "federation": {"keys": "shared", "weighting": "equal", "num_rounds": 10},
    "privacy": {"unit": "client", "noise_multiplier": 1.0},
}


def private(**over) -> Recipe:
    return recipe(**merged(ALLOWED, over))


def sampling_clients(kind: str, **over) -> Recipe:
    sampled = {"partition": {"num_clients": 20}, "federation": {"cohort_size": 4}, "privacy": {"sampling": kind}}
    return private(**merged(sampled, over))


def sampling_examples(kind: str, **over) -> Recipe:
    sampled = {
        "partition": {"min_examples": 12}, "federation": {"batch_size": 5},
        "privacy": {"unit": "example", "sampling": kind},
    }  # fmt: skip
    return private(**merged(sampled, over))
