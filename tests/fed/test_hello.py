from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_federation import recipe, site

from seedtune.errors import MessageError
from seedtune.fed.hello import (
    Hello,
    Standing,
    decode_finish,
    decode_finished,
    decode_hello,
    decode_standing,
    differences,
    encode_finish,
    encode_finished,
    encode_hello,
    encode_standing,
    facts_of,
)
from seedtune.fed.messages import Order, encode_order
from seedtune.fed.wire import VERSION, packed

FACTS = {"base digest": "ab" * 16, "dtype": "float32"}
DIGESTS = st.sampled_from([b"", b"a" * 16, b"b" * 16, b"c" * 16])
CLIENTS = st.dictionaries(st.integers(0, 2**31 - 1), st.tuples(st.integers(0, 2**31 - 1), DIGESTS), max_size=9)


@given(st.binary(min_size=16, max_size=16), st.text(max_size=200), st.binary(max_size=50))
def test_a_hello_is_read_as_it_was_written(run, text, initial):
    hello = Hello(run, text, FACTS, initial)
    assert decode_hello(encode_hello(hello)) == hello


@given(CLIENTS)
def test_a_standing_is_read_as_it_was_written(clients):
    counts, places = ({client: pair[i] for client, pair in sorted(clients.items())} for i in (0, 1))
    standing = Standing(FACTS, counts, places, "seedtune 0.1")
    assert decode_standing(encode_standing(standing)) == standing


def test_a_client_of_which_nothing_is_said_stands_at_the_base():
    standing = Standing(FACTS, {4: 10, 2: 7}, {4: b"d" * 16})
    assert decode_standing(encode_standing(standing)).stands_at == {2: b"", 4: b"d" * 16}


def test_finish_holds_an_order_and_finished_a_digest():
    order = Order(3, 1, b"d" * 16, 1.0, (b"record",))
    assert decode_finish(encode_finish(order)) == order
    assert decode_finished(encode_finished(b"d" * 16)) == b"d" * 16


def changed(message, place, value):
    fields = msgpack.unpackb(message)
    fields[place] = value
    return msgpack.packb(fields)


HELLO = encode_hello(Hello(bytes(16), "{}", FACTS))
STANDING = encode_standing(Standing(FACTS, {0: 5, 3: 6}, {3: b"d" * 16}))
BROKEN = [
    (decode_hello, changed(HELLO, 0, 1), "format 1 is not ours"),
    (decode_hello, changed(HELLO, 2, bytes(15)), "a run's id has 16 bytes"),
    (decode_hello, changed(HELLO, 3, b"{}"), "a hello's recipe is a text"),
    (decode_hello, changed(HELLO, 4, ["a"]), "facts are names and texts"),
    (decode_hello, changed(HELLO, 4, ["a", 1]), "facts are names and texts"),
    (decode_hello, changed(HELLO, 4, ["a", "1", "a", "2"]), "each fact is there once"),
    (decode_hello, changed(HELLO, 5, "x"), "a head's start comes as bytes"),
    (decode_hello, STANDING, "kind and number of fields agree"),
    (decode_standing, changed(STANDING, 3, b"abc"), "clients are 4-byte numbers"),
    (decode_standing, changed(STANDING, 3, bytes(8)), "clients are sorted counts"),
    (decode_standing, changed(STANDING, 3, b"\xff" * 4 + bytes(4)), "clients are sorted counts"),
    (decode_standing, changed(STANDING, 4, bytes(8)), "numbers of examples fill their shape"),
    (decode_standing, changed(STANDING, 4, b"\xff" * 16), "numbers of examples are counts"),
    (decode_standing, changed(STANDING, 5, bytes(15)), "a digest has 16 bytes"),
    (decode_standing, changed(STANDING, 5, bytes(48)), "places are those that clients stand at"),
    (decode_standing, changed(STANDING, 6, b"\7\0\0\0\0\0\0\0"), "places are those that clients stand at"),
    (decode_standing, changed(STANDING, 7, 1), "a node's software is a text"),
    (decode_finish, packed(4, [1]), "a finish holds an order"),
    (decode_finish, packed(4, [encode_order(Order(0, 0, bytes(16), -1.0))]), "positive and finite"),
    (decode_finished, packed(5, [bytes(15)]), "a digest has 16 bytes"),
]


@pytest.mark.parametrize("decode, data, rule", BROKEN)
def test_what_breaks_a_rule_is_refused(decode, data, rule):
    with pytest.raises(MessageError, match=rule):
        decode(data)


@pytest.mark.parametrize("decode", [decode_hello, decode_standing, decode_finish, decode_finished])
@given(st.one_of(st.binary(max_size=60), st.lists(st.integers() | st.binary() | st.text(), max_size=8).map(
    lambda fields: msgpack.packb([VERSION, 2, *(str(f) if isinstance(f, int) else f for f in fields)]))))  # fmt: skip
def test_nonsense_is_a_message_error(decode, data):
    with suppress(MessageError):
        decode(data)


def test_every_difference_is_named_with_both_values():
    at = site(recipe())
    facts = facts_of(at.header, at.perturber.space, ("no", "yes"))
    assert differences(facts, dict(facts)) == ""
    assert facts["dtype"] == "float32" and facts["labels"] == "no, yes"
    other = {**facts, "dtype": "bfloat16", "noise version": "2"}
    assert differences(facts, other) == (
        "its noise version is '2', the run's is '1'; its dtype is 'bfloat16', the run's is 'float32'"
    )
    assert "its labels is None" in differences(facts, {k: v for k, v in facts.items() if k != "labels"})
