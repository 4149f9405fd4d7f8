"""The trace of the Hessian from random directions, by its products or by forwards alone.

    tr(H) = E[z^T H z]   for E[z z^T] = I        (Hutchinson 1990)

With independent +-1 coordinates, as here, a sample's variance is 2 (|H|_F^2 - sum_i H_ii^2), the least of all
distributions with independent coordinates. The same samples tell more: z_b^T (H z)_b, the part of block b, has the mean
tr(H_bb), and |H z|^2 has the mean |H|_F^2.

Forwards alone give each sample without a derivative:

    [F(theta + mu z) + F(theta - mu z) - 2 F(theta)] / mu^2 = z^T H z + O(mu^2) + rounding of F / mu^2
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..zo.noise import Distribution
from ..zo.perturb import Perturbation
from .finding import Tell
from .hessian import Hessian
from .subject import ProbedLoss, direction, dot

SIGNS = Distribution.RADEMACHER
_POINTS_AT_ONCE = 32


@dataclass(frozen=True)
class TraceSamples:
    """By direction, float64 [M] each. whole: z^T H z. blocks: z_b^T (H z)_b. squares: |H z|^2."""

    whole: np.ndarray
    blocks: Mapping[str, np.ndarray]
    squares: np.ndarray


def by_products(
    probed: ProbedLoss, hessian: Hessian, keys: Sequence[int], blocks: Mapping[str, Collection[str]], tell: Tell
) -> TraceSamples:
    """Cost: one Hessian product a key."""
    parts = {label: np.zeros(len(keys)) for label in blocks}
    squares = np.zeros(len(keys))
    for m, key in enumerate(keys):
        tell("trace by Hessian products", m, len(keys))
        z = direction(probed.perturber, key, SIGNS)
        product = hessian.times(z)
        squares[m] = dot(product, product)
        for label, names in blocks.items():
            parts[label][m] = dot({name: z[name] for name in names}, {name: product[name] for name in names})
    return TraceSamples(sum(parts.values(), np.zeros(len(keys))), parts, squares)


def by_forwards(probed: ProbedLoss, keys: Sequence[int], mu: float, tell: Tell) -> np.ndarray:
    """z^T H z of each key's direction as the second difference at scale `mu`, float64 [M].

    Cost: 2 M + 1 forwards.
    """
    points = [Perturbation(key, signed, SIGNS) for key in keys for signed in (mu, -mu)]
    (here,), losses = probed.at([None]), []
    for first in range(0, len(points), _POINTS_AT_ONCE):
        tell(f"trace by forwards, mu = {mu:g}", first, len(points))
        losses.append(probed.at(points[first : first + _POINTS_AT_ONCE]))
    above, below = np.concatenate(losses).reshape(-1, 2).T
    return ((above - here) + (below - here)) / mu**2
