"""Contributions of bounded norm, in whole multiples of a grid: what sensitivities rest on, to the bit."""

import numpy as np

from .noise import power_of_two_below

_FINENESS = 2.0**-12  # of a contribution, as a share of the bound


def grid(bound: float) -> float:
    """Return the power of two of which all clipped coordinates are multiples."""
    return power_of_two_below(bound * _FINENESS)


def clipped(vectors: np.ndarray, bound: float) -> np.ndarray:
    """Each row shortened to an L2 norm of at most `bound`, float64 [n, d].

    Guarantees: for any input, a row's norm is at most `bound`; a row that is not finite is 0; every coordinate is a
    multiple of a power of two of at most bound / 4096, cut towards 0, so that sums of up to 2^40 rows are exact.
    """
    step = grid(bound)
    rows = np.where(np.isfinite(vectors).all(1, keepdims=True), vectors, 0.0).astype(np.float64)
    largest = np.abs(rows).max(1, keepdims=True, initial=0.0)
    norms = np.linalg.norm(rows / np.where(largest > 0, largest, 1.0), axis=1, keepdims=True)
    most = bound * (1 - 2.0**-40)  # less by more than the rounding of the next lines
    with np.errstate(over="ignore"):
        lengths = norms * largest  # of the largest coordinate first, so that no square is beyond float64
    return np.trunc(rows * (most / np.maximum(lengths, most)) / step) * step
