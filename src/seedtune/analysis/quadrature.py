"""The spectrum of a symmetric matrix that is known by its products, as a quadrature: tr f(A) for any f.

    tr f(A) = E[z^T f(A) z]  for  E[z z^T] = I,    z^T f(A) z ~ n sum_k w_k f(theta_k)

With theta_k the Ritz values of a Lanczos iteration that starts at z / |z|, and w_k the squares of the first components
of its tridiagonal matrix's eigenvectors (stochastic Lanczos quadrature: Golub and Meurant 1994; Ubaru, Chen and Saad
2017). Up to degree 2 m - 1 in m steps this is exact, so that tr(A) and |A|_F^2 carry no error but that of the random
starts. |x| has a kink at 0, around which a Hessian has most of its eigenvalues: one Ritz value stands for nearly all of
them, and how far it happens to lie from 0 counts for their number. So tr|A| takes a quadrature that is given a node at
0 (Gauss and Radau's). The polynomial through |x| at 0 and touching it at the other nodes is nowhere above |x|, and no
other such one of its degree has a larger integral. Every start's part of tr|A| is thus found from below, higher with
every step; half of the steps, from the same products, show how fast it still grows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ModelError
from ..zo import noise
from .finding import Tell
from .hessian import Operator
from .intervals import Interval, student

_SINGULAR = 1e-9  # of the largest Ritz value
_BREAKDOWN = 1e-6  # of the matrix's size so far: what is left of a vector is rounding, the space is exhausted


@dataclass(frozen=True)
class Tridiagonal:
    """What one start left: float64, `diagonal` [m] and `beside` [m], of which the last couples to what was left out."""

    diagonal: np.ndarray
    beside: np.ndarray

    def ritz(self, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(values, weights, residuals) [k] of the first `num_steps` steps: an eigenvalue of A lies within each residual
        of its value."""
        k = min(num_steps, len(self.diagonal))
        inner = self.beside[: k - 1]
        matrix = np.diag(self.diagonal[:k]) + np.diag(inner, 1) + np.diag(inner, -1)
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors[0] ** 2, np.abs(self.beside[k - 1] * vectors[-1])

    def absolute(self, num_steps: int) -> float:
        """sum_k w_k |theta_k| of the quadrature with a node at 0, which has one more than `num_steps`.

        Where a Ritz value is 0 but for rounding there is such a node already.
        """
        values, weights, _ = self.ritz(num_steps)
        k, scale = len(values), float(np.abs(values).max())
        if np.abs(values).min() <= _SINGULAR * scale:
            return float(weights @ np.abs(values))
        beside = self.beside[:k]
        inner = np.diag(self.diagonal[:k]) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
        matrix = np.zeros((k + 1, k + 1))
        matrix[:k, :k] = inner
        matrix[k, k - 1] = matrix[k - 1, k] = beside[-1]
        matrix[k, k] = np.linalg.solve(inner, beside[-1] ** 2 * np.eye(k)[-1])[-1]
        values, vectors = np.linalg.eigh(matrix)
        return float(vectors[0] ** 2 @ np.abs(values))


@dataclass(frozen=True)
class Spectrum:
    """A matrix of `size` rows by the tridiagonal matrices of its starts.

    Intervals are 90 %, Student's t over starts, unless said otherwise.
    """

    size: int
    starts: Sequence[Tridiagonal]

    @property
    def num_steps(self) -> int:
        return max(len(each.diagonal) for each in self.starts)

    def mean(self, f: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """tr f(A), of a polynomial of degree 2 m - 1 at most."""
        found = (each.ritz(self.num_steps) for each in self.starts)
        return student([self.size * float(weights @ f(values)) for values, weights, _ in found])

    @property
    def trace(self) -> Interval:
        return self.mean(lambda values: values)

    @property
    def squares(self) -> Interval:
        """|A|_F^2."""
        return self.mean(np.square)

    @property
    def absolute(self) -> Interval:
        """tr|A|, from below: the interval is about the random starts of what is found of it."""
        return self._absolute(self.num_steps)

    @property
    def absolute_at_half(self) -> Interval:
        """`absolute`, from the first half of the steps."""
        return self._absolute(max(1, self.num_steps // 2))

    def _absolute(self, num_steps: int) -> Interval:
        return student([self.size * each.absolute(num_steps) for each in self.starts])

    @property
    def norm(self) -> Interval:
        """|A|: the largest Ritz value in magnitude. Never above |A|; an eigenvalue lies within the interval."""
        found = [each.ritz(self.num_steps) for each in self.starts]
        values, residuals = (np.concatenate([each[place] for each in found]) for place in (0, 2))
        best = int(np.abs(values).argmax())
        largest = float(np.abs(values[best]))
        return Interval(largest, largest, largest + float(residuals[best]))

    @property
    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest Ritz value."""
        values = np.concatenate([each.ritz(self.num_steps)[0] for each in self.starts])
        return float(values.min()), float(values.max())


def spectrum_of(times: Operator, size: int, keys: Sequence[int], num_steps: int, tell: Tell) -> Spectrum:
    """One Lanczos iteration a key, from random signs.

    Cost: at most `num_steps` products a key. Memory: `num_steps` vectors in float32.

    Raises:
        ModelError: a product is not finite.

    >>> diagonal = torch.tensor([3.0, -1.0, 0.5])
    >>> found = spectrum_of(lambda vector: diagonal * vector, 3, [1, 2], 3, lambda *_: None)
    >>> [round(each.value, 4) for each in (found.trace, found.squares, found.norm)]
    [2.5, 10.25, 3.0]
    """
    starts = []
    for number, key in enumerate(keys):
        tell("Lanczos iterations", number, len(keys))
        signs = noise.values(key, 0, size, noise.Distribution.RADEMACHER)
        starts.append(_lanczos(times, signs / size**0.5, min(num_steps, size)))
    return Spectrum(size, starts)


def _lanczos(times: Operator, start: torch.Tensor, num_steps: int) -> Tridiagonal:
    """With every new vector orthogonalised twice against all before it, which float32 needs."""
    basis = torch.empty(num_steps, len(start))
    diagonal, beside, vector = [], [], start
    for step in range(num_steps):
        basis[step] = vector
        product = times(vector)
        if not torch.isfinite(product).all():
            raise ModelError("the Hessian has values that are not finite: the loss cannot be probed at these weights")
        diagonal.append(float(vector.double() @ product.double()))
        for _ in range(2):
            product = product - basis[: step + 1].T @ (basis[: step + 1] @ product)
        beside.append(float(product.double().norm()))
        if beside[-1] <= _BREAKDOWN * max(1e-30, *map(abs, diagonal), *beside):
            break
        vector = product / beside[-1]
    return Tridiagonal(np.array(diagonal), np.array(beside))
