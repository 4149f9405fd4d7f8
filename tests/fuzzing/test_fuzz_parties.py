"""Whatever reaches a client or a server, what they hold stays what they say it is, and the round goes on.

Orders and replies are decoded, spoiled in one to three places, and encoded again: most of them still are messages.
"""

import msgpack
import numpy as np
import pytest
import torch
from fuzzed import fuzzed, spoiled
from hypothesis import given
from hypothesis import strategies as st
from small_federation import protocol, recipe, reply, server, site

from seedtune.engines.in_process import InProcess
from seedtune.errors import SeedtuneError
from seedtune.fed.messages import Order, decode_reply, encode_order, encode_reply, pack_record, pack_weights
from seedtune.fed.rounds import one_round
from seedtune.space import digest
from seedtune.zo.trajectory import round_updates
from seedtune.zo.update import apply

pytestmark = pytest.mark.usefixtures("one_thread")

PROTOCOLS = {
    "own": {},
    "shared": {"federation": {"keys": "shared"}},
    "votes": {"federation": {"keys": "shared", "aggregation": "sign-vote", "weighting": "equal"}},
    "median": {"federation": {"keys": "shared", "aggregation": "median", "weighting": "equal"}},
    "clipped": {"local": {"clip": 0.5}},
    "weights": {"federation": {"upload": "weights"}},
}
RECIPES = {name: recipe(**over) for name, over in PROTOCOLS.items()}


def tree(message: bytes) -> list:
    return msgpack.unpackb(message)


def lived(settings) -> tuple[bytes, list[bytes], bytes]:
    """The packed weights after two rounds, the rounds' packed records, and the digest."""
    at = site(settings)
    state, engine = server(at), InProcess(at)
    for _ in range(2):
        state, _ = one_round(state, protocol(settings), engine)
    return pack_weights(at.replica.weights), [pack_record(record) for record in state.log], at.replica.digest


PASTS = {name: lived(settings) for name, settings in RECIPES.items()}


@st.composite
def orders(draw: st.DrawFn) -> tuple[str, bytes]:
    """For a recipe, an order of its third round, spoiled: with what was missed, with the weights, or with both."""
    name = draw(st.sampled_from(sorted(RECIPES)))
    weights, missed, state = PASTS[name]
    sent = draw(st.sampled_from(["missed", "weights", "both"]))
    order = Order(2, draw(st.integers(0, 3)), state, 0.01, () if sent == "weights" else tuple(missed),
                  b"" if sent == "missed" else weights)  # fmt: skip
    fields = tree(encode_order(order))
    if sent != "weights" and draw(st.booleans()):
        place = draw(st.integers(0, len(missed) - 1))
        fields[6][place] = msgpack.packb(draw(spoiled(tree(missed[place]))))
        return name, msgpack.packb(fields)
    return name, msgpack.packb(draw(spoiled(fields)))


@fuzzed(150)
@given(orders())
def test_a_client_answers_or_says_why_not_and_knows_where_it_stands(given_order):
    """And it can go on: told everything, or sent the weights, it comes to where the server is."""
    name, data = given_order
    settings = RECIPES[name]
    at = site(settings)
    ((_, answer),) = InProcess(at).exchange({1: data})
    if isinstance(answer, bytes):
        assert decode_reply(answer).scalars.dtype == np.float32
    else:
        assert isinstance(answer, SeedtuneError) and "\n" not in str(answer), repr(answer)
    assert digest(at.replica.weights) == at.replica.digest
    weights, _, state = PASTS[name]
    ((_, again),) = InProcess(at).exchange({1: encode_order(Order(2, 1, state, 0.01, (), weights))})
    assert isinstance(again, bytes) and at.replica.digest == state


def replies(name: str) -> st.SearchStrategy[bytes]:
    """What client 2 may send: a reply of its recipe's kind, spoiled."""
    settings = RECIPES[name]
    changed = {"weights": PASTS[name][0], "scalars": np.zeros((0, 0), np.float32)} if name == "weights" else {}
    sign = {"scalars": np.array([[1.0, -1.0]], np.float32)} if name == "votes" else {}
    limit = {"scalars": np.array([[0.5, -0.1]], np.float32)} if settings.local.clip else {}
    fields = tree(encode_reply(reply(2, **changed, **sign, **limit)))
    return st.just(msgpack.packb(fields)) | spoiled(fields).map(msgpack.packb) | st.binary(max_size=40)


class Spoiling:
    """An engine whose client 2 sends something else, once or more often, at any place among the answers."""

    def __init__(self, at, sent: list[bytes], place: int):
        self.inner, self.sent, self.place = InProcess(at), sent, place

    def exchange(self, messages):
        answers = [(client, answer) for client, answer in self.inner.exchange(messages) if client != 2]
        answers[self.place : self.place] = [(2, data) for data in self.sent]
        return answers


@fuzzed(150)
@given(st.sampled_from(sorted(RECIPES)), st.data(), st.integers(0, 3))
def test_a_server_counts_a_reply_once_and_its_weights_are_those_of_its_records(name, data, place):
    settings = RECIPES[name]
    sent = data.draw(st.lists(replies(name), min_size=1, max_size=3))
    at = site(settings)
    state, result = one_round(server(at), protocol(settings), Spoiling(at, sent, place))
    record = result.record
    assert list(record.clients) in ([0, 1, 3], [0, 1, 2, 3])
    assert (2 in record.clients) != (2 in result.failed) or len(sent) > 1
    assert digest(at.replica.weights) == at.replica.digest == record.digest
    assert all(bool(torch.isfinite(tensor).all()) for tensor in at.replica.weights.values())
    if not record.is_snapshot:
        fresh = site(settings)
        apply(fresh.perturber.space, fresh.replica.weights, round_updates(fresh.header, record),
              fresh.header.distribution)  # fmt: skip
        assert digest(fresh.replica.weights) == record.digest
    assert set(result.losses) == set(record.clients) and state.round == 1
