"""What several gradients say together, from their inner products alone.

Each gradient is of its own random examples, so its squared norm is too large by its variance, however many are
averaged. Inner products of two independent ones are not: E<g, g'> = <E g, E g'>. Everything here is made of those.
"""

from collections.abc import Sequence

import numpy as np

from .subject import Tensors, dot


def gram_of(gradients: Sequence[Tensors]) -> np.ndarray:
    """All inner products, float64 [n, n]. Cost: n (n + 1) / 2 passes over two gradients."""
    gram = np.zeros((len(gradients), len(gradients)))
    for i, one in enumerate(gradients):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = dot(one, gradients[j])
    return gram


def noise_ratio(gram: np.ndarray, chosen: np.ndarray) -> float:
    """E|g_B|^2 / |E g_B|^2 of mini-batch gradients of which `gram` has the inner products: at least 1 but for chance.

    `chosen`: rows to use, which may repeat (a bootstrap's); pairs of the same row do not count as independent. NaN
    where the estimate of |E g_B|^2 is not positive, since noise hides the gradient.
    """
    part = gram[np.ix_(chosen, chosen)]
    independent = chosen[:, None] != chosen[None, :]
    if not independent.any():
        return float("nan")
    squared = part[independent].mean()
    return float(part.diagonal().mean() / squared) if squared > 0 else float("nan")


def gradient_variance(gram: np.ndarray) -> float:
    """E|g_B|^2 - |E g_B|^2 of the gradients of which `gram` has the inner products; by chance it may come out below 0.

    >>> gradient_variance(np.array([[4.0, 1.0], [1.0, 2.0]]))
    2.0
    """
    apart = ~np.eye(len(gram), dtype=bool)
    return float(gram.diagonal().mean() - gram[apart].mean()) if apart.any() else float("nan")


def dissimilarity(gram: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """(|grad f_i - grad f|^2 of each client, float64 [n]; |grad f|^2), without the bias of few examples.

    gram: inner products of 2 n gradients, those of all clients' first halves, then those of their second halves.
    weights: of the clients in f, summing to 1. A value may come out below 0, by chance, where it is small.

    >>> halves = np.array([[1.0, 0.0], [0.0, 1.0]] * 2)
    >>> apart, squared = dissimilarity(halves @ halves.T, np.array([0.5, 0.5]))
    >>> apart.tolist(), squared
    ([0.5, 0.5], 0.5)
    """
    count = len(weights)
    cross = gram[:count, count:]  # first half of i with second half of j
    of_mean_first, of_mean_second = weights @ cross, cross @ weights
    squared = float(weights @ of_mean_second)
    return cross.diagonal() - of_mean_first - of_mean_second + squared, squared
