"""The noise contract: known answers, purity, statistics, rounding, errors."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from seedtune.zo.kernels import torch_ref, using
from seedtune.zo.noise import VERSION, Distribution, accumulate, derive_key, perturb, perturb_rows, values

ANSWERS = json.loads((Path(__file__).parents[1] / "known_answers" / "noise.json").read_text())
GAUSSIAN, RADEMACHER = Distribution.GAUSSIAN, Distribution.RADEMACHER
NUM = 2**21

# Counter, key, result: the known answers that Random123 publishes for philox4x32-10 (zeros, ones, digits of pi).
RANDOM123 = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture(params=["compiled", "torch"])
def kernel(request):
    with using(request.param):
        yield


def bits(tensor: torch.Tensor) -> list[int]:
    sizes = {4: (torch.int32, 2**32 - 1), 2: (torch.int16, 2**16 - 1)}
    dtype, mask = sizes[tensor.element_size()]
    return [pattern & mask for pattern in tensor.view(dtype).tolist()]


def from_bits(patterns: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(patterns, np.uint32).view(np.float32))


@pytest.mark.parametrize(("counter", "key", "words"), RANDOM123)
def test_philox_of_the_reference(counter, key, words):
    assert tuple(int(x) for x in torch_ref.philox4x32(tuple(map(torch.tensor, counter)), key)) == words


@pytest.mark.usefixtures("kernel")
def test_values_are_the_known_ones():
    assert ANSWERS["version"] == VERSION
    for known in ANSWERS["values"]:
        z = values(known["key"], known["start"], len(known["bits"]), known["distribution"])
        assert bits(z) == known["bits"], known


@pytest.mark.usefixtures("kernel")
def test_roundings_are_the_known_ones():
    for known in ANSWERS["roundings"]:
        dtype = getattr(torch, known["dtype"])
        exact = from_bits(known["float32"])
        weights = torch.zeros(len(exact), dtype=dtype)
        for n, x in enumerate(exact.tolist()):  # coefficient x on a +1 or -1 at coordinate n makes exactly x
            sign = float(values(7, known["start"] + n, 1, RADEMACHER))
            accumulate(weights[n : n + 1], known["start"] + n, [7], [x * sign], RADEMACHER, known["key"])
        assert bits(weights) == known["bits"], known


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("distribution", Distribution)
def test_any_slice_is_a_slice_of_the_whole(distribution):
    start = 2**32 * 128 - 5_000
    whole = values(3, start, 10_000, distribution)
    for first, count in product((0, 1, 31, 127, 128, 129, 4_095, 4_999, 9_999), (0, 1, 33, 129, 4_097)):
        count = min(count, 10_000 - first)
        assert torch.equal(values(3, start + first, count, distribution), whole[first : first + count])


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accumulate_in_slices_equals_accumulate_at_once(dtype):
    whole = (values(1, 0, 9_000, GAUSSIAN) * 0.02).to(dtype)
    parts = whole.clone()
    accumulate(whole, 1_000, [4, 5], [1e-4, -3e-4], GAUSSIAN, 6)
    for part, at in zip(parts.split(1_111), range(0, 9_000, 1_111), strict=True):
        accumulate(part, 1_000 + at, [4, 5], [1e-4, -3e-4], GAUSSIAN, 6)
    assert torch.equal(parts, whole)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("distribution", Distribution)
def test_many_keys_at_once_equal_one_key_at_a_time(distribution):
    keys, factors = [11, 2**64 - 1, 13, 0], np.array([1e-3, -2e-4, 0.0, 0.7], np.float32)
    at_once = values(1, 0, 9_000, GAUSSIAN)
    at_once[::7] = -0.0
    one_by_one, slow = at_once.clone(), at_once.clone()
    accumulate(at_once, 77, keys, factors, distribution, 0)
    for key, factor in zip(keys, factors, strict=True):
        accumulate(one_by_one, 77, [key], [factor], distribution, 0)
        slow = slow + torch.tensor(factor) * values(key, 77, 9_000, distribution)
    assert bits(at_once) == bits(one_by_one) == bits(slow)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distribution", Distribution)
def test_perturb_is_its_formula_and_leaves_the_weights_alone(dtype, distribution):
    weights = (values(1, 0, 5_000, GAUSSIAN) * 0.02).to(dtype).view(50, 100)
    before, out = weights.clone(), torch.empty_like(weights)
    perturb(out, weights, 8, 123, -1e-3, distribution)
    z = values(8, 123, 5_000, distribution).view(50, 100)
    assert torch.equal(out, (weights.float() + torch.tensor(-1e-3) * z).to(dtype))
    assert torch.equal(weights, before)


@pytest.mark.usefixtures("kernel")
def test_mirrored_perturbations_differ_in_the_sign_of_z():
    zero, plus, minus = torch.zeros(3, 1_000)
    perturb(plus, zero, 5, 0, 1e-3, GAUSSIAN)
    perturb(minus, zero, 5, 0, -1e-3, GAUSSIAN)
    assert torch.equal(plus, -minus)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_empty_tensors_and_no_keys(dtype):
    empty, weights = torch.empty(0, dtype=dtype), torch.randn(5, generator=torch.Generator()).to(dtype)
    before = weights.clone()
    accumulate(empty, 2**62, [1], [1.0], GAUSSIAN, 0)
    perturb(empty, empty.clone(), 1, 2**62, 1e-3, GAUSSIAN)
    perturb_rows(empty.view(0, 3), weights[:3].view(1, 3), torch.empty(0, dtype=torch.int64), 1, 0, 1e-3, GAUSSIAN)
    accumulate(weights, 0, [], [], GAUSSIAN, 5)
    assert torch.equal(weights, before)
    assert values(1, 0, 0, GAUSSIAN).shape == (0,)


# Statistics. Bounds are five standard errors of the quantity at NUM independent values; keys are fixed.


@pytest.fixture(scope="module", params=[1, 2**63 + 12345])
def z(request) -> np.ndarray:
    return values(request.param, 2**20 + 3, NUM, GAUSSIAN).double().numpy()


def test_gaussian_moments(z):
    # Standard errors of mean z^k for a normal z: sqrt(E z^2k - (E z^k)^2) / sqrt(NUM).
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)):
        assert abs((z**power).mean() - expected) < 5 * (variance / NUM) ** 0.5, power


def test_gaussian_tails(z):
    for limit, probability in ((1, 0.31731), (2, 0.045500), (3, 2.6998e-3), (4, 6.3342e-5), (5, 5.7330e-7)):
        expected = NUM * probability
        assert abs((np.abs(z) > limit).sum() - expected) < 5 * expected**0.5 + 2, limit
    assert np.abs(z).max() < 6.67


def test_gaussian_distribution_function(z):
    normal = torch.special.ndtr(torch.from_numpy(np.sort(z))).numpy()
    distance = np.abs(normal - (np.arange(NUM) + 0.5) / NUM).max()
    assert distance < 2.2 / NUM**0.5  # Kolmogorov: exceeded with probability 1.3e-4


@pytest.mark.parametrize("lag", [1, 2, 31, 32, 33, 64, 96, 127, 128, 129, 4_096])
def test_gaussian_coordinates_do_not_correlate(z, lag):
    first, second = z[:-lag], z[lag:]
    assert abs((first * second).mean()) < 5 / NUM**0.5
    assert abs((first**2 * second**2).mean() - 1) < 5 * (8 / NUM) ** 0.5


@pytest.mark.parametrize("distribution", Distribution)
def test_keys_do_not_correlate(distribution):
    near = [values(key, 0, 2**18, distribution).double() for key in (0, 1, 2, 2**32, 2**32 + 1, 2**63)]
    for n, first in enumerate(near):
        for second in near[:n]:
            assert abs(float((first * second).mean())) < 5 / 2**9


def test_rademacher_is_balanced_and_uncorrelated():
    signs = values(2**40 + 9, 5, NUM, RADEMACHER).double().numpy()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / NUM**0.5
    for lag in (1, 31, 32, 64, 127, 128, 4_096):
        assert abs((signs[:-lag] * signs[lag:]).mean()) < 5 / NUM**0.5, lag
    per_place = signs[: NUM // 128 * 128].reshape(-1, 128).mean(axis=0)
    assert np.abs(per_place).max() < 5 / (NUM // 128) ** 0.5


def test_box_muller_is_accurate():
    """Within 2e-7 of the radius of what float64 makes of the same uniform number and angle."""
    words = torch.arange(0, 2**32, 9_973, dtype=torch.int64)
    shuffled = words[(torch.arange(len(words)) * 7_919) % len(words)]
    first, second = torch_ref.box_muller(words, shuffled)
    u = (((words >> 1).float() + 0.5) * 2.0**-31).double()
    signed = (shuffled >> 8) - ((shuffled >> 31) << 24)
    angle = signed.double() * 2.0**-23 * (torch.pi / 4) + (shuffled & 3).double() * (torch.pi / 2)
    radius = torch.sqrt(-2 * torch.log(u))
    for got, exact in ((first, radius * torch.sin(angle)), (second, radius * torch.cos(angle))):
        assert bool(((got.double() - exact).abs() <= 2e-7 * radius).all())


def test_logarithm_is_never_positive_and_smallest_word_is_the_tail():
    ends = torch.tensor([0, 1, 2, 2**31 - 1, 2**32 - 1, 2**32 - 2, 2**32 - 256, 2**32 - 257], dtype=torch.int64)
    radius = torch_ref._radius(ends)
    assert bool(radius.isfinite().all())
    assert float(radius.max()) == pytest.approx((2 * 32 * np.log(2)) ** 0.5, rel=1e-6)


# Keyed stochastic rounding.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x", [1.0007, -1.0007, 0.30001, -2.7e-4, 6.0e-5, 6.09e-5, 3.3e-6, -1.1e-7, 1e-8, 65_000.5])
def test_rounding_is_unbiased(dtype, x):
    x = float(torch.tensor(x))
    exact = torch.full((2**16,), x)
    weights = torch_ref.round_stochastic(exact, torch_ref.rounding_bits(5, 0, 2**16, exact.device), dtype)
    low, high = sorted({float(w) for w in weights.unique()} | {float(torch.tensor(x).to(dtype))})[:2]
    assert len(weights.unique()) <= 2
    assert low <= x <= high
    # A rounding's standard deviation is at most half a step; float16 below 2^-14 may also be off by 2^-37.
    assert abs(float(weights.double().mean()) - x) < 5 * (high - low) / 2 / 2**8 + 2.0**-37


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_are_not_lost(dtype):
    """400 updates of a 200th of a step move weights by two steps on average; to nearest they would move none."""
    weights = torch.ones(4_000, dtype=dtype)
    step = torch.finfo(dtype).eps
    sign = values(3, 0, 4_000, RADEMACHER)
    for n in range(400):
        accumulate(weights, 0, [3], [step / 200], RADEMACHER, derive_key(1, "rounding", step=n))
    moved = (weights.double() - 1) / step
    # Downwards from 1 a step is half as long; there roundings are as unbiased. Variance of a sum of 400: at most 2.
    assert abs(float((moved * sign.double()).mean()) - 2) < 5 * (2 / 4_000) ** 0.5


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_that_need_no_rounding_stay(dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    weights = patterns.view(dtype)
    keep = weights.isfinite()
    before, weights = weights[keep].clone(), weights[keep].clone()
    accumulate(weights, 3, [], [], GAUSSIAN, 9)
    assert bits(weights) == bits(before)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_at_the_end_of_the_range(dtype):
    largest = torch.finfo(dtype).max
    half_step = largest - float(torch.tensor(largest, dtype=dtype).view(torch.int16).sub(1).view(dtype))
    half_step /= 2
    sign = values(1, 0, 500, RADEMACHER)
    stays, leaves = ((sign * largest).to(dtype) for _ in range(2))
    accumulate(stays, 0, [1], [half_step * 0.99], RADEMACHER, 4)
    accumulate(leaves, 0, [1], [half_step], RADEMACHER, 4)
    assert torch.equal(stays.float(), sign * largest)
    assert torch.equal(leaves.float(), sign * torch.inf)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_stay_what_they_are(dtype):
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    out = torch.empty_like(odd)
    perturb(out, odd, 1, 0, 1e-3, GAUSSIAN)
    accumulate(odd, 0, [1], [1e-3], GAUSSIAN, 2)
    for got in (out, odd):
        assert got[0].isnan()
        assert got[1:].tolist() == [torch.inf, -torch.inf]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_key_matters_only_where_there_is_rounding(dtype):
    start = values(1, 0, 1_000, GAUSSIAN)
    for kind, differ in ((dtype, True), (torch.float32, False)):
        first, second = start.to(kind), start.to(kind)
        accumulate(first, 0, [2], [1e-4], GAUSSIAN, 1)
        accumulate(second, 0, [2], [1e-4], GAUSSIAN, 2)
        assert torch.equal(first, second) != differ


# Errors.

ROW = torch.zeros(8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: values(-1, 0, 1, GAUSSIAN), r"key -1: must be from 0 to 2\^64 - 1"),
        (lambda: values(2**64, 0, 1, GAUSSIAN), r"key 18446744073709551616: must be from 0"),
        (lambda: values(0, -1, 1, GAUSSIAN), r"coordinates -1 to -1 \+ 1: must lie in 0 to 2\^62"),
        (lambda: values(0, 2**62, 1, GAUSSIAN), r"coordinates 4611686018427387904 to .* \+ 1: must lie in 0 to 2\^62"),
        (lambda: values(0, 0, -1, GAUSSIAN), r"coordinates 0 to 0 \+ -1: must lie in"),
        (lambda: values(0, 0, 1, "uniform"), "'uniform' is not a valid Distribution"),
        (
            lambda: perturb(ROW.double(), ROW, 0, 0, 1e-3, GAUSSIAN),
            "out is torch.float64: must be float32, bfloat16 or",
        ),
        (
            lambda: perturb(torch.zeros(2, 4).T, ROW.view(4, 2), 0, 0, 1e-3, GAUSSIAN),
            r"out \[4, 2\] has strides \(1, 4\): must be contiguous",
        ),
        (
            lambda: perturb(torch.zeros(7), ROW, 0, 0, 1e-3, GAUSSIAN),
            r"perturb: out is \[7\] but weights is \[8\]: shapes must match",
        ),
        (
            lambda: perturb(ROW.half(), ROW, 0, 0, 1e-3, GAUSSIAN),
            "out is torch.float16 on cpu but weights is torch.float32 on cpu: must be alike",
        ),
        (
            lambda: perturb(ROW, ROW, 0, 0, 1e-3, GAUSSIAN),
            "out shares memory with weights: must be a buffer of its own",
        ),
        (lambda: perturb(ROW[:4], ROW[3:7], 0, 0, 1e-3, GAUSSIAN), "out shares memory with weights"),
        (lambda: perturb(ROW.clone(), ROW, 0, 0, float("nan"), GAUSSIAN), "mu = nan: must be a finite float32"),
        (lambda: perturb(ROW.clone(), ROW, 0, 0, 1e39, GAUSSIAN), r"mu = 1e\+39: must be a finite float32"),
        (
            lambda: perturb_rows(torch.zeros(1, 4), ROW.view(2, 4), torch.tensor([0.0]), 0, 0, 1e-3, GAUSSIAN),
            r"perturb_rows: rows is torch.float32 \[1\] on cpu: must be contiguous int64 \[m\] on cpu",
        ),
        (
            lambda: perturb_rows(torch.zeros(1, 3), ROW.view(2, 4), torch.tensor([0]), 0, 0, 1e-3, GAUSSIAN),
            r"perturb_rows: out is \[1, 3\] for 1 rows of a table \[2, 4\]: must be \[rows, row length\]",
        ),
        (
            lambda: perturb_rows(torch.zeros(2, 4), ROW.view(2, 4), torch.tensor([0, 2]), 0, 0, 1e-3, GAUSSIAN),
            "perturb_rows: rows go from 0 to 2: the table has rows 0 to 1",
        ),
        (
            lambda: accumulate(ROW, 0, [1, 2], [1.0], GAUSSIAN, 0),
            r"accumulate: coefficients is \[1\] for 2 keys: one for each key",
        ),
        (
            lambda: accumulate(ROW, 0, [1], [float("inf")], GAUSSIAN, 0),
            "accumulate: coefficients hold inf: must be finite",
        ),
        (lambda: accumulate(ROW, 0, [1], [1.0], GAUSSIAN, -3), "key -3: must be from 0"),
        (lambda: accumulate(ROW, 0, [2**64], [1.0], GAUSSIAN, 0), "key 18446744073709551616: must be"),
        (lambda: accumulate(ROW.int(), 0, [1], [1.0], GAUSSIAN, 0), "weights is torch.int32: must be float32"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert torch.equal(ROW, torch.zeros(8))
