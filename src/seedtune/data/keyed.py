"""Choices that are pure functions of a key: permutations and draws of example indices.

Bits come from NumPy's Philox generator, created anew in every call, so nothing is shared and no global state is
touched. NumPy keeps the Philox bit stream, not the algorithms on top of it; `tests/data/test_keyed.py` pins both with
known answers, so a NumPy that draws differently fails there and not in a resumed run. Directions in parameter space
do not come from here: they have their own generator in `seedtune.zo.noise`.
"""

from hashlib import blake2b

import numpy as np


def generator(key: int) -> np.random.Generator:
    """A generator of one's own for `key` (0 <= key < 2**128)."""
    return np.random.Generator(np.random.Philox(key=key))


def sub_key(key: int, purpose: str) -> int:
    """A 64-bit key for one purpose below `key`: the hash of both.

    >>> sub_key(1, "train") == sub_key(1, "train"), sub_key(1, "train") == sub_key(1, "test")
    (True, False)
    """
    return int.from_bytes(blake2b(f"{key}/{purpose}".encode(), digest_size=8).digest(), "little")


def keyed_permutation(key: int, n: int) -> np.ndarray:
    """A permutation of 0..n-1, int64 [n], that depends on `key` and `n` alone.

    >>> keyed_permutation(7, 5).tolist() == keyed_permutation(7, 5).tolist()
    True
    """
    return generator(key).permutation(n)


def keyed_choice(key: int, n: int, count: int) -> np.ndarray:
    """`count` of 0..n-1 in ascending order, int64; all of them where `count` is 0 or not below `n`."""
    if count == 0 or count >= n:
        return np.arange(n)
    return np.sort(keyed_permutation(key, n)[:count])


def keyed_balanced_choice(key: int, classes: np.ndarray, count: int) -> np.ndarray:
    """`count` examples in ascending order, int64, equally many of each class; all of them where `count` is 0.

    `classes`: the class of each example, integers [n]. A class with too few gives all that it has, and the others
    share the rest; where `count` does not divide evenly, lower classes give one more.

    >>> classes = np.array([0] * 9 + [1] * 9 + [2])
    >>> np.bincount(classes[keyed_balanced_choice(7, classes, 8)]).tolist()
    [4, 3, 1]
    """
    if count == 0 or count >= len(classes):
        return np.arange(len(classes))
    drawn, turns = _drawn_by_class(key, classes)
    return np.sort(drawn[np.lexsort((classes[drawn], turns))[:count]])


def keyed_shots(key: int, classes: np.ndarray, count: int) -> np.ndarray:
    """`count` examples of each class, or all where it has fewer, in ascending order, int64.

    >>> classes = np.array([0] * 9 + [1] * 9 + [2])
    >>> np.bincount(classes[keyed_shots(7, classes, 2)]).tolist()
    [2, 2, 1]
    """
    drawn, turns = _drawn_by_class(key, classes)
    return np.sort(drawn[turns < count])


def _drawn_by_class(key: int, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(all examples class by class, each class in an order drawn by `key`; the place of each in its class), int64."""
    order = keyed_permutation(key, len(classes))
    drawn = order[np.argsort(classes[order], kind="stable")]
    return drawn, np.arange(len(classes)) - np.searchsorted(classes[drawn], classes[drawn])


def client_batch_indices(key: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of one local step: `batch_size` distinct indices below `num_examples`, int64, drawn by `key`.

    A client with no more examples than a batch uses all of them, in order. Cost: proportional to the batch, not to
    the number of examples.
    """
    if num_examples <= batch_size:
        return np.arange(num_examples)
    return generator(key).choice(num_examples, batch_size, replace=False)
