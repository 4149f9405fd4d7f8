"""The spectrum by quadrature, against matrices whose eigenvalues are known."""

import numpy as np
import pytest
import torch

from seedtune.analysis.quadrature import Spectrum, spectrum_of
from seedtune.errors import ModelError


def symmetric(values: np.ndarray) -> torch.Tensor:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values), len(values))))[0]
    return torch.from_numpy(basis * values @ basis.T).float()


def spectrum(values: np.ndarray, num_starts: int, num_steps: int):
    matrix = symmetric(values)
    return spectrum_of(lambda vector: matrix @ vector, len(values), range(1, num_starts + 1), num_steps, lambda *_: 0)


def test_traces_of_an_indefinite_matrix_are_within_three_deviations():
    """Few large eigenvalues of both signs over many small ones, as Hessians have."""
    values = np.concatenate([[40.0, -25.0, 10.0], np.linspace(-1, 1, 197)])
    found = spectrum(values, 24, 24)
    for interval, f in ((found.trace, values), (found.squares, values**2)):
        deviation = np.sqrt(2 * np.sum(f**2) / 24)  # of the mean of 24 samples z^T f(A) z, at most
        assert abs(interval.value - f.sum()) < 3 * deviation
        assert 0.1 * deviation < interval.high - interval.low < 6 * deviation
    assert found.norm.value == pytest.approx(40, rel=1e-6) and found.norm.high == pytest.approx(40, rel=1e-5)
    assert found.extremes == pytest.approx((-25, 40), rel=1e-3)


def test_the_absolute_trace_of_a_matrix_met_whole_has_no_quadrature_error():
    """As many steps as rows: with random signs and a diagonal matrix every sample is the trace itself."""
    diagonal = torch.linspace(-2, 3, 12)
    found = spectrum_of(lambda vector: diagonal * vector, 12, [1, 2, 3], 12, lambda *_: None)
    last = [12 * float(weights @ np.abs(values)) for values, weights, _ in (one.ritz(12) for one in found.starts)]
    assert last == pytest.approx([float(diagonal.abs().sum())] * 3, rel=1e-5)
    assert found.absolute_swing.low <= last[0] * (1 + 1e-5) and found.absolute_swing.high >= last[0] * (1 - 1e-5)


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_the_swing_of_the_absolute_trace_holds_it_where_most_eigenvalues_are_small(share):
    """As of a Hessian: a few dozen large eigenvalues of both signs over a bulk around 0, of which some may be 0."""
    rng, size = np.random.default_rng(1), 100_000
    values = np.where(rng.random(size) < share, rng.laplace(0, 0.02 / share, size), 0.0)
    values[:60] = rng.choice([-1, 1], 60) * 230 / np.arange(1, 61) ** 0.7
    diagonal = torch.from_numpy(values).float()
    found = spectrum_of(lambda vector: diagonal * vector, size, [1, 2], 80, lambda *_: None)
    true = np.abs(values).sum()
    assert found.absolute_swing.low / 1.3 < true < found.absolute_swing.high * 1.3
    assert true / 2 < found.absolute_swing.value < 2 * true


SPECTRA = [
    (-1, np.concatenate([[100.0], np.linspace(-1, 1, 199)])),
    (1, np.concatenate([np.linspace(1, 3, 12), np.linspace(-3, -1, 12), np.full(400, 1e-4)])),
]


@pytest.mark.parametrize(("sign", "values"), SPECTRA)
def test_few_steps_err_to_either_side_and_the_wider_interval_allows_for_it(sign, values):
    """Of a diagonal matrix random signs are exact, so that the quadrature's error is all there is."""
    diagonal = torch.from_numpy(values).float()
    found = spectrum_of(lambda vector: diagonal * vector, len(values), [1, 2, 3], 8, lambda *_: None)
    exact, wide = np.abs(values).sum(), found.absolute_within
    assert sign * (found.absolute.value - exact) > 0.01 * exact and not found.absolute.contains(exact)
    assert wide.contains(exact) and wide.value == found.absolute.value
    alone = Spectrum(found.size, found.starts[:1])
    assert alone.absolute_within == alone.absolute


def test_the_same_keys_give_the_same_spectrum_and_an_exhausted_space_ends_it():
    values = np.repeat([2.0, -1.0], 20)
    one, other = spectrum(values, 2, 10), spectrum(values, 2, 10)
    assert [each.diagonal.tolist() for each in one.starts] == [each.diagonal.tolist() for each in other.starts]
    assert one.num_steps == 2 and one.norm.value == pytest.approx(2, rel=1e-5)
    zero = spectrum_of(lambda vector: 0 * vector, 5, [1], 5, lambda *_: None)
    assert (zero.trace.value, zero.norm.value, zero.num_steps) == (0, 0, 1)


def test_what_is_not_finite_is_an_error():
    with pytest.raises(ModelError, match="not finite"):
        spectrum_of(lambda vector: vector * float("nan"), 5, [1], 5, lambda *_: None)
