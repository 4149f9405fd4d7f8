"""Coefficients of two blocks against a slow reference, their bits, and splits that cannot be."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.space import ALL_TENSORS, Space, TensorSpec
from seedtune.zo.expansion import Split, moves, updates_of

NAN = float("nan")
NESTED = Split("nested", 2, 3, "none", 1.0, "5")
SPLITS = {
    "nested": NESTED,
    "nested with a rate": replace(NESTED, rate_ratio=0.3),
    "leave-one-out": replace(NESTED, baseline="leave-one-out", rate_ratio=0.3),
    "clean-prefix": replace(NESTED, reading="clean-prefix", rate_ratio=0.3),
    "one direction": Split("nested", 1, 1, "none", 1.0, "5"),
}
every_split = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)


def slow(split: Split, step: list[float]) -> tuple[dict[int, float], dict[int, float]]:
    """Each block's coefficients times S by the number of the key in its step, written out term by term."""
    first, second, ratio = {}, {}, split.rate_ratio
    p1, p2 = split.num_prefix, split.num_suffix
    if split.reading == "clean-prefix":
        first = {p: (p1 + p2) / p1 * step[p] for p in range(p1)}
        return first, {p1 + q: ratio * (p1 + p2) / p2 * step[p1 + q] for q in range(p2)}
    for p in range(p1):
        g = step[p * p2 : (p + 1) * p2]
        first[p * p2] = sum(g)
        for q in range(p2):
            others = [g[other] for other in range(p2) if other != q]
            baseline = math.fsum(others) / len(others) if split.baseline == "leave-one-out" else 0.0
            second[p * p2 + q] = ratio * (g[q] - baseline)
    return first, second


def some(split: Split, *shape: int) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((*shape, split.num_scalars)).astype(np.float32)


@every_split
def test_coefficients_are_the_slow_ones(split):
    scalars = some(split, 2, 3)
    keys = list(range(100, 100 + scalars.size))
    found = moves(split, keys, scalars)
    assert [move.tensors for move in found] == [0b101, ~0b101]
    for block, move in enumerate(found):
        expected_keys, expected = [], []
        for number, step in enumerate(scalars.reshape(-1, split.num_scalars).tolist()):
            for place, coefficient in slow(split, step)[block].items():
                expected_keys.append(100 + number * split.num_scalars + place)
                expected.append(coefficient)
        assert list(move.keys) == expected_keys
        np.testing.assert_allclose(move.coefficients, expected, rtol=1e-12, atol=1e-12)


def test_without_a_split_scalars_are_coefficients_of_all_tensors():
    scalars = np.array([[1.5, NAN], [-2.0, 0.25]], np.float32)
    (move,) = moves(None, [4, 5, 6, 7], scalars)
    assert (move.tensors, move.keys) == (ALL_TENSORS, (4, 5, 6, 7))
    assert move.coefficients.dtype == np.float64 and move.coefficients.tobytes() == np.float64(scalars).tobytes()


@every_split
def test_a_mean_of_scalars_is_a_mean_of_coefficients(split):
    one, other = some(split, 4), some(split, 4)[::-1]
    keys = range(one.size)
    mean = moves(split, keys, 0.25 * one.astype(np.float64) + 0.75 * other.astype(np.float64))
    for together, first, second in zip(mean, moves(split, keys, one), moves(split, keys, other), strict=True):
        np.testing.assert_allclose(
            together.coefficients, 0.25 * first.coefficients + 0.75 * second.coefficients, atol=1e-12
        )


@every_split
def test_a_skipped_step_leaves_the_others_alone(split):
    scalars = some(split, 3)
    scalars[1] = NAN
    kept = moves(split, range(scalars.size), scalars)
    for move in kept:
        per_step = move.coefficients.reshape(3, -1)
        assert np.isnan(per_step[1]).all() and np.isfinite(per_step[[0, 2]]).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["none", "leave-one-out"]), st.integers(2, 40), st.integers(0, 10_000))
def test_bits_do_not_depend_on_the_layout_in_memory(baseline, num_suffix, seed):
    """A run computes a step at a time, a replay a round at once."""
    split = Split("nested", 2, num_suffix, baseline, 0.7, "1")
    steps = np.random.default_rng(seed).standard_cauchy((2, split.num_scalars)).astype(np.float32)
    keys = range(steps.size)
    together, columns = moves(split, keys, steps), moves(split, keys, np.asfortranarray(steps))
    single = [moves(split, keys[: split.num_scalars], step) for step in steps]
    for block, move in enumerate(together):
        bits = move.coefficients.tobytes()
        assert columns[block].coefficients.tobytes() == bits
        assert b"".join(each[block].coefficients.tobytes() for each in single) == bits


def test_updates_hold_float32_and_what_is_beyond_it_is_infinite():
    first, second = updates_of(replace(NESTED, num_prefix=1, num_suffix=2), [8, 9], np.array([3e38, 2e38]), 77)
    assert first.keys == (8,) and first.coefficients.tolist() == [np.inf] and first.tensors == 0b101
    assert second.keys == (8, 9) and np.isfinite(second.coefficients).all() and second.tensors == ~0b101
    assert {first.rounding_key, second.rounding_key} == {77} and second.coefficients.dtype == np.float32


@pytest.mark.parametrize(
    "change, name",
    [
        ({"reading": "both"}, "reading"), ({"reading": ["nested"]}, "reading"), ({"num_prefix": 0}, "num_prefix"),
        ({"num_prefix": 2.0}, "num_prefix"), ({"num_prefix": True}, "num_prefix"), ({"num_suffix": -1}, "num_suffix"),
        ({"num_suffix": 100_001}, "num_suffix"), ({"num_suffix": "3"}, "num_suffix"),
        ({"baseline": "mean"}, "baseline"),
        ({"baseline": "leave-one-out", "num_suffix": 1}, "baseline"),
        ({"baseline": "leave-one-out", "reading": "clean-prefix"}, "baseline"),
        ({"rate_ratio": 0.0}, "rate_ratio"), ({"rate_ratio": NAN}, "rate_ratio"), ({"rate_ratio": 1}, "rate_ratio"),
        ({"rate_ratio": 2e6}, "rate_ratio"), ({"block1": "0"}, "block1"), ({"block1": ""}, "block1"),
        ({"block1": "0x3"}, "block1"), ({"block1": "A"}, "block1"), ({"block1": 3}, "block1"),
        ({"block1": "3\n"}, "block1"), ({"block1": None}, "block1"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be(change, name):
    with pytest.raises(ValueError) as caught:
        Split(**{**asdict(NESTED), **change})
    assert str(caught.value) == f"split.{name} = {change[name]!r}"


def test_both_blocks_have_tensors():
    space = Space(tuple(TensorSpec(f"t{i}", (2,), "float32", 100 * i) for i in range(3)))
    fits = {mask: replace(NESTED, block1=mask).fits(space) for mask in ("1", "4", "6", "7", "8", "f1")}
    assert fits == {"1": True, "4": True, "6": True, "7": False, "8": False, "f1": False}
    assert [spec.name for spec in space.part(int("5", 16)).tensors] == ["t0", "t2"]
    assert [spec.name for spec in space.part(~int("5", 16)).tensors] == ["t1"]
    assert space.part(ALL_TENSORS) is space
