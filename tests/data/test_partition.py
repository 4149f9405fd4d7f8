import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from seedtune.data.examples import Example
from seedtune.data.partition import held_out, partition
from seedtune.errors import DataError
from seedtune.sections import PartitionConfig


def examples(num: int, labels: int | None = 4, groups: int = 0) -> list[Example]:
    return [
        Example("", str(i), "", "", i % labels if labels else None, f"group{i * i % groups}" if groups else "")
        for i in range(num)
    ]


def deal(data, kind, num_clients, key=1, **more):
    return partition(data, PartitionConfig(kind=kind, num_clients=num_clients, **more), key)


@given(
    st.sampled_from(["iid", "dirichlet", "natural"]), st.integers(1, 12), st.integers(0, 2**64 - 1), st.integers(1, 9)
)
def test_every_example_belongs_to_exactly_one_client(kind, num_clients, key, groups):
    data = examples(300, groups=groups)
    clients = deal(data, kind, num_clients, key, alpha=1.0)
    assert len(clients) == num_clients
    assert sorted(np.concatenate(clients).tolist()) == list(range(300))
    assert all((np.diff(indices) > 0).all() and indices.dtype == np.int64 for indices in clients)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "natural"])
def test_the_key_decides_and_nothing_else(kind):
    data = examples(400, groups=3)
    first = deal(data, kind, 7)
    np.random.seed(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, deal(data, kind, 7), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, deal(data, kind, 7, key=2), strict=True))


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(indices) for indices in deal(examples(100), "iid", 7)]
    assert max(sizes) - min(sizes) == 1


def label_skew(clients, data) -> float:
    """Mean share of the commonest label of a client."""
    shares = [np.bincount([data[i].label for i in indices]).max() / len(indices) for indices in clients]
    return float(np.mean(shares))


def test_a_smaller_alpha_is_less_alike():
    data = examples(4000)
    skews = [label_skew(deal(data, "dirichlet", 10, alpha=alpha), data) for alpha in (0.1, 1.0, 1e5)]
    assert skews[0] > skews[1] > skews[2] and skews[2] == pytest.approx(0.25, abs=0.02)


def test_dirichlet_draws_again_until_every_client_has_enough():
    clients = deal(examples(200), "dirichlet", 10, alpha=0.3, min_examples=5)
    assert min(len(indices) for indices in clients) >= 5


def test_dirichlet_skews_groups_where_there_are_no_labels():
    data = examples(1000, labels=None, groups=5)
    clients = deal(data, "dirichlet", 4, alpha=0.05)
    commonest = [max(np.unique([data[i].group for i in c], return_counts=True)[1]) / len(c) for c in clients]
    assert np.mean(commonest) > 0.5


def test_natural_gives_each_client_its_group_in_order():
    data = examples(60, groups=5)
    names = sorted({e.group for e in data})
    clients = deal(data, "natural", len(names))
    assert [{data[i].group for i in indices} for indices in clients] == [{name} for name in names]


def test_fewer_clients_than_groups_get_whole_groups_of_like_size():
    data = [Example("", "", "", "", 0, name) for name, num in zip("abcdef", (9, 1, 5, 4, 3, 8), strict=True)
            for _ in range(num)]  # fmt: skip
    clients = deal(data, "natural", 3)
    owners = [{data[i].group for i in indices} for indices in clients]
    assert sum(len(groups) for groups in owners) == 6
    assert [len(indices) for indices in clients] == [10, 11, 9] or max(map(len, clients)) <= 11


def test_more_clients_than_groups_divide_the_largest():
    data = [Example("", "", "", "", 0, name) for name, num in (("a", 90), ("b", 10)) for _ in range(num)]
    clients = deal(data, "natural", 10)
    owners = [{data[i].group for i in indices} for indices in clients]
    assert all(len(groups) == 1 for groups in owners)
    assert owners.count({"b"}) == 1 and {len(indices) for indices in clients} == {10}


def test_too_few_examples_are_an_error():
    with pytest.raises(DataError) as error:
        deal(examples(5), "iid", 3, min_examples=2)
    assert str(error.value) == (
        "5 training examples cannot give each of 3 clients 2: lower partition.num_clients or partition.min_examples"
    )


