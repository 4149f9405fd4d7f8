"""Distances from the mean update equal a dense float64 reference, from scalars as from weights."""

import numpy as np
import pytest
import torch
from small_federation import recipe, site

from seedtune.fed import distances
from seedtune.fed.client import local_round, step_keys
from seedtune.fed.distances import from_scalars, from_weights
from seedtune.fed.messages import Order, unpack_weights
from seedtune.space import Space, TensorSpec
from seedtune.zo.noise import Distribution, derive_key, values

NAN = float("nan")
SHAPES = {"a": (1,), "b": (3, 1_000), "c": (0, 4), "d": (5_003,), "e": ()}
CHUNK = 2_048  # "b" and "d" are no multiples of it


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(distances, "_CHUNK_VALUES", 1)


def some_space() -> Space:
    return Space(tuple(TensorSpec(name, s, "float32", 2**16 * i + i) for i, (name, s) in enumerate(SHAPES.items())))


def some_updates(num_clients: int, num_keys: int, keys: str, size: float = 1.0):
    """Each client's own update, and of the second client's steps the first was skipped."""
    updates = []
    for client in range(num_clients):
        sender = client if keys == "own" else None
        drawn = np.random.default_rng([num_keys, client]).standard_normal(num_keys) * size
        own = tuple(derive_key(7, "direction", client=sender, step=k) for k in range(num_keys))
        updates.append((own, drawn.astype(np.float32)))
    if num_clients > 1:
        updates[1][1][0] = NAN
    return updates


def dense(space, updates, distribution) -> np.ndarray:
    """The definition, word by word, with a whole update of each client in float64."""
    total = np.zeros(len(updates))
    for spec in space.tensors:
        deltas = np.zeros((len(updates), spec.num_elements))
        for client, (keys, coefficients) in enumerate(updates):
            for key, coefficient in zip(keys, coefficients.astype(np.float64), strict=True):
                if not np.isnan(coefficient):
                    z = values(key, spec.start, spec.num_elements, distribution).numpy()
                    deltas[client] += coefficient * z.astype(np.float64)
        total += np.linalg.norm(deltas - deltas.mean(0), axis=1)
    return total


@pytest.mark.parametrize("keys, error", [("own", 1e-6), ("shared", 1e-12)])
@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("num_clients, num_keys", [(2, 1), (3, 5), (17, 2), (2, 37)])
def test_distances_from_scalars_are_those_of_dense_updates(keys, error, distribution, num_clients, num_keys):
    space, updates = some_space(), some_updates(num_clients, num_keys, keys)
    found = from_scalars(space, updates, distribution)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, dense(space, updates, distribution), rtol=error)


def test_two_clients_by_hand():
    """One direction of signs, 9 coordinates: updates 3 z and -1 z lie 2 z from their mean, whose norm is 2 * 3."""
    space = Space((TensorSpec("w", (9,), "float32", 0),))
    updates = [((5,), np.array([3.0])), ((5,), np.array([-1.0]))]
    np.testing.assert_array_equal(from_scalars(space, updates, Distribution.RADEMACHER), [6.0, 6.0])


@pytest.mark.parametrize("keys", ["own", "shared"])
def test_distances_do_not_depend_on_the_chunks(keys, monkeypatch):
    space, updates = some_space(), some_updates(3, 4, keys)
    small = from_scalars(space, updates, Distribution.GAUSSIAN)
    monkeypatch.undo()
    np.testing.assert_allclose(from_scalars(space, updates, Distribution.GAUSSIAN), small, rtol=1e-12)


def generated(monkeypatch, updates) -> int:
    """How many values of directions are made for these updates."""
    made = []
    for name in ("values", "accumulate"):
        whole = getattr(distances.noise, name)

        def counted(*args, _name=name, _whole=whole, **kwargs):
            made.append(args[2] if _name == "values" else len(args[0]) * len(args[2]))
            return _whole(*args, **kwargs)

        monkeypatch.setattr(distances.noise, name, counted)
    from_scalars(some_space(), updates, Distribution.RADEMACHER)
    return sum(made)


@pytest.mark.parametrize("keys, times", [("own", 4 * 3), ("shared", 3)])
def test_each_direction_is_made_once(keys, times, monkeypatch):
    assert generated(monkeypatch, some_updates(4, 3, keys)) == times * some_space().num_parameters


