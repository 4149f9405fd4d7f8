"""The Triton kernels give the bits of the reference, on whatever runs them."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from seedtune.zo.kernels import torch_ref, using
from seedtune.zo.noise import (
    Distribution,
    accumulate,
    accumulate_updates,
    perturb,
    perturb_both,
    perturb_rows,
    values,
)

ANSWERS = json.loads((Path(__file__).parents[1] / "known_answers" / "noise.json").read_text())
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEY = 2**64 - 0x123456789
# Whole granules and parts, words that carry, the last coordinates there are.
STRETCHES = ((0, 0), (0, 4_096), (117, 4_500), (2**39 - 3, 133), (2**62 - 4_224, 4_224), (2**62 - 1, 1))

ONE_BLOCK = ((117, 700), (2**33, 384))

with_each = pytest.mark.parametrize(("dtype", "distribution"), list(product(DTYPES, Distribution)))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """But for what a NaN carries."""
    assert found.dtype == expected.dtype
    known, found = ~expected.isnan(), found.cpu()
    assert torch.equal(found.isnan(), ~known)
    assert torch.equal(bits(found)[known], bits(expected)[known])


def weights_like(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Small numbers, some of which float16 holds as subnormal ones, zeros of both signs, and what is not finite."""
    weights = torch_ref.direction(99, 7, count, True, torch.device("cpu")) * 0.05
    weights[::5] *= 1e-5
    for n, special in enumerate((0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65_504.0, 3e38, 1e-40, -6e-8)):
        weights[n::101] = special
    return weights.to(dtype)


def some(cases: list, device: torch.device, step: int) -> list:
    """All of them on a GPU; the interpreter takes a tenth of a second for each."""
    return cases if device.type == "cuda" else cases[::step]


def copies(device: torch.device, weights: torch.Tensor, num: int = 1) -> list[torch.Tensor]:
    """Of what the reference moves, and as many for the kernel."""
    return [weights.clone() for _ in range(num)] + [weights.to(device, copy=True) for _ in range(num)]


def test_values_are_the_known_ones(device):
    for known in some(ANSWERS["values"], device, 3):
        with using("triton"):
            z = values(known["key"], known["start"], len(known["bits"]), known["distribution"], device)
        assert [pattern & 0xFFFFFFFF for pattern in bits(z).tolist()] == known["bits"], known


def test_roundings_are_the_known_ones(device):
    for known in some(ANSWERS["roundings"], device, 21):
        exact = torch.from_numpy(np.array(known["float32"], np.uint32).view(np.float32))
        weights = torch.zeros(len(exact), dtype=getattr(torch, known["dtype"]), device=device)
        signs = torch_ref.direction(7, known["start"], len(exact), False, torch.device("cpu"))
        for n, x in some(list(enumerate((exact * signs).tolist())), device, 3):
            with using("triton"):
                accumulate(weights[n : n + 1], known["start"] + n, [7], [x], Distribution.RADEMACHER, known["key"])
        found = [pattern & 0xFFFF for pattern in bits(weights).tolist()]
        assert some(found, device, 3) == some(known["bits"], device, 3), known


@pytest.mark.parametrize(("start", "count"), STRETCHES)
@pytest.mark.parametrize("distribution", Distribution)
def test_values(device, distribution, start, count):
    with using("triton"):
        found = values(KEY, start, count, distribution, device)
    with using("torch"):
        assert_same_bits(found, values(KEY, start, count, distribution))


@with_each
@pytest.mark.parametrize(("mu", "start", "count"), [(1e-3, *ONE_BLOCK[0]), (3e38, *ONE_BLOCK[1])])
def test_perturb(device, dtype, distribution, mu, start, count):
    weights = weights_like(count, dtype)
    slow, slow_below, fast, fast_below = copies(device, torch.full_like(weights, 7.0), 2)
    held = weights.to(device)
    with using("torch"):
        perturb_both(slow, slow_below, weights, KEY, start, mu, distribution)
    with using("triton"):
        perturb(fast, held, KEY, start, mu, distribution)
        assert_same_bits(fast, slow)
        perturb_both(fast, fast_below, held, KEY, start, mu, distribution)
    assert_same_bits(fast, slow)
    assert_same_bits(fast_below, slow_below)
    assert_same_bits(held, weights)


