import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.config import PartitionConfig
from seedtune.data.examples import Example
from seedtune.data.partition import partition
from seedtune.errors import DataError


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