@pytest.mark.parametrize("keys", ["own", "shared"])
@pytest.mark.parametrize("size", [1e-43, 1e-20, 1e25, 1e38])
def test_tiny_and_huge_updates_keep_their_digits(keys, size):
    """Float32 sums of the smallest would vanish, of the largest overflow."""
    space, updates = some_space(), some_updates(3, 4, keys)
    unit = from_scalars(space, updates, Distribution.RADEMACHER)
    sized = [(own, coefficients.astype(np.float64) * size) for own, coefficients in updates]
    np.testing.assert_allclose(from_scalars(space, sized, Distribution.RADEMACHER) / size, unit, rtol=1e-5)


@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("keys", ["own", "shared"])
def test_two_clients_are_equally_far_from_their_mean_to_the_bit(keys, distribution):
    first, second = from_scalars(some_space(), some_updates(2, 30, keys), distribution)
    assert first == second > 0


def test_clients_that_agree_are_no_distance_apart():
    updates = [((1, 2, 3), np.array([0.1, NAN, 1 / 3], np.float32))] * 7
    np.testing.assert_array_equal(from_scalars(some_space(), updates, Distribution.GAUSSIAN), np.zeros(7))


@pytest.mark.parametrize("keys", ["own", "shared"])
def test_a_client_whose_steps_were_all_skipped_moved_nothing(keys):
    updates = some_updates(3, 2, keys)
    skipped = [updates[0], (updates[1][0], np.full(2, NAN, np.float32)), updates[2]]
    found = from_scalars(some_space(), skipped, Distribution.RADEMACHER)
    np.testing.assert_allclose(found, dense(some_space(), skipped, Distribution.RADEMACHER), rtol=1e-6)
    nobody = [(own, np.full(2, NAN, np.float32)) for own, _ in updates]
    np.testing.assert_array_equal(from_scalars(some_space(), nobody, Distribution.RADEMACHER), np.zeros(3))


@pytest.mark.parametrize("num_clients", [0, 1])
def test_fewer_than_two_clients_are_no_distance_apart(num_clients):
    updates = some_updates(num_clients, 2, "own")
    np.testing.assert_array_equal(from_scalars(some_space(), updates, Distribution.GAUSSIAN), np.zeros(num_clients))
    weights = [{"w": torch.tensor([0.1, 0.7])}] * num_clients
    np.testing.assert_array_equal(from_weights(weights), np.zeros(num_clients))


def test_coefficients_that_are_no_update_are_refused():
    with pytest.raises(ValueError, match=r"^update 1 of 2 keys has coefficients \[1\]: one a key$"):
        from_scalars(some_space(), [((1, 2), np.ones(2)), ((1, 2), np.ones(1))], Distribution.GAUSSIAN)
    message = "^update 0 has an infinite coefficient: must be finite, or NaN for a skipped step$"
    with pytest.raises(ValueError, match=message):
        from_scalars(some_space(), [((1,), np.array([-np.inf]))], Distribution.GAUSSIAN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distances_from_weights_are_the_definition(dtype):
    rng = np.random.default_rng(0)
    clients = [{n: torch.from_numpy(rng.standard_normal(s)).to(dtype) for n, s in SHAPES.items()} for _ in range(3)]
    expected = 0.0
    for name in SHAPES:
        stacked = np.stack([weights[name].double().numpy().reshape(-1) for weights in clients])
        expected += np.linalg.norm(stacked - stacked.mean(0), axis=1)
    np.testing.assert_allclose(from_weights(clients), expected, rtol=1e-13)


class Unpacked:
    """Weights made anew from messages, one client's at a time."""

    def __init__(self, messages, space):
        self.messages, self.space = messages, space

    def __len__(self):
        return len(self.messages)

    def __iter__(self):
        return (unpack_weights(message, self.space) for message in self.messages)


@pytest.mark.parametrize("steps", [1, 4])
def test_scalars_tell_the_same_distances_as_weights(steps):
    """Clients of one round that send weights, and their scalars computed again from where the steps began."""
    order = lambda at, client: Order(0, client, at.replica.digest, rate=0.01)  # noqa: E731
    by_weights = site(recipe(federation={"upload": "weights", "local_steps": steps}))
    by_scalars = site(recipe(federation={"upload": "scalars", "local_steps": steps}))
    space = by_weights.perturber.space

    messages = [local_round(by_weights, order(by_weights, client)).weights for client in range(4)]
    updates = []
    for client in range(4):
        keys = [key for step in range(steps) for key in step_keys(by_scalars, order(by_scalars, client), step)]
        scalars = local_round(by_scalars, order(by_scalars, client)).scalars.reshape(-1)
        updates.append((keys, -0.01 / 2 * scalars.astype(np.float64)))

    found = from_scalars(space, updates, by_scalars.header.distribution)
    np.testing.assert_allclose(found, from_weights(Unpacked(messages, space)), rtol=1e-4)
    assert (found > 1e-4).all()
