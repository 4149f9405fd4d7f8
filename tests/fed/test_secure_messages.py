"""Messages of secure sums come back as they went; bytes that are none raise MessageError and nothing else."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.errors import EngineError, MessageError, NotFinite
from seedtune.fed import secure_messages as sm
from seedtune.fed.wire import VERSION
from seedtune.privacy.public import Card

SESSION = bytes(range(16))
clients = st.integers(0, 2**31 - 1)
cards = st.builds(Card, clients, *(st.binary(min_size=n, max_size=n) for n in (32, 49, 96)))


def by_client(size: int):
    return st.dictionaries(clients, st.binary(min_size=size, max_size=size), max_size=4)


session, key = st.just(SESSION), st.binary(min_size=32, max_size=32)
KINDS = {
    "key_request": st.builds(sm.KeyRequest, session, clients, st.booleans()),
    "keys": st.builds(sm.Keys, session, clients, key, key)
    | cards.map(lambda card: sm.Keys(SESSION, card.client, bytes(32), card.agreement, card.identity, card.signature)),
    "roster": st.builds(sm.RosterMessage, session, by_client(32), st.lists(cards, max_size=3).map(tuple)),
    "shares": st.builds(sm.Shares, session, clients, by_client(48)),
    "masked_order": st.builds(sm.MaskedOrder, session, st.binary(max_size=9), by_client(48)),
    "unmask_request": st.builds(sm.UnmaskRequest, session, st.sets(clients, max_size=5).map(sorted).map(tuple)),
    "unmasked": st.builds(sm.Unmasked, session, clients, by_client(16)),
}
DECODERS = [getattr(sm, f"decode_{name}") for name in (*KINDS, "masked_reply", "bundle", "answers")]


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=30)
@given(st.data())
def test_messages_come_back_as_they_went(name, data):
    sent = data.draw(KINDS[name])
    assert getattr(sm, f"decode_{name}")(getattr(sm, f"encode_{name}")(sent)) == sent


@given(st.lists(st.integers(0, 2**64 - 1), max_size=9), clients)
def test_masked_words_come_back_as_they_went(words, client):
    found = sm.decode_masked_reply(
        sm.encode_masked_reply(sm.MaskedReply(SESSION, client, np.array(words, "<u8"), SESSION))
    )
    assert (found.client, found.words.tolist()) == (client, words)


def test_bundles_carry_messages_and_errors_that_keep_their_class():
    assert sm.decode_bundle(sm.encode_bundle([b"one", b""])) == [b"one", b""]
    sent = [b"one", NotFinite("too\nlarge"), ZeroDivisionError("here"), EngineError("client 3")]
    one, large, foreign, engine = sm.decode_answers(sm.encode_answers(sent))
    assert one == b"one" and type(large) is NotFinite and str(large) == "too\\nlarge"
    assert type(foreign) is EngineError and str(foreign) == "ZeroDivisionError: here"
    assert type(engine) is EngineError and str(engine) == "client 3"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=60) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.binary(max_size=80) | st.tuples(st.integers(10, 19), st.lists(values, max_size=7)), st.data())
def test_what_is_no_message_raises_message_error_and_nothing_else(given_, data):
    raw = given_ if isinstance(given_, bytes) else msgpack.packb([VERSION, given_[0], *given_[1]])
    for decode in DECODERS:
        try:
            decode(raw)
        except MessageError as error:
            assert "\n" not in str(error)


@settings(max_examples=60)
@given(st.data())
def test_a_message_with_one_field_or_byte_changed_is_refused_or_is_another(data):
    name = data.draw(st.sampled_from(sorted(KINDS)))
    sent = getattr(sm, f"encode_{name}")(data.draw(KINDS[name]))
    decode = getattr(sm, f"decode_{name}")
    fields = msgpack.unpackb(sent)
    fields[data.draw(st.integers(2, len(fields) - 1))] = data.draw(values)
    at = data.draw(st.integers(0, len(sent) - 1))
    for changed in (
        msgpack.packb(fields),
        sent[:at] + bytes([data.draw(st.integers(0, 255))]) + sent[at + 1 :],
        sent[:at],
    ):
        try:
            found = decode(changed)
        except MessageError:
            continue
        assert decode(getattr(sm, f"encode_{name}")(found)) == found


@pytest.mark.parametrize(
    "decode, kind, fields, rule",
    [
        (sm.decode_bundle, 10, [[b"x"] * 9], "at most 8 messages"),
        (sm.decode_key_request, 12, [b"short", 0, False], "a session has 16 bytes"),
        (sm.decode_keys, 13, [SESSION, 0, bytes(31), bytes(32), b"", b""], "32 bytes each"),
        (sm.decode_keys, 13, [SESSION, 0, bytes(32), bytes(32), bytes(49), b""], "an identity and a signature"),
        (sm.decode_roster, 14, [SESSION, bytes(8), bytes(64), []], "clients are sorted counts"),
        (sm.decode_roster, 14, [SESSION, bytes(4), bytes(33), []], "each client named has 32 bytes"),
        (sm.decode_shares, 15, [SESSION, -1, b"", b""], "a client that deals them"),
        (sm.decode_masked_reply, 17, [SESSION, 0, bytes(9), SESSION], "fill their shape"),
        (sm.decode_unmask_request, 18, [SESSION, bytes(3)], "4-byte numbers"),
    ],
)
def test_a_broken_rule_is_said(decode, kind, fields, rule):
    with pytest.raises(MessageError, match=rule):
        decode(msgpack.packb([VERSION, kind, *fields]))
