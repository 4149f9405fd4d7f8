from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from small_federation import Answers, protocol, recipe, reply, server, site

from seedtune.engines.in_process import InProcess
from seedtune.errors import EngineError
from seedtune.fed import server as server_module
from seedtune.fed.messages import decode_order, encode_reply
from seedtune.fed.participation import drops_out, sample_cohort
from seedtune.fed.replies import share_of
from seedtune.fed.rounds import LOST, one_round, run_rounds
from seedtune.space import copied, digest


def round_of(settings, engine):
    return one_round(server(site(settings)), protocol(settings), engine)


def test_a_cohort_is_a_function_of_seed_and_round():
    settings = recipe(partition={"num_clients": 20}, federation={"cohort_size": 5})
    cohorts = [sample_cohort(settings, round_) for round_ in range(200)]
    assert cohorts == [sample_cohort(settings, round_) for round_ in range(200)]
    assert all(list(cohort) == sorted(set(cohort)) and len(cohort) == 5 for cohort in cohorts)
    assert len(set(cohorts)) > 190
    asked = Counter(client for cohort in cohorts for client in cohort)
    assert set(asked) == set(range(20)) and max(asked.values()) < 2 * min(asked.values())


def test_cohorts_differ_between_seeds_and_0_asks_everybody():
    sampled = recipe(partition={"num_clients": 20}, federation={"cohort_size": 5})
    other = recipe(partition={"num_clients": 20}, federation={"cohort_size": 5}, run={"seed": 12})
    assert [sample_cohort(sampled, r) for r in range(5)] != [sample_cohort(other, r) for r in range(5)]
    assert sample_cohort(recipe(), 3) == (0, 1, 2, 3)


def test_dropouts_are_keyed_and_come_at_their_rate():
    settings = recipe(federation={"dropout_rate": 0.3})
    silent = [drops_out(settings, round_, client) for round_ in range(250) for client in range(4)]
    assert silent == [drops_out(settings, round_, client) for round_ in range(250) for client in range(4)]
    assert abs(np.mean(silent) - 0.3) < 0.05  # 3.4 standard deviations of a mean of 1000
    assert not any(drops_out(recipe(), round_, 0) for round_ in range(50))


def test_a_round_reports_what_was_sent():
    engine = Answers()
    after, result = round_of(recipe(), engine)
    assert result.cohort == (0, 1, 2, 3) and result.dropped == () and result.failed == {}
    assert result.bytes_down == sum(map(len, engine.orders[0].values()))
    assert result.bytes_up == sum(len(encode_reply(reply(client))) for client in range(4))
    assert result.num_forwards == 16 and result.train_loss == 0.5
    assert after.round == 1 and after.log == (result.record,) and after.up_to_date == dict.fromkeys(range(4), 0)
    assert after.replica.digest == result.record.digest == digest(after.replica.weights)


def test_silent_clients_are_not_asked():
    settings = recipe(federation={"dropout_rate": 0.5})
    engine = Answers()
    _, result = round_of(settings, engine)
    assert result.dropped == tuple(client for client in range(4) if drops_out(settings, 0, client)) != ()
    assert set(engine.orders[0]) == set(range(4)) - set(result.dropped) == set(result.record.clients)


BAD_ANSWERS = {
    "raising": (ValueError("no\nmemory"), "ValueError: no memory"),
    "garbage": (b"\xc1garbage", "MessageError: a message of 8 bytes is not readable: "),
    "nothing": (None, "TypeError: "),
    "another round": (reply(1, 7), "MessageError: a reply of client 1 for round 7 came where client 1 was asked in"),
    "another client": (reply(2), "MessageError: a reply of client 2 for round 0 came where client 1 was asked in"),
    "no examples": (reply(1, num_examples=0), "MessageError: client 1 says that it has 0 examples"),
    "another shape": (
        reply(1, scalars=np.zeros((1, 3), np.float32)),
        "MessageError: client 1 sent scalars of shape (1, 3), asked were (1, 2)",
    ),
    "infinite": (reply(1, scalars=np.array([[np.inf, 0]], np.float32)), "MessageError: a message breaks a rule: "),
}