@pytest.mark.parametrize(("width", "start"), [(256, 2**32), (33, 5)])
@pytest.mark.parametrize(("dtype", "distribution"), list(zip(DTYPES, [*Distribution, "gaussian"], strict=True)))
def test_perturb_rows(device, dtype, distribution, width, start):
    table, rows = weights_like(13 * width, dtype).view(13, width), torch.tensor([12, 3, 3])
    slow, fast = copies(device, torch.full((3, width), 7.0, dtype=dtype))
    with using("torch"):
        perturb_rows(slow, table, rows, KEY, start, -1e-3, distribution)
    with using("triton"):
        perturb_rows(fast, table.to(device), rows.to(device), KEY, start, -1e-3, distribution)
    assert_same_bits(fast, slow)


def test_a_row_outside_the_table_is_nan_and_the_others_are_right(device):
    from seedtune.zo.kernels import triton_cuda

    table, rows = torch.ones(5, 70, dtype=torch.bfloat16), torch.tensor([4, 5, -1, 2**40, 0])
    slow, fast = copies(device, torch.zeros(5, 70, dtype=torch.bfloat16))
    torch_ref.perturb_rows(slow, table, rows, KEY, 0, 1e-3, True)
    triton_cuda.perturb_rows(fast, table.to(device), rows.to(device), KEY, 0, 1e-3, True)
    assert fast.isnan().all(1).tolist() == [False, True, True, True, False]
    assert_same_bits(fast, slow)


@with_each
@pytest.mark.parametrize(("start", "count"), ONE_BLOCK)
def test_accumulate(device, dtype, distribution, start, count):
    """Several updates, one of them without keys."""
    slow, fast = copies(device, weights_like(count, dtype))
    for name, moved in (("torch", slow), ("triton", fast)):
        with using(name):
            accumulate_updates(moved, start, [11, KEY, 0], [1e-3, 0.0, -0.3], [2, 2, 3], [3, 1, KEY], distribution)
    assert_same_bits(fast, slow)


def test_blocks_meet(device):
    slow, fast = copies(device, weights_like(4_500, torch.bfloat16))
    for name, moved in (("torch", slow), ("triton", fast)):
        with using(name):
            accumulate(moved, 117, [KEY], [1e-3], Distribution.RADEMACHER, 5)
    assert_same_bits(fast, slow)


def test_no_keys_and_no_coordinates(device):
    weights = weights_like(300, torch.bfloat16)
    moved, empty = weights.to(device, copy=True), torch.empty(0, dtype=torch.bfloat16, device=device)
    with using("triton"):
        accumulate_updates(moved, 0, [], [], [], [], Distribution.GAUSSIAN)
        accumulate(empty, 2**62, [1], [1.0], Distribution.GAUSSIAN, 0)
        perturb(empty, empty.clone(), 1, 2**62, 1e-3, Distribution.GAUSSIAN)
        no_rows = torch.empty(0, dtype=torch.int64, device=device)
        perturb_rows(empty.view(0, 3), moved[:3].view(1, 3), no_rows, 1, 0, 1e-3, Distribution.GAUSSIAN)
    assert_same_bits(moved, weights)


def test_a_large_tensor(gpu):
    """Larger than a 32-bit index, in a place where coordinates need more than 32 bits."""
    count = 2**31 + 4_096
    if torch.cuda.mem_get_info()[0] < 2 * count + 2**30:
        pytest.skip("needs 6 GB of GPU memory")
    weights = torch.zeros(count, dtype=torch.float16, device=gpu)
    accumulate(weights, 2**34, [KEY], [1.0], Distribution.GAUSSIAN, 3)
    for first in (0, 2**31 - 2_048, count - 4_000):
        expected = torch.zeros(4_000, dtype=torch.float16)
        accumulate(expected, 2**34 + first, [KEY], [1.0], Distribution.GAUSSIAN, 3)
        assert_same_bits(weights[first : first + 4_000], expected)
