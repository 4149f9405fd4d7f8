import dataclasses

import numpy as np
import pytest
from small_federation import Answers, protocol, recipe, reply, server, site

from seedtune.errors import MessageError
from seedtune.fed.messages import unpack_weights
from seedtune.fed.rounds import one_round
from seedtune.fed.seed_scalar import SeedScalar
from seedtune.space import copied, digest
from seedtune.zo import noise
from seedtune.zo.trajectory import direction_key, round_updates
from seedtune.zo.update import apply


def moved_by_hand(at, shares, scalars):
    """theta - eta / P sum_i w_i sum_p g_ip z_ip, in float64."""
    header, rate = at.header, at.recipe.local.learning_rate / 2
    weights = {name: tensor.double().numpy() for name, tensor in copied(at.replica.weights).items()}
    for client, (share, row) in enumerate(zip(shares, scalars, strict=True)):
        sender = None if header.keys == "shared" else client
        for p, scalar in enumerate(row):
            key = direction_key(header.seed, 0, sender, 0, p)
            for spec in at.perturber.space.tensors:
                z = noise.values(key, spec.start, spec.num_elements, header.distribution).double().numpy()
                weights[spec.name] -= rate * share * scalar * z.reshape(spec.shape)
    return weights


@pytest.mark.parametrize("keys", ["own", "shared"])
@pytest.mark.parametrize("weighting", ["examples", "equal"])
def test_a_round_moves_the_weights_by_the_formula(keys, weighting):
    settings = recipe(federation={"keys": keys, "weighting": weighting})
    replies = {client: reply(client, num_examples=client + 1) for client in range(4)}
    shares = [0.1, 0.2, 0.3, 0.4] if weighting == "examples" else [0.25] * 4
    at = site(settings)
    expected = moved_by_hand(at, shares, [replies[client].scalars[0] for client in range(4)])
    one_round(server(at), protocol(settings), Answers(replies))
    for name, tensor in at.replica.weights.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=0, atol=1e-6)


def test_shared_keys_make_one_row_of_mean_scalars():
    settings = recipe(federation={"keys": "shared"})
    nan = np.float32("nan")
    replies = {
        0: reply(0, scalars=np.array([[nan, nan]], np.float32)),
        1: reply(1, scalars=np.array([[1.0, 5.0]], np.float32)),
        2: reply(2, scalars=np.array([[3.0, 5.0]], np.float32)),
        3: reply(3, scalars=np.array([[nan, nan]], np.float32)),
    }
    _, result = one_round(server(site(settings)), protocol(settings), Answers(replies))
    assert result.record.scalars.tolist() == [[[2.0, 5.0]]] and result.record.clients == (0, 1, 2, 3)

    everyone = {client: reply(client, scalars=np.full((1, 2), nan)) for client in range(4)}
    at = site(settings)
    _, result = one_round(server(at), protocol(settings), Answers(everyone))
    assert np.isnan(result.record.scalars).all() and result.record.digest == digest(site(settings).replica.weights)


def test_an_order_holds_what_was_missed_or_the_weights_if_they_are_shorter():
    settings = recipe(federation={"num_rounds": 9})
    state = server(site(settings))
    assert SeedScalar().order(state, 0).missed == () and SeedScalar().order(state, 0).weights == b""
    state, _ = one_round(state, protocol(settings), Answers())
    long_log = dataclasses.replace(state, log=state.log * 9, up_to_date={})
    order = SeedScalar().order(long_log, 3)
    assert order.missed == () and order.digest == state.replica.digest
    assert digest(unpack_weights(order.weights, state.space)) == state.replica.digest


def test_records_alone_rebuild_the_server():
    settings = recipe()
    state, engine = server(site(settings)), Answers()
    for _ in range(3):
        state, _ = one_round(state, protocol(settings), engine)
    fresh = site(settings)
    apply(fresh.perturber.space, fresh.replica.weights, [u for r in state.log for u in round_updates(fresh.header, r)],
          fresh.header.distribution)  # fmt: skip
    assert digest(fresh.replica.weights) == state.replica.digest


def test_scalars_of_another_shape_are_refused():
    with pytest.raises(MessageError, match=r"client 3 sent scalars of shape \(2, 2\), asked were \(1, 2\)"):
        SeedScalar().check(server(site(recipe())), reply(3, scalars=np.zeros((2, 2), np.float32)))
