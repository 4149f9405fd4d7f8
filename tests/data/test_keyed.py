import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.data.keyed import client_batch_indices, keyed_choice, keyed_permutation, sub_key

# Made with NumPy 2.4 by the calls themselves; a NumPy that answers otherwise must not be used to resume runs.
KNOWN_PERMUTATIONS = {
    0: [0, 7, 8, 6, 9, 5, 1, 3, 2, 4],
    1: [6, 0, 7, 9, 4, 1, 8, 5, 2, 3],
    2**64 - 1: [8, 3, 6, 2, 0, 1, 4, 9, 7, 5],
}


def test_known_answers_of_permutation():
    for key, expected in KNOWN_PERMUTATIONS.items():
        assert keyed_permutation(key, 10).tolist() == expected


def test_known_answers_of_batch_and_sub_key():
    assert client_batch_indices(5, 1000, 8).tolist() == [56, 957, 52, 205, 588, 207, 443, 729]
    assert sub_key(5, "train") == 15054978170708618124


@given(st.integers(0, 2**64 - 1), st.integers(0, 200))
def test_a_permutation_has_every_index_once_and_ignores_global_state(key, n):
    first = keyed_permutation(key, n)
    np.random.random(3)
    assert np.array_equal(keyed_permutation(key, n), first)
    assert sorted(first) == list(range(n)) and first.dtype == np.int64


@given(st.integers(0, 2**64 - 1), st.integers(1, 300), st.integers(1, 50))
def test_a_batch_has_distinct_indices_and_at_most_all_examples(key, num_examples, batch_size):
    indices = client_batch_indices(key, num_examples, batch_size)
    assert len(set(indices.tolist())) == len(indices) == min(num_examples, batch_size)
    assert indices.min() >= 0 and indices.max() < num_examples


@pytest.mark.parametrize("count", [0, 7, 9])
def test_a_choice_of_all_is_all(count):
    assert keyed_choice(3, 7, count).tolist() == list(range(7))


def test_a_choice_is_sorted_and_differs_by_key():
    assert keyed_choice(3, 100, 10).tolist() == sorted(keyed_choice(3, 100, 10).tolist())
    assert keyed_choice(3, 100, 10).tolist() != keyed_choice(4, 100, 10).tolist()
