"""The split estimator: projected gradients of a model in two blocks, what block 1 computed used again for block 2.

FedSPZO (arXiv 2502.10239) gives block 2 more perturbations than block 1 and reuses activations. How many, and which
differences it takes, is not known to us: both readings here are ours, and docs/fedspzo.md says why. F(x, y) is the loss
with the parameters of block 1 at theta_1 + x and those of block 2 at theta_2 + y, F1 and F2 what evaluating a block
costs. `zo.expansion` says which key belongs to which direction and what is made of the scalars.

    nested, central         g_pq = [F(mu z_p, mu z_pq) - F(-mu z_p, -mu z_pq)] / 2 mu        2 P1 (F1 + P2 F2)
    nested, one-sided       g_pq = [F(mu z_p, mu z_pq) - F(0, 0)] / mu                       F1 + F2 + P1 (F1 + P2 F2)
    clean-prefix, central   g_p  = [F(mu z_p, 0) - F(-mu z_p, 0)] / 2 mu
                            g_q  = [F(0, mu z_q) - F(0, -mu z_q)] / 2 mu          F1 + 2 P2 F2 + 2 P1 (F1 + F2)
    clean-prefix, one-sided g_p  = [F(mu z_p, 0) - F(0, 0)] / mu
                            g_q  = [F(0, mu z_q) - F(0, 0)] / mu              F1 + (1 + P2) F2 + P1 (F1 + F2)

Nested, g_pq = <grad_1, z_p> + <grad_2, z_pq> up to an error of order mu^2 (central) or mu (one-sided); clean-prefix has
one of the two terms in each. The one-sided error is (mu / 2) z^T H z, H the Hessian and z all that was perturbed: its
product with z has mean zero, since third moments of directions vanish, so that either way the bias of the gradient
estimate is of order mu^2, and the error adds to its variance. With leave-one-out, F(0, 0) and what the error has in
common for all q cancel in block 2.

The estimator sees no model, no batch and no weights: it asks `Blocks`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from .estimators import MAY_BE_INFINITE, Probe
from .expansion import Split
from .noise import Distribution
from .perturb import Perturbation

Kept = TypeVar("Kept")
Point = Perturbation | None
"""Where a block stands; None: at theta."""


class Blocks(Protocol[Kept]):
    """A loss of one fixed batch in two parts. Each block reads its own tensors' part of a point."""

    def prefix(self, first: Point) -> Kept:
        """What block 1 computes at `first`. Cost: F1."""
        ...

    def losses(self, first: Point, seconds: Sequence[Point], kept: Kept) -> Sequence[float]:
        """The loss with block 1 at `first`, where `kept` was made, and block 2 at each of `seconds`. Cost: F2 each.

        One by one or several in one forward, which changes their last bits and nothing else.
        """
        ...


@MAY_BE_INFINITE
def probe(
    blocks: Blocks[Kept], split: Split, is_central: bool, keys: Sequence[int], mu: float, distribution: Distribution
) -> Probe:
    """The projected gradients that `split` tells a step in, [S]; `Probe.num_forwards` counts the losses.

    Args:
        keys: of the step's S directions.

    Cost: as above; 2 S losses (central) or S + 1, those of one prefix asked for together. Memory: what one prefix kept,
    clean-prefix: two.
    """
    losses_at, clean = (_nested if split.reading == "nested" else _clean_prefix)(blocks, split, keys, distribution)
    if is_central:
        above, below = losses_at(mu), losses_at(-mu)
        return Probe.of(keys, (above - below) / (2 * mu), float(np.mean([above, below])), 2 * len(keys))
    (here,) = blocks.losses(None, [None], clean())
    return Probe.of(keys, (losses_at(mu) - here) / mu, here, len(keys) + 1)


_Losses = tuple[Callable[[float], np.ndarray], Callable[[], Kept]]
"""(signed mu -> float64 [S], gives what block 1 computes at theta)"""


def _nested(blocks: Blocks[Kept], split: Split, keys: Sequence[int], distribution: Distribution) -> _Losses:
    def losses_at(mu: float) -> np.ndarray:
        losses: list[float] = []
        for start in range(0, len(keys), split.num_suffix):
            points = [Perturbation(key, mu, distribution) for key in keys[start : start + split.num_suffix]]
            kept = blocks.prefix(points[0])
            losses += blocks.losses(points[0], points, kept)
        return np.array(losses)

    return losses_at, lambda: blocks.prefix(None)


def _clean_prefix(blocks: Blocks[Kept], split: Split, keys: Sequence[int], distribution: Distribution) -> _Losses:
    clean = blocks.prefix(None)

    def losses_at(mu: float) -> np.ndarray:
        points = [Perturbation(key, mu, distribution) for key in keys]
        first, second = (points[own] for own in split.directions)
        whole = [loss for point in first for loss in blocks.losses(point, [None], blocks.prefix(point))]
        return np.array([*whole, *blocks.losses(None, second, clean)])

    return losses_at, lambda: clean
