"""Who takes part, drawn in secret and exactly as accounted: each by itself with one probability, or so many of all.

Amplification by sampling holds against those who do not know the sample. So it follows from a secret and not from the
run's seed, and nothing that is published may tell it (`plan.hides_cohort`, `plan.hides_batches`).
"""

import numpy as np

from ..errors import DataError
from .plan import Plan
from .secrets import words


def sampled(secret: bytes, purpose: str, sampling: str, population: int, expected: int, *numbers: int) -> np.ndarray:
    """Of 0..population-1 those that take part, ascending, int64: `expected` of them, in the mean for Poisson sampling.

    All of them where `expected` is not below `population`. numbers: what tells draws of one purpose apart.
    """
    if expected >= population:
        return np.arange(population)
    drawn = words(secret, purpose, population, *numbers)
    if sampling == "poisson":
        return np.flatnonzero(drawn < np.uint64(expected * 2**64 // population))
    return np.sort(np.argsort(drawn, kind="stable")[:expected])


def secret_cohort(plan: Plan, secret: bytes, round_: int) -> tuple[int, ...]:
    """The clients asked in a round of a plan that samples clients, sorted."""
    return tuple(sampled(secret, "cohort", plan.sampling, plan.population, plan.sample, round_).tolist())


def secret_batch(plan: Plan, secret: bytes, num_examples: int, *numbers: int) -> np.ndarray:
    """The places of a client's examples that are used, ascending, for a plan that samples examples.

    Raises:
        DataError: the client has fewer examples than were accounted for, and each would be used more often.
    """
    if num_examples < plan.population:
        raise DataError(
            f"a client has {num_examples} examples, but privacy is accounted for at least {plan.population} "
            f"(partition.min_examples), of which {plan.sample} are used at a time"
        )
    return sampled(secret, "examples", plan.sampling, num_examples, plan.sample, *numbers)
