import msgpack
import pytest
from small_federation import protocol, recipe, reply, server, site

from seedtune.errors import MessageError
from seedtune.fed import answering
from seedtune.fed.answering import Answering, one_by_one
from seedtune.fed.messages import ORDER, REPLY, Reply, decode_reply, encode_order, encode_reply
from seedtune.fed.wire import VERSION, kind_of, packed

ECHO = 99


def order_of(at, client):
    return encode_order(protocol(at.recipe).order(server(at), client))


def test_the_kind_of_a_message_is_read_without_its_fields():
    at = site(recipe())
    assert kind_of(order_of(at, 0)) == ORDER
    assert kind_of(encode_reply(reply(0))) == REPLY
    assert kind_of(packed(ECHO, [b"x" * 10**6])) == ECHO
    assert kind_of(packed(0, range(70_000))) == 0


@pytest.mark.parametrize(
    "data, rule",
    [
        (b"", "an array of version, kind and fields"),
        (b"\xc1", "an array of version, kind and fields"),
        (msgpack.packb(7), "an array of version, kind and fields"),
        (msgpack.packb([VERSION]), "an array of version, kind and fields"),
        (msgpack.packb([VERSION, True]), "an array of version, kind and fields"),
        (msgpack.packb([VERSION, "order" * 100]), "an array of version, kind and fields"),
        (msgpack.packb([1, 0, 5]), "format 1 is not ours"),
    ],
)
def test_what_is_no_message_has_no_kind(data, rule):
    with pytest.raises(MessageError, match=rule):
        kind_of(data)


def test_each_kind_has_its_handler_and_each_site_its_own(monkeypatch):
    seen = []

    def echo(at, memory):
        seen.append(at)
        memory["seen"] = b"yes"
        return one_by_one(lambda client, data: packed(ECHO, [client, len(data)]))

    monkeypatch.setattr(answering, "HANDLERS", {**answering.HANDLERS, ECHO: echo})
    at, memory = site(recipe()), {}
    message = packed(ECHO, [])
    answers = dict(Answering(at, memory).answers({0: order_of(at, 0), 3: message, 1: order_of(at, 1), 2: message}))
    assert list(answers) == [0, 3, 1, 2] and seen == [at] and memory == {"seen": b"yes"}
    assert answers[3] == packed(ECHO, [3, len(message)])
    assert isinstance(decode_reply(answers[1]), Reply)


def test_an_error_of_one_message_and_a_kind_that_nobody_knows_are_answers(monkeypatch):
    def failing(client, data):
        raise ZeroDivisionError("here")

    monkeypatch.setattr(answering, "HANDLERS", {**answering.HANDLERS, ECHO: lambda at, memory: one_by_one(failing)})
    at = site(recipe())
    answers = dict(Answering(at).answers({0: packed(ECHO, []), 1: packed(77, []), 2: b"\xc1", 3: order_of(at, 3)}))
    assert isinstance(answers[0], ZeroDivisionError)
    assert str(answers[1]) == "no client answers messages of kind 77"
    assert isinstance(answers[2], MessageError) and isinstance(answers[3], bytes)
