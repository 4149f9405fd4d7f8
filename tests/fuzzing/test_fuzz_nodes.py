"""Whatever passes between a server and its nodes, beside orders and replies, is refused or means one thing.

Valid messages of every kind are spoiled in one to three places. What is then still read is written again: reading that
gives the same.
"""

import msgpack
import numpy as np
from fuzzed import fuzzed, no_foreign_error, spoiled, torn
from hypothesis import given
from hypothesis import strategies as st

from seedtune.engines import flower_grid
from seedtune.engines.frames import Answered, Parcel, answered_of, parcel_of
from seedtune.errors import MessageError
from seedtune.fed import hello, secure_messages
from seedtune.fed.messages import Order, encode_order
from seedtune.foreign_text import MOST_MESSAGE, describe, quote, sanitize
from seedtune.privacy.public import Card

RUN, KEY = bytes(range(16)), bytes(range(32))
FACTS = {"base digest": "ab" * 16, "dtype": "float32"}
ORDER = Order(3, 2, RUN, 1e-3, (bytes(40),))
CARD = Card(2, KEY, bytes(49), bytes(96))
SENT = {
    "hello": (hello, hello.Hello(RUN, "{}", FACTS, b"weights")),
    "standing": (hello, hello.Standing(FACTS, {0: 5, 3: 7}, {0: b"", 3: RUN}, "seedtune 0")),
    "finish": (hello, ORDER),
    "finished": (hello, RUN),
    "key_request": (secure_messages, secure_messages.KeyRequest(RUN, 2, True)),
    "keys": (secure_messages, secure_messages.Keys(RUN, 2, KEY, KEY, bytes(49), bytes(96))),
    "roster": (secure_messages, secure_messages.RosterMessage(RUN, {1: KEY, 2: bytes(32)}, (CARD,))),
    "shares": (secure_messages, secure_messages.Shares(RUN, 2, {1: bytes(48)})),
    "masked_order": (secure_messages, secure_messages.MaskedOrder(RUN, encode_order(ORDER), {1: bytes(48)})),
    "unmask_request": (secure_messages, secure_messages.UnmaskRequest(RUN, (1, 2, 5))),
    "unmasked": (secure_messages, secure_messages.Unmasked(RUN, 2, {1: bytes(16)})),
}
HARD = (b"\x91" * 2000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", msgpack.packb([2, 2, "x" * 100_000]), b"")
"""Nested, long by what they say, or of the wrong kind."""


def coders(kind: str):
    room = SENT[kind][0]
    return getattr(room, f"encode_{kind}"), getattr(room, f"decode_{kind}")


@fuzzed(200)
@given(st.sampled_from(sorted(SENT)), st.data())
def test_a_spoiled_message_is_refused_or_is_one(kind, data):
    encode, decode = coders(kind)
    assert decode(encode(SENT[kind][1])) == SENT[kind][1]
    tree = msgpack.unpackb(encode(SENT[kind][1]))
    try:
        found = decode(msgpack.packb(data.draw(spoiled(tree))))
    except MessageError as error:
        assert str(error).isprintable() and len(str(error)) < 1_000
        return
    assert decode(encode(found)) == found


@fuzzed(100)
@given(st.sampled_from(sorted(SENT)), st.data())
def test_a_torn_message_is_refused_or_is_one(kind, data):
    encode, decode = coders(kind)
    sent = data.draw(torn(encode(SENT[kind][1])) | st.sampled_from(HARD))
    with no_foreign_error(kind):
        found = decode(sent)
        assert decode(encode(found)) == found


@fuzzed(100)
@given(spoiled([*FACTS.values()]), st.text(max_size=400) | st.just("\x1b[2J\n" * 10_000), st.data())
def test_what_a_node_says_is_bounded_and_printable_wherever_it_is_told(values, text, data):
    facts = {str(name): str(value) for name, value in enumerate(values if isinstance(values, list) else [values])}
    told = [hello.differences(FACTS, facts | {text: text}), sanitize(text), describe(ValueError(text)), quote(text)]
    told.append(str(flower_grid._error(data.draw(st.sampled_from(["NotFinite: ", "KeyError: ", ""])) + text)))
    assert all(one.isprintable() and len(one) <= MOST_MESSAGE for one in told)
    assert all(sanitize(one, MOST_MESSAGE) == one for one in told)


@fuzzed(50)
@given(st.data())
def test_masked_words_are_refused_or_are_words(data):
    sent = secure_messages.MaskedReply(RUN, 2, np.arange(3, dtype="<u8"), bytes(16))
    tree = msgpack.unpackb(secure_messages.encode_masked_reply(sent))
    try:
        found = secure_messages.decode_masked_reply(msgpack.packb(data.draw(spoiled(tree))))
    except MessageError:
        return
    assert found.words.dtype == np.dtype("<u8") and found.words.ndim == 1 and 0 <= found.client < 2**31


@fuzzed(100)
@given(st.data())
def test_parcels_and_their_answers_are_whole_or_refused(data):
    parcel, answered = Parcel("ab" * 16, (0, 3), (b"one", b"two")), Answered((b"", b"x"), ("EngineError: no", ""))
    for plain, read in ((parcel.plain(), parcel_of), (answered.plain(), lambda given: answered_of(given, 2))):
        assert read(plain) in (parcel, answered)
        given_ = data.draw(spoiled(plain))
        try:
            found = read(given_) if isinstance(given_, dict) else None
        except MessageError:
            continue
        assert found is None or read(found.plain()) == found
