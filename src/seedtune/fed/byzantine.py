"""Clients that lie, to see what a rule of aggregation withstands: section [byzantine] of a recipe.

Which clients they are follows from the seed. They compute as the others do and send other scalars than they found, as
large as the server still takes, and where rates are measured, other slopes. What they say of their loss is true: it
moves no weight.
"""

import sys
from functools import lru_cache

import numpy as np
import torch

from ..config import Recipe
from ..data.keyed import keyed_permutation
from ..zo import noise


def liars(recipe: Recipe) -> frozenset[int]:
    """The clients that lie; a function of seed and numbers alone."""
    return _chosen(recipe.run.seed, recipe.partition.num_clients, recipe.byzantine.num_clients)


@lru_cache(maxsize=8)
def _chosen(seed: int, num_clients: int, num_liars: int) -> frozenset[int]:
    order = keyed_permutation(noise.derive_key(seed, "byzantine"), num_clients) if num_liars else np.zeros(0, int)
    return frozenset(order[:num_liars].tolist())


def falsified(recipe: Recipe, round_: int, client: int, scalars: np.ndarray) -> np.ndarray:
    """What a liar has in place of its scalars, float32 [H, P]: `factor` times them, or Gaussian noise of `factor` times
    their root mean square. A skipped step stays skipped."""
    attack, factor = recipe.byzantine.attack, np.float32(recipe.byzantine.factor)
    if attack == "noise":
        key = noise.derive_key(recipe.run.seed, "lie", round=round_, client=client)
        drawn: torch.Tensor = noise.values(key, 0, scalars.size, noise.Distribution.GAUSSIAN)
        size = np.sqrt(np.nanmean(np.square(scalars, dtype=np.float64))) if np.isfinite(scalars).any() else 0.0
        scalars = np.where(np.isnan(scalars), scalars, np.float32(size) * drawn.numpy().reshape(scalars.shape))
    limit = np.finfo(np.float32).max
    return np.clip(factor.astype(np.float64) * scalars, -limit, limit).astype(np.float32)


def falsified_slopes(recipe: Recipe, slopes: tuple[float, ...]) -> tuple[float, ...]:
    """What a liar says of its steps (`slopes`), whatever the attack: `factor` times it. Finite."""
    limit, factor = sys.float_info.max, recipe.byzantine.factor
    return tuple(min(max(factor * number, -limit), limit) for number in slopes)
