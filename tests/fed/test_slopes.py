"""What a client measures of its step, against the exact gradient and Hessian of a quadratic."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_federation import recipe, site

from seedtune.fed.client import local_round, step_keys
from seedtune.fed.messages import Order, decode_reply, encode_reply
from seedtune.fed.slopes import LOST_BEND, along, slopes_of
from seedtune.space import copied
from seedtune.zo import noise
from seedtune.zo.expansion import Split, updates_of
from seedtune.zo.update import apply

RATE = 0.05
AUTO = {"local": {"learning_rate": "auto", "num_directions": 4}, "auto": {"learning_rate": RATE}}


def moved(at, updates):
    """How far a step's updates move each tensor."""
    weights = copied(at.replica.weights)
    apply(at.perturber.space, weights, updates, at.header.distribution)
    return {name: (tensor - at.replica.weights[name]).double() for name, tensor in weights.items()}


def exact(at, batch, step):
    """(-grad . D, D^T H D) of the mean squared error of a linear layer, a quadratic."""
    inputs, targets = (part.double() for part in batch)
    weight, bias = (at.replica.weights[name].double() for name in ("weight", "bias"))
    residual, along = inputs @ weight.T + bias - targets, inputs @ step["weight"].T + step["bias"]
    return -float((2 * residual * along).mean()), float((2 * along**2).mean())


def order(at, round_=0, ratio=None):
    return Order(round_, 1, at.replica.digest, RATE, rate_ratio=ratio)


def updates(at, scalars, split=None):
    keys = step_keys(at, order(at), 0)
    return updates_of(split, keys, -RATE / len(keys) * np.array(scalars), 0)


def test_a_step_of_the_whole_model_is_measured_exactly():
    at, batch = site(recipe(**AUTO)), site(recipe(**AUTO)).batch(1, 17)
    step = updates(at, [3.0, -1.0, 0.5, 2.0])
    weights = copied(at.replica.weights)
    at.perturber.bind(weights)

    measured = along(at, order(at), batch, weights, step)

    fresh = at.batch(1, noise.derive_key(at.header.seed, "fresh batch", round=0, client=1))
    gain, bend = exact(at, batch, moved(at, step))
    unseen, unseen_bend = exact(at, fresh, moved(at, step))
    found = np.array(measured.slopes) * [RATE, RATE**2, RATE]
    assert found == pytest.approx([gain, bend, unseen - unseen_bend / 2 + bend / 2], rel=2e-3)
    assert measured.num_forwards == 5 and measured.num_flops > 0


def test_two_halves_make_the_step():
    at = site(recipe(**AUTO))
    step, weights = updates(at, [3.0, -1.0, 0.5, 2.0]), copied(at.replica.weights)
    at.perturber.bind(weights)
    along(at, order(at), at.batch(1, 17), weights, step)
    for name, way in moved(at, step).items():
        assert torch.allclose((weights[name] - at.replica.weights[name]).double(), way, atol=1e-6)


def test_each_block_has_slopes_of_its_own_rate():
    split = Split("clean-prefix", 2, 2, "none", 1.0, "1")
    at = site(recipe(**AUTO))
    at = replace(at, header=replace(at.header, split=split))
    step = updates(at, [3.0, -1.0, 0.5, 2.0], split.at(8.0))
    weights = copied(at.replica.weights)
    at.perturber.bind(weights)
    batch = at.batch(1, 17)

    measured = along(at, order(at, ratio=8.0), batch, weights, step)

    first, second = (exact(at, batch, moved(at, [update])) for update in step)
    fresh = at.batch(1, noise.derive_key(at.header.seed, "fresh batch", round=0, client=1))
    unseen, unseen_bend = exact(at, fresh, moved(at, step))
    lengths = np.array([RATE, RATE**2, 8 * RATE, (8 * RATE) ** 2, RATE])
    gain, bend, _, second_bend, on_fresh = np.array(measured.slopes) * lengths
    assert (gain, bend) == pytest.approx(first, rel=2e-3, abs=1e-4)
    assert second_bend == pytest.approx(second[1], rel=2e-3, abs=1e-4)
    assert on_fresh == pytest.approx(unseen - unseen_bend / 2 + (bend + second_bend) / 2, rel=2e-3, abs=1e-4)
    assert measured.num_forwards == 7


def test_a_start_that_is_known_is_not_evaluated_again():
    """As one-sided differences give it, which leaves all else as it is."""
    at = site(recipe(**AUTO))
    batch, step = at.batch(1, 17), updates(at, [3.0, -1.0, 0.5, 2.0])
    both = []
    for start in (None, float(at.loss(batch))):
        weights = copied(at.replica.weights)
        at.perturber.bind(weights)
        both.append(along(at, order(at), batch, weights, step, start))
        at.perturber.bind(at.replica.weights)
    assert both[0].slopes == both[1].slopes
    assert [measured.num_forwards for measured in both] == [5, 4]


def test_a_reply_brings_slopes_where_they_are_due_and_counts_their_forwards():
    at = site(recipe(**AUTO))
    due, not_due = local_round(at, order(at)), local_round(at, order(at, round_=7))
    assert len(due.slopes) == 3 and due.num_forwards == 8 + 5 and due.num_flops > not_due.num_flops
    assert not_due.slopes == () and not_due.num_forwards == 8
    assert decode_reply(encode_reply(due)).slopes == due.slopes
    assert decode_reply(encode_reply(not_due)).slopes == ()
    one_sided = site(recipe(**{**AUTO, "local": {**AUTO["local"], "estimator": "one-sided"}}))
    assert local_round(one_sided, order(one_sided)).num_forwards == 5 + 4


def test_measuring_changes_no_scalar():
    plain = recipe(local={"learning_rate": RATE, "num_directions": 4})
    one, other = site(recipe(**AUTO)), site(plain)
    assert np.array_equal(local_round(one, order(one)).scalars, local_round(other, order(other)).scalars)


@pytest.mark.parametrize("lost", [float("inf"), float("nan")])
def test_a_step_into_nowhere_bends_hard(lost):
    for losses, fall in (([1.0, lost, lost], 0.1), ([1.0, 0.9, lost], 0.1), ([1.0, 0.9, 0.8], -lost)):
        gain, bend, fresh = slopes_of(losses, fall, [0.5])
        assert (gain, fresh) == (2.0, 0.0) and bend / gain * 0.5 == LOST_BEND
    assert slopes_of([lost, 1.0, 1.0], 0.1, [0.5]) == (0.0, 0.0, 0.0)
    assert slopes_of([1.0, 0.9, 0.8, lost, lost], 0.1, [0.5, 1.0])[3] == LOST_BEND
