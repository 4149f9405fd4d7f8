"""The spectrum by quadrature, against matrices whose eigenvalues are known."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from seedtune.analysis.quadrature import spectrum_of
from seedtune.errors import ModelError
from seedtune.zo import noise


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


SPECTRA = {
    "few over a band": np.concatenate([[100.0], np.linspace(-1, 1, 199)]),
    "low rank": np.concatenate([np.linspace(1, 3, 12), np.linspace(-3, -1, 12), np.full(400, 1e-4)]),
    "all sizes": np.concatenate([np.geomspace(1e-4, 9, 150), -np.geomspace(1e-4, 3, 150)]),
    "symmetric": np.linspace(-1, 1, 100),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_absolute_trace_is_found_from_below_and_nearer_with_every_step(name):
    """Of a diagonal matrix random signs are exact, so that the quadrature's error is all there is."""
    values = SPECTRA[name]
    diagonal, exact = torch.from_numpy(values).float(), np.abs(values).sum()
    (one,) = spectrum_of(lambda vector: diagonal * vector, len(values), [1], 48, lambda *_: None).starts
    found = [len(values) * one.absolute(steps) for steps in range(1, 49)]
    assert all(before <= after * (1 + 1e-6) for before, after in pairwise(found))
    assert 0.97 * exact < found[-1] < exact * (1 + 1e-6)
    by_ritz_values = [len(values) * float(w @ np.abs(v)) for v, w, _ in map(one.ritz, range(1, 49))]
    assert name not in ("low rank", "all sizes") or max(by_ritz_values) > 1.05 * exact  # those are no bound


def test_each_start_is_a_lower_bound_of_its_own_part():
    values = SPECTRA["all sizes"]
    found = spectrum(values, 6, 12)
    absolute = symmetric(np.abs(values)).double().numpy()
    for key, one in zip(range(1, 7), found.starts, strict=True):
        z = noise.values(key, 0, 300, noise.Distribution.RADEMACHER).double().numpy()
        assert 0.8 * (z @ absolute @ z) < 300 * one.absolute(12) < z @ absolute @ z
    assert found.absolute_at_half.value < found.absolute.value
    psd = spectrum(np.abs(values), 2, 5)
    assert psd.absolute.value == pytest.approx(psd.trace.value, rel=1e-6)


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