@pytest.mark.parametrize("answer, reason", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_client_that_answers_nonsense_is_left_out_and_named(answer, reason):
    after, result = round_of(recipe(), Answers({1: answer}))
    assert list(result.failed) == [1] and result.failed[1].startswith(reason) and "\n" not in result.failed[1]
    assert result.record.clients == (0, 2, 3) and after.up_to_date == {0: 0, 1: LOST, 2: 0, 3: 0}

    without, _ = one_round(server(site(recipe())), protocol(recipe()), Without(1))
    assert after.replica.digest == without.replica.digest


class Without(Answers):
    """An engine on which a client never answers."""

    def __init__(self, client):
        super().__init__()
        self.client = client

    def exchange(self, orders):
        return (pair for pair in super().exchange(orders) if pair[0] != self.client)


def test_a_client_that_never_answers_is_named():
    _, result = round_of(recipe(), Without(2))
    assert result.failed == {2: "EngineError: no answer"} and result.record.clients == (0, 1, 3)


class Twice(Answers):
    """An engine that carries an answer that nobody asked for, and one of them twice."""

    def exchange(self, orders):
        yield from super().exchange(orders)
        yield 0, encode_reply(reply(0, scalars=np.full((1, 2), 9, np.float32)))
        yield 17, encode_reply(reply(17))


def test_answers_unasked_or_twice_move_nothing():
    after, result = round_of(recipe(), Twice())
    plain, _ = round_of(recipe(), Answers())
    assert after.replica.digest == plain.replica.digest and set(result.failed) == {0, 17}
    assert result.failed[17] == "MessageError: client 17 answered without being asked, or twice"


def test_failures_below_the_minimum_stop_the_run():
    settings = recipe(federation={"min_replies": 3})
    with pytest.raises(EngineError) as error:
        round_of(settings, Answers({1: RuntimeError("lost"), 3: b""}))
    assert str(error.value) == (
        "round 0: 2 usable replies, federation.min_replies is 3; 2 failed, first client 1: RuntimeError: lost"
    )


def test_dropouts_below_the_minimum_move_nothing():
    settings = recipe(federation={"min_replies": 4, "dropout_rate": 0.5})
    at = site(settings)
    before = copied(at.replica.weights)
    after, result = one_round(server(at), protocol(settings), Answers())
    assert result.dropped and result.record.clients == () and result.num_forwards == 0
    assert result.record.digest == digest(before) == digest(at.replica.weights)
    assert after.up_to_date == {} and after.round == 1


def test_a_client_whose_state_is_not_known_is_told_everything_again():
    settings, engine = recipe(), Answers()
    current = server(site(settings))
    for given in ({}, {}, {2: b"nonsense"}, {}):
        engine.given = given
        current, _ = one_round(current, protocol(settings), engine)
    missed = {client: len(decode_order(order).missed) for client, order in engine.orders[3].items()}
    assert missed == {0: 1, 1: 1, 2: 3, 3: 1}


class Logged:
    """A protocol that notes when it is asked for an order and when a reply reaches it."""

    def __init__(self, inner):
        self.inner, self.log = inner, []

    def order(self, state, client):
        self.log.append(("order", client))
        return self.inner.order(state, client)

    def check(self, state, answer):
        self.log.append(("reply", answer.client))
        return self.inner.check(state, answer)

    def reduce(self, state, replies):
        return self.inner.reduce(state, replies)


def test_one_order_and_one_reply_are_held_at_a_time():
    settings = recipe(federation={"upload": "weights"})
    at, logged = site(settings), Logged(protocol(settings))
    one_round(server(at), logged, InProcess(at))
    assert logged.log == [(what, client) for client in range(4) for what in ("order", "reply")]


def test_rounds_go_on_to_the_last():
    numbers = [result.record.round for _, result in run_rounds(server(site(recipe())), protocol(recipe()), Answers())]
    assert numbers == [0, 1, 2]


def test_skipped_steps_and_losses_that_are_not_finite_are_counted():
    skipped = reply(1, scalars=np.full((1, 2), np.nan, np.float32), loss=float("nan"), num_skipped=1)
    _, result = round_of(recipe(), Answers({1: skipped}))
    assert result.skipped_steps == 1 and result.train_loss == 0.5
    assert np.isnan(result.record.scalars[1]).all() and np.isfinite(result.record.scalars[[0, 2, 3]]).all()


@pytest.mark.parametrize("weighting, shares", [("examples", [3, 9]), ("equal", [1, 1])])
def test_shares_of_the_mean(weighting, shares):
    replies = [reply(0, num_examples=3), reply(1, num_examples=9)]
    assert [share_of(recipe(federation={"weighting": weighting}), reply) for reply in replies] == shares


@pytest.mark.parametrize("upload, packs", [("scalars", "pack_record"), ("weights", "pack_weights")])
def test_what_goes_to_all_clients_is_packed_once(upload, packs, monkeypatch):
    settings = recipe(federation={"upload": upload, "num_rounds": 3})
    at, calls, whole = site(settings), [], getattr(server_module, packs)
    monkeypatch.setattr(server_module, packs, lambda what: calls.append(what) or whole(what))
    state, counts = server(at), []
    while state.round < 3:
        state, _ = one_round(replace(state, up_to_date={}), protocol(settings), InProcess(at))
        counts.append(len(calls))
    assert counts == ([0, 1, 2] if upload == "scalars" else [1, 2, 3])
