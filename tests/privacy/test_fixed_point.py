import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.errors import NotFinite
from seedtune.privacy.fixed_point import FixedPoint

codes = st.builds(FixedPoint, st.integers(0, 40), st.integers(1, 1000))


@given(codes, st.data())
def test_a_sum_within_the_range_is_as_precise_as_stated(code, data):
    size = data.draw(st.integers(1, min(code.num_parts, 8)))
    parts = np.array(data.draw(st.lists(st.floats(-code.limit, code.limit), min_size=size, max_size=size)))
    total = code.decoded(sum(code.encoded(parts[i : i + 1]) for i in range(size)))[0]
    rounding = abs(parts).max() * size * 2.0**-52  # of the float64 sum that it is compared with
    assert abs(total - parts.sum()) <= size * code.precision + rounding


@given(codes, st.sampled_from((-1, 1)))
def test_as_many_as_there_are_of_the_largest_do_not_overflow(code, sign):
    one = code.encoded(np.array([sign * code.limit]))
    total = code.decoded(one * np.uint64(code.num_parts))[0]
    assert total == pytest.approx(sign * code.limit * code.num_parts)


@pytest.mark.parametrize("value", [1.0001, -1.0001, np.inf, -np.inf, np.nan])
def test_beyond_the_range_is_an_error_that_says_what_to_do(value):
    code = FixedPoint(30, 5)
    with pytest.raises(NotFinite, match=r"30 fraction bits and 5 clients .* lies within 8.59e\+08: lower local"):
        code.encoded(np.array([0.0, code.limit * value]))


def test_whole_numbers_are_exact():
    counts = np.array([3.0, 0.0, 2.0**53])
    assert (FixedPoint(0, 100).decoded(FixedPoint(0, 100).encoded(counts)) == counts).all()
