"""How the scalars of a cohort that shares its directions become one set: pure functions on [n, H, P].

A scalar that is NaN belongs to a step that its client skipped, and takes no part; where all did, NaN comes out. The
mean follows any one client as far as it likes. Median and trimmed mean do not: with fewer liars than half of those
that answer, and than the share cut off, what comes out lies between two values that honest clients sent (Yin et al.,
ICML 2018, arXiv 1803.01498). Every client counts as one there, since how many examples it has is its own claim.

Cost: n log n comparisons a scalar.
"""

import numpy as np


def mean(scalars: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weighted by `counts` (float64 [n]); a step skipped by some is the mean of the others. float32 [H, P]."""
    shares = counts / counts.sum()
    finite = ~np.isnan(scalars)
    total = (np.where(finite, scalars, 0.0) * shares[:, None, None]).sum(0)
    weight = (finite * shares[:, None, None]).sum(0)
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)


def median(scalars: np.ndarray) -> np.ndarray:
    """The middle value, or the mean of the two in the middle; float32 [H, P].

    >>> median(np.array([3.0, -1e9, 1.0, np.nan]).reshape(4, 1, 1)).item()
    1.0
    """
    return _mean_of_middle(scalars, lambda present: (present - 1) // 2)


def trimmed_mean(scalars: np.ndarray, fraction: float) -> np.ndarray:
    """The mean without the `fraction` n smallest and as many of the largest, rounded down; float32 [H, P].

    >>> trimmed_mean(np.array([3.0, -1e9, 1.0, 2.0, 1e9]).reshape(5, 1, 1), 0.2).item()
    2.0
    """
    return _mean_of_middle(scalars, lambda present: np.floor(fraction * present).astype(int))


def majority(signs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The sign that most have, client i counting counts[i] times; 0 in a tie. float32 [H, P]."""
    votes = np.sign(np.nansum(signs * counts[:, None, None], 0))  # counts are whole numbers: the sum is exact
    return np.where(np.isnan(signs).all(0), np.nan, votes).astype(np.float32)


def _mean_of_middle(scalars: np.ndarray, num_cut) -> np.ndarray:
    """The mean of what is left when `num_cut(number of values)` are cut off at each end."""
    ascending = np.sort(scalars.astype(np.float64), axis=0)  # NaN last
    present = np.isfinite(ascending).sum(0)
    cut, place = num_cut(present), np.arange(len(ascending))[:, None, None]
    is_kept = (place >= cut) & (place < present - cut)
    total, kept = np.where(is_kept, ascending, 0.0).sum(0), is_kept.sum(0)
    return np.where(kept > 0, total / np.maximum(kept, 1), np.nan).astype(np.float32)
