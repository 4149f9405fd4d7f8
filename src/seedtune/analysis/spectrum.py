"""The eigenvalues of largest magnitude of a symmetric matrix that is known by its products.

ARPACK's implicitly restarted Lanczos method (scipy.sparse.linalg.eigsh), which keeps its basis orthogonal by full
reorthogonalisation. It starts from a keyed direction, so that the same matrix has the same answer. Small matrices are
formed and solved whole.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ConfigError, ModelError, install_hint
from ..zo import noise
from .hessian import Operator

SMALL = 32
"""Up to so many rows a matrix is formed."""
_MOST_RESTARTS = 100


@dataclass(frozen=True)
class Eigenvalue:
    """A Ritz value, and the norm of A v - value v for its unit vector v: an eigenvalue of A lies within this distance.

    That no larger one was missed cannot be proved from products; it would need a start orthogonal to its vector.
    """

    value: float
    residual: float


def top_eigenvalues(times: Operator, size: int, count: int, key: int, tolerance: float = 1e-3) -> list[Eigenvalue]:
    """The `count` eigenvalues of largest magnitude (all, if there are fewer), largest first, with their signs.

    tolerance: relative accuracy at which the iteration ends.

    Cost: `size` products where it is small; else at least 2 `count` + 6, and several times as many where they lie
    close together; one more for each residual. Memory: 2 `count` + 6 vectors in float32.

    Raises:
        ModelError: the iteration does not end. ConfigError: scipy is not installed.
    """
    if size <= max(SMALL, 2 * count + 6):
        return _dense(times, size)[:count]
    values, vectors = _lanczos(times, size, count, key, tolerance)
    found = []
    for value, vector in zip(values, vectors.T, strict=True):
        rest = times(torch.from_numpy(vector.copy())).numpy() - value * vector
        found.append(Eigenvalue(float(value), float(np.linalg.norm(rest))))
    return sorted(found, key=lambda each: -abs(each.value))


def _dense(times: Operator, size: int) -> list[Eigenvalue]:
    """Exact but for rounding: the matrix less its transpose says how much that is."""
    rows = torch.stack([times(unit) for unit in torch.eye(size)]).double().numpy()
    values = np.linalg.eigvalsh((rows + rows.T) / 2)
    rounding = float(np.abs(rows - rows.T).max())
    return [Eigenvalue(float(value), rounding) for value in sorted(values, key=lambda value: -abs(value))]


def _lanczos(times: Operator, size: int, count: int, key: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    linalg = scipy_part("sparse.linalg")

    def matvec(vector: np.ndarray) -> np.ndarray:
        product = times(torch.from_numpy(np.ascontiguousarray(vector.ravel(), np.float32))).numpy()
        if not np.isfinite(product).all():
            raise ModelError("the Hessian has values that are not finite: the loss cannot be probed at these weights")
        return product

    operator = linalg.LinearOperator((size, size), matvec=matvec, dtype=np.float32)
    start = noise.values(key, 0, size, noise.Distribution.GAUSSIAN).numpy()
    width = 2 * count + 6
    try:
        return linalg.eigsh(operator, count, which="LM", v0=start, ncv=width, tol=tolerance, maxiter=_MOST_RESTARTS)
    except linalg.ArpackNoConvergence:
        raise ModelError(
            f"the {count} largest eigenvalues did not part within {_MOST_RESTARTS} restarts: ask for fewer with "
            "--eigenvalues"
        ) from None


def scipy_part(name: str):
    """A part of scipy.

    Raises:
        ConfigError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"scipy.{name}")
    except ModuleNotFoundError:
        raise ConfigError(f"probes need scipy: {install_hint('analysis')}") from None
