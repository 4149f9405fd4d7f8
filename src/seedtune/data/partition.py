"""Examples dealt to clients: alike (iid), skewed by label (Dirichlet), or as the data come (natural).

Only indices are dealt; no example is copied, and nothing here knows what a client does with them.
"""

import heapq
from collections.abc import Sequence
from math import ceil

import numpy as np

from ..errors import DataError
from ..sections import PartitionConfig
from .examples import Example
from .keyed import generator, keyed_permutation, sub_key

__all__ = ["held_out", "keyed_permutation", "partition"]

MAX_DRAWS = 100


def partition(examples: Sequence[Example], config: PartitionConfig, key: int) -> tuple[np.ndarray, ...]:
    """The indices of each client's examples, int64 and ascending, for clients 0 .. num_clients - 1.

    Guarantees:
        * every example belongs to exactly one client;
        * the result depends on the examples' labels and groups, on `config` and on `key`, and on nothing else;
        * every client has at least `min_examples` examples.

    `iid`: a keyed permutation cut into parts whose sizes differ by at most one.
    `dirichlet`: each label's examples are divided by proportions drawn from a symmetric Dirichlet with `alpha`
    (Hsu et al. 2019, arXiv 1909.06335; text tasks: each group's). Where a client gets too few, all proportions are
    drawn again, at most 100 times, as NIID-Bench does (arXiv 2102.02079): so small `alpha` with large `min_examples`
    is a little more even than the distribution says.
    `natural`: by group. With fewer clients than groups, whole groups are dealt, the largest first, to the client that
    has the fewest examples; with more, the group with the most examples a client is divided further, by key. With as
    many, client i has the i-th group in sorted order.

    Raises:
        DataError: a client would have fewer than `min_examples` (the message names it), or the data have no groups.
    """
    if len(examples) < config.num_clients * config.min_examples:
        raise DataError(
            f"{len(examples)} training examples cannot give each of {config.num_clients} clients "
            f"{config.min_examples}: lower partition.num_clients or partition.min_examples"
        )
    deal = {"iid": _iid, "dirichlet": _dirichlet, "natural": _natural}[config.kind]
    clients = tuple(np.sort(indices) for indices in deal(examples, config, key))
    _check_sizes(clients, config)
    return clients