def test_an_empty_client_is_named():
    with pytest.raises(DataError) as error:
        deal(examples(60), "dirichlet", 50, alpha=0.01)
    assert str(error.value).endswith(
        " of 50 has 0 training examples under the dirichlet partition, but partition.min_examples is 1: raise "
        "partition.alpha, lower partition.num_clients or partition.min_examples"
    )
    with pytest.raises(DataError, match=r"^client 1 of 2 has 1 training examples under the natural partition, but"):
        data = [Example("", "", "", "", 0, name) for name in "aaaab"]
        deal(data, "natural", 2, min_examples=2)


def test_data_without_groups_are_pointed_to_iid():
    advice = "set partition.kind = 'iid', or task.group_column where the data have such a column"
    with pytest.raises(DataError) as error:
        deal(examples(10), "natural", 2)
    assert (
        str(error.value) == f"the training examples have no natural groups, so they cannot be dealt by group: {advice}"
    )
    with pytest.raises(DataError) as error:
        deal(examples(10, labels=None), "dirichlet", 2)
    assert str(error.value) == f"the training examples have no natural groups, so they cannot be skewed: {advice}"


def test_ten_thousand_clients():
    assert len(deal(examples(20_000, groups=300), "natural", 10_000)) == 10_000
    assert len(deal(examples(20_000), "iid", 10_000)) == 10_000


fractions = st.floats(0, 1, exclude_max=True)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), fractions, st.integers(0, 2**64 - 1))
def test_held_out_examples_are_a_clients_own_and_never_trained_on(sizes, fraction, key):
    clients = np.split(np.arange(sum(sizes)) * 3 + 1, np.cumsum(sizes)[:-1])
    assume(fraction == 0 or (max(sizes) > 1 and fraction * max(sizes) >= 1))
    kept, held = held_out(clients, PartitionConfig(heldout_fraction=fraction), key)
    assert len(kept) == len(held) == len(sizes)
    for dealt, train, test in zip(clients, kept, held, strict=True):
        assert sorted([*train, *test]) == dealt.tolist() and train.dtype == test.dtype == np.int64
        assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
        assert len(train) >= 1 and len(test) <= fraction * len(dealt) + 1e-6
        assert len(train) == 1 or len(test) > fraction * len(dealt) - 1


@pytest.mark.parametrize("fraction, count", [(0.0, 0), (0.1, 10), (0.29, 29), (0.57, 57), (0.999, 99), (0.01, 1)])
def test_a_share_is_held_out_rounded_down(fraction, count):
    """0.29 * 100 is 28.999999999999996 in floating point."""
    kept, held = held_out([np.arange(100)], PartitionConfig(heldout_fraction=fraction), 1)
    assert (len(kept[0]), len(held[0])) == (100 - count, count)


@pytest.mark.parametrize(
    "sizes, fraction, advice",
    [([3, 9, 2], 0.1, "raise it to 0.112 or more, lower"), ([2, 2], 0.49, "raise it to 0.5 or more, lower"),
     ([1, 1], 0.9, "lower")],
)  # fmt: skip
def test_a_share_that_holds_nothing_out_is_refused(sizes, fraction, advice):
    """Who asks for held-out examples would else be evaluated on others."""
    clients, config = [np.arange(size) for size in sizes], PartitionConfig(num_clients=3, heldout_fraction=fraction)
    with pytest.raises(DataError) as error:
        held_out(clients, config, 1)
    assert str(error.value) == (
        f"partition.heldout_fraction = {fraction:g}: the largest of 3 clients has {max(sizes)} training examples, of "
        f"which that share, rounded down and with one left to train on, is none: {advice} partition.num_clients, or "
        f"set it to 0 to evaluate on test examples alone"
    )


def test_what_is_held_out_depends_on_the_key_and_the_clients_number_alone():
    config, clients = PartitionConfig(heldout_fraction=0.5), [np.arange(10), np.arange(10, 30), np.arange(10)]
    _, held = held_out(clients, config, 1)
    np.random.seed(0)
    _, fewer = held_out(clients[:2], config, 1)
    _, other = held_out(clients, config, 2)
    assert [one.tolist() for one in fewer] == [one.tolist() for one in held[:2]]
    assert held[0].tolist() != held[2].tolist() and held[0].tolist() != other[0].tolist()
