import dataclasses

import numpy as np
import pytest
import torch
from small_federation import Answers, protocol, recipe, reply, server, site

from seedtune.errors import MessageError, NotFinite
from seedtune.fed.messages import unpack_weights
from seedtune.fed.rates import Told
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


VOTE = {"keys": "shared", "aggregation": "sign-vote", "weighting": "equal"}
NAN = float("nan")


def voted(votes, num_examples=(12, 12, 12, 12), **federation):
    """The record of a round of one step and one direction in which four clients vote, and the site that it moved."""
    settings = recipe(federation={**VOTE, **federation}, local={"num_directions": 1})
    given = {i: reply(i, scalars=np.array([[vote]], np.float32), num_examples=n)
             for i, (vote, n) in enumerate(zip(votes, num_examples, strict=True))}  # fmt: skip
    at = site(settings)
    _, result = one_round(server(at), protocol(settings), Answers(given))
    assert result.failed == {}
    return result.record, at


@pytest.mark.parametrize(
    "votes, majority",
    [((1, 1, 1, -1), 1), ((-1, -1, 1, NAN), -1), ((1, NAN, NAN, NAN), 1), ((1, 1, -1, -1), 0), ((0, 0, -1, 0), -1),
     ((1, -1, NAN, 0), 0), ((0, 0, 0, 0), 0), ((NAN, 0, NAN, NAN), 0), ((NAN,) * 4, NAN)],
)  # fmt: skip
def test_a_vote_moves_by_the_rate_or_not_at_all(votes, majority):
    record, at = voted(votes)
    np.testing.assert_array_equal(record.scalars, np.full((1, 1, 1), majority, np.float32))
    fresh, key = site(at.recipe), direction_key(at.header.seed, 0, None, 0, 0)
    for spec in at.perturber.space.tensors:
        z = noise.values(key, spec.start, spec.num_elements, at.header.distribution).view(spec.shape)
        step = np.float32(-at.recipe.local.learning_rate * np.nan_to_num(majority))
        assert (at.replica.weights[spec.name] == fresh.replica.weights[spec.name] + float(step) * z).all()
    assert record.digest == digest(at.replica.weights)


def test_votes_count_alike_whatever_clients_claim_and_a_tie_is_exact():
    votes, examples = (1, 1, 1, -1), (1, 2, 3, 7)
    assert voted(votes, examples)[0].scalars.item() == 1
    assert voted((1, 1, 1, -1), (1, 2, 3, 2**31 - 1))[0].scalars.item() == 1
    assert voted((1, 1, -1, -1), (1, 2, 3, 6))[0].scalars.item() == 0


@pytest.mark.parametrize("sent", [0.5, -2.0, 1e30])
def test_a_client_that_sends_more_than_a_sign_is_left_out(sent):
    settings = recipe(federation={**VOTE, "min_replies": 3})
    given = {client: reply(client, scalars=np.array([[1.0, 1.0]], np.float32)) for client in range(3)}
    given[3] = reply(3, scalars=np.array([[-1.0, sent]], np.float32))
    _, result = one_round(server(site(settings)), protocol(settings), Answers(given))
    assert result.failed == {
        3: "MessageError: client 3 sent scalars where signs were asked: 1, -1 or 0, NaN where skipped"
    }
    assert result.record.clients == (0, 1, 2) and result.record.scalars.tolist() == [[[1.0, 1.0]]]


def test_a_scalar_beyond_the_clip_is_refused():
    state = server(site(recipe(local={"clip": 0.3})))
    SeedScalar().check(state, reply(3, scalars=np.array([[0.3, -0.3]], np.float32)))
    SeedScalar().check(state, reply(3, scalars=np.full((1, 2), NAN, np.float32)))
    with pytest.raises(MessageError, match=r"^client 3 sent a scalar beyond local.clip = 0.3$"):
        SeedScalar().check(state, reply(3, scalars=np.array([[0.1, -0.30001]], np.float32)))


@pytest.mark.parametrize("keys", ["own", "shared"])
def test_a_scalar_that_a_clients_own_rate_takes_too_far_is_refused(keys):
    """With Phi 1 a client's rate is 1.9 times the round's."""
    settings = recipe(federation={"keys": keys}, personalise={"policy": "round-wise", "alpha": 0.9})
    state = server(site(settings))
    told = Told({0: 1.0, 1: 2.0, 2: 6.0, 3: 3.0}, {})
    state = dataclasses.replace(state, round=1, rates=state.rates.after(0, told))
    large = np.full((1, 2), 2e20, np.float32)
    SeedScalar().check(state, reply(0, 1, scalars=large))
    with pytest.raises(NotFinite) as error:
        SeedScalar().check(state, reply(2, 1, scalars=large))
    assert str(error.value) == (
        "client 2 sent a scalar of 2e+20, which at its rate could move a weight by 2.53e+19 in one round, beyond "
        "1.84e+19, the square root of what the weights' type holds: lower local.learning_rate, or set local.clip"
    )


@pytest.mark.parametrize("rate", [1e-30, 0.01, 1e6])
@pytest.mark.parametrize("keys", ["own", "shared"])
def test_whatever_a_client_sends_the_weights_stay_finite(keys, rate):
    """Its reply is left out, and the round goes on; or it moves weights no further than they can go."""
    settings = recipe(federation={"keys": keys}, local={"learning_rate": rate}, personalise={"policy": "random"})
    for exponent in range(0, 39, 2):
        at = site(settings)
        answers = {2: reply(2, scalars=np.array([[3 * 10.0**exponent, -1.0]], np.float32))}
        _, result = one_round(server(at), protocol(settings), Answers(answers))
        assert len(result.record.clients) == 3 + (2 in result.record.clients)
        assert all(bool((tensor * tensor).isfinite().all()) for tensor in at.replica.weights.values())
    assert rate < 1e-20 or result.failed[2].startswith("NotFinite: client 2 sent a scalar of 3e+38, which at its rate")


def test_half_precision_weights_have_less_room():
    state = server(site(recipe(local={"learning_rate": 1.0}), torch.float16))
    SeedScalar().check(state, reply(0, scalars=np.array([[38.0, -38.0]], np.float32)))
    with pytest.raises(NotFinite, match="could move a weight by 260 in one round, beyond 256, the square root of what"):
        SeedScalar().check(state, reply(0, scalars=np.array([[39.0, -1.0]], np.float32)))