def held_out(
    clients: Sequence[np.ndarray], config: PartitionConfig, key: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """(the indices that each client trains on, those that it is evaluated on), int64 and ascending.

    Guarantees: the two parts of a client are what it was dealt, without overlap; `heldout_fraction` of it, rounded
    down, is held out, and one example at least is left to train on; a client's choice depends on the key and on its
    number alone.

    Raises:
        DataError: a fraction above 0, and yet no client is large enough to hold anything out.
    """
    parts = [_parted(indices, config.heldout_fraction, sub_key(key, str(i))) for i, indices in enumerate(clients)]
    if config.heldout_fraction and not any(len(held) for _, held in parts):
        raise DataError(_too_few_to_hold_out(max(map(len, clients)), config))
    return tuple(kept for kept, _ in parts), tuple(held for _, held in parts)


def _too_few_to_hold_out(largest: int, config: PartitionConfig) -> str:
    raised = f"raise it to {ceil(1000 / largest) / 1000:g} or more, " if largest > 1 else ""
    return (
        f"partition.heldout_fraction = {config.heldout_fraction:g}: the largest of {config.num_clients} clients has "
        f"{largest} training examples, of which that share, rounded down and with one left to train on, is none: "
        f"{raised}lower partition.num_clients, or set it to 0 to evaluate on test examples alone"
    )


def _parted(indices: np.ndarray, fraction: float, key: int) -> tuple[np.ndarray, np.ndarray]:
    count = min(int(fraction * len(indices) + 1e-9), len(indices) - 1)  # 0.29 * 100 is 28.999999999999996
    order = keyed_permutation(key, len(indices))
    return np.sort(indices[order[count:]]), np.sort(indices[order[:count]])


def _check_sizes(clients: tuple[np.ndarray, ...], config: PartitionConfig) -> None:
    sizes = [len(indices) for indices in clients]
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < config.min_examples:
        advice = "raise partition.alpha, " if config.kind == "dirichlet" else ""
        raise DataError(
            f"client {smallest} of {config.num_clients} has {sizes[smallest]} training examples under the "
            f"{config.kind} partition, but partition.min_examples is {config.min_examples}: {advice}lower "
            f"partition.num_clients or partition.min_examples"
        )


def _iid(examples: Sequence[Example], config: PartitionConfig, key: int) -> list[np.ndarray]:
    return np.array_split(keyed_permutation(key, len(examples)), config.num_clients)


def _dirichlet(examples: Sequence[Example], config: PartitionConfig, key: int) -> list[np.ndarray]:
    classes = _shuffled_classes(_class_of(examples), key)
    for draw in range(MAX_DRAWS):
        client_of = _drawn_clients(classes, config, sub_key(key, f"dirichlet/{draw}"))
        sizes = np.bincount(client_of, minlength=config.num_clients)
        if sizes.min() >= config.min_examples:
            break
    order = np.argsort(client_of, kind="stable")
    return np.split(np.concatenate(classes)[order], np.cumsum(sizes)[:-1])


def _class_of(examples: Sequence[Example]) -> np.ndarray:
    """What a Dirichlet partition skews: labels, or groups where there are no labels."""
    if examples[0].label is not None:
        return np.array([e.label for e in examples])
    _check_groups(examples, "skewed")
    return np.unique([e.group for e in examples], return_inverse=True)[1]


def _shuffled_classes(class_of: np.ndarray, key: int) -> list[np.ndarray]:
    order = keyed_permutation(key, len(class_of))
    by_class = order[np.argsort(class_of[order], kind="stable")]
    return np.split(by_class, np.cumsum(np.unique(class_of, return_counts=True)[1])[:-1])


def _drawn_clients(classes: list[np.ndarray], config: PartitionConfig, key: int) -> np.ndarray:
    """The client of each example, in the order of the concatenated classes."""
    rng = generator(key)
    clients = []
    for members in classes:
        shares = np.cumsum(rng.dirichlet(np.full(config.num_clients, config.alpha)))
        places = (np.arange(len(members)) + 0.5) / len(members)
        clients.append(np.minimum(np.searchsorted(shares, places), config.num_clients - 1))
    return np.concatenate(clients)


def _check_groups(examples: Sequence[Example], verb: str) -> None:
    if not any(e.group for e in examples):
        raise DataError(
            f"the training examples have no natural groups, so they cannot be {verb}: set partition.kind = 'iid', or "
            f"task.group_column where the data have such a column"
        )


def _natural(examples: Sequence[Example], config: PartitionConfig, key: int) -> list[np.ndarray]:
    _check_groups(examples, "dealt by group")
    names, group_of = np.unique([e.group for e in examples], return_inverse=True)
    order = np.argsort(group_of, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(group_of))[:-1])
    if len(names) > config.num_clients:
        return _merged(groups, config.num_clients)
    return _divided(groups, config.num_clients, key)


def _merged(groups: list[np.ndarray], num_clients: int) -> list[np.ndarray]:
    """Whole groups, the largest first, each to the client with the fewest examples so far."""
    heap = [(0, client) for client in range(num_clients)]
    dealt: list[list[np.ndarray]] = [[] for _ in heap]
    for group in sorted(groups, key=len, reverse=True):
        size, client = heap[0]
        heapq.heapreplace(heap, (size + len(group), client))
        dealt[client].append(group)
    return [np.concatenate(parts) for parts in dealt]


def _divided(groups: list[np.ndarray], num_clients: int, key: int) -> list[np.ndarray]:
    """One client a group, then one more for the group with the most examples a client, until all have some."""
    parts = [1] * len(groups)
    heap: list[tuple[float, int]] = [(-len(group), i) for i, group in enumerate(groups)]
    heapq.heapify(heap)
    for _ in range(num_clients - len(groups)):
        i = heap[0][1]
        parts[i] += 1
        heapq.heapreplace(heap, (-len(groups[i]) / parts[i], i))
    return [
        part
        for i, (group, count) in enumerate(zip(groups, parts, strict=True))
        for part in np.array_split(group[keyed_permutation(sub_key(key, f"group/{i}"), len(group))], count)
    ]
