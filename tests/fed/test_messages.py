"""Messages come back as they went, cost what their bytes are, and bytes that are no message raise MessageError."""

import json
import struct
import tracemalloc
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
from fuzzed import fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from seedtune.errors import MessageError
from seedtune.fed import messages
from seedtune.fed.messages import (
    Order,
    Reply,
    decode_order,
    decode_reply,
    encode_order,
    encode_reply,
    pack_record,
    pack_weights,
    unpack_record,
    unpack_weights,
)
from seedtune.fed.wire import VERSION
from seedtune.space import ALIGNMENT, Space, TensorSpec, digest
from seedtune.zo.trajectory import RoundRecord

NAN, INF = float("nan"), float("inf")
STATE = bytes(range(16))
ORDER = Order(3, 2, STATE, 1e-3, (b"one", b"two"))
REPLY = Reply(3, 2, 100, 2, 0.25, np.array([[0.5]], np.float32))
RECORD = RoundRecord(7, (1, 4), np.array([[[0.5, NAN]], [[-3.0, 2.0]]], np.float32), np.array([0.1, 0.2]), STATE)
WEIGHTS = {"a": torch.tensor([1.0, -0.0, 3e-39]), "b": torch.ones(2, 2).bfloat16(), "c": torch.tensor(2.0).half()}
SPACE = Space(
    tuple(TensorSpec(n, tuple(t.shape), str(t.dtype)[6:], i * ALIGNMENT) for i, (n, t) in enumerate(WEIGHTS.items()))
)
DECODERS = (decode_order, decode_reply, unpack_record, lambda data: unpack_weights(data, SPACE))


def refused(decode, data) -> str:
    with pytest.raises(MessageError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_reply(found: Reply, sent: Reply) -> None:
    assert (found.scalars.dtype, found.scalars.shape) == (np.float32, sent.scalars.shape)
    assert found.scalars.tobytes() == sent.scalars.tobytes()
    assert struct.pack("<d", found.loss) == struct.pack("<d", sent.loss)
    assert replace(found, scalars=0, loss=0) == replace(sent, scalars=0, loss=0)


def assert_same_record(found: RoundRecord, sent: RoundRecord) -> None:
    assert (found.round, found.clients, found.digest) == (sent.round, sent.clients, sent.digest)
    for got, gave in ((found.scalars, sent.scalars), (found.factors, sent.factors)):
        assert (got.dtype, got.shape, got.tobytes()) == (gave.dtype, gave.shape, gave.tobytes())


counts = st.integers(0, 2**31 - 1)
small_shapes = st.tuples(st.integers(0, 3), st.integers(0, 3))
scalars = small_shapes.flatmap(
    lambda shape: st.lists(
        st.floats(width=32, allow_infinity=False), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
    ).map(lambda some: np.array(some, np.float32).reshape(shape))
)


@given(
    st.builds(
        Order, counts, counts, st.binary(min_size=16, max_size=16),
        st.floats(0, exclude_min=True, allow_infinity=False), st.lists(st.binary(max_size=9), max_size=5).map(tuple),
        st.binary(max_size=9),
    )
)  # fmt: skip
@example(Order(0, 0, STATE, 1e-3, (b"",) * 12))
def test_an_order_comes_back_as_it_went(order):
    order = replace(order, missed=tuple(record + bytes(32) for record in order.missed))
    assert decode_order(encode_order(order)) == order


@given(
    st.builds(
        Reply, counts, counts, counts, counts, st.floats(allow_infinity=False), scalars, st.binary(max_size=9), counts,
        st.integers(0, 2**62 - 1), st.none() | st.floats(0, allow_infinity=False),
    )
)  # fmt: skip
def test_a_reply_comes_back_as_it_went(reply):
    assert_same_reply(decode_reply(encode_reply(reply)), reply)


@given(st.lists(counts, max_size=3, unique=True).map(sorted), small_shapes, st.booleans(), st.data())
def test_a_record_comes_back_as_it_went(clients, shape, shared, data):
    shape = (min(len(clients), 1) if shared else len(clients), *shape)
    size = int(np.prod(shape))
    number = st.floats(width=32, allow_infinity=False)
    values = np.array(data.draw(st.lists(number, min_size=size, max_size=size)), np.float32).reshape(shape)
    record = RoundRecord(7, tuple(clients), values, np.linspace(-1, 1e300, shape[0]), STATE)
    assert_same_record(unpack_record(pack_record(record)), record)


SIGNS = st.sampled_from([1.0, -1.0, 0.0, NAN]) | st.sampled_from([1.0, -1.0])


@given(st.lists(SIGNS, min_size=1, max_size=40))
@example([1.0] * 8)
@example([NAN] * 9)
@example([0.0])
def test_signs_travel_as_bits_to_the_bit(some):
    values, num_bits = np.array(some, np.float32), 1 if set(some) <= {1.0, -1.0} else 2
    reply = replace(REPLY, scalars=values.reshape(-1, 1))
    record = replace(RECORD, clients=(1, 4), scalars=values.reshape(1, -1, 1), factors=np.array([0.1]))
    assert_same_reply(decode_reply(encode_reply(reply)), reply)
    assert_same_record(unpack_record(pack_record(record)), record)
    num_bytes = num_bits * -(-len(some) // 8)
    assert len(encode_reply(reply)) == len(encode_reply(replace(reply, scalars=np.zeros((len(some), 0))))) + num_bytes
    assert messages._pack_scalars(values) == msgpack.unpackb(encode_reply(reply))[9]


@pytest.mark.parametrize("other", [0.5, -0.0, 2.0, np.float32(1) + np.float32(2**-23), -NAN])
def test_scalars_that_are_not_all_signs_travel_as_numbers(other):
    """A minus zero too: where it moves a weight that is minus zero, its sign decides."""
    reply = replace(REPLY, scalars=np.array([[1.0, other, 0.0]], np.float32))
    assert len(msgpack.unpackb(encode_reply(reply))[9]) == 12
    assert_same_reply(decode_reply(encode_reply(reply)), reply)


def test_more_signs_than_a_million_travel_as_numbers():
    for steps, num_bytes in ((2**20, 2**17), (2**20 + 1, 4 * 2**20 + 4)):
        reply = replace(REPLY, scalars=np.ones((steps, 1), np.float32))
        assert len(msgpack.unpackb(encode_reply(reply))[9]) == num_bytes
        assert decode_reply(encode_reply(reply)).scalars.sum() == steps


def test_weights_come_back_to_the_bit():
    found = unpack_weights(pack_weights(WEIGHTS), SPACE)
    assert digest(found) == digest(WEIGHTS)
    across = {"a": WEIGHTS["a"], "b": WEIGHTS["b"].t(), "c": WEIGHTS["c"]}
    assert digest(unpack_weights(pack_weights(across), SPACE)) == digest(across)


def test_numbers_of_other_types_are_sent_as_plain_ones():
    order = replace(ORDER, rate=np.float32(0.5))
    assert decode_order(encode_order(order)).rate == 0.5
    assert decode_order(encode_order(replace(ORDER, rate=1))).rate == 1.0
    reply = replace(REPLY, loss=np.float32(0.5), scalars=np.array([[0.5]]))
    assert decode_reply(encode_reply(reply)).scalars.dtype == np.float32


def test_a_reply_of_one_scalar_costs_tens_of_bytes():
    assert len(encode_reply(REPLY)) <= 42
    for shape in ((5, 1), (30, 1), (10, 10)):
        reply = replace(REPLY, round=1_000, client=200, num_examples=10_000, scalars=np.zeros(shape, np.float32),
                        num_flops=10**15)  # fmt: skip
        assert len(encode_reply(reply)) <= 50 + 4 * shape[0] * shape[1]


def test_operations_of_two_blocks_travel_where_there_are_two():
    both = replace(REPLY, num_flops=10**15 + 7, num_prefix_flops=7)
    whole = replace(both, num_prefix_flops=0)
    assert decode_reply(encode_reply(both)) == both and decode_reply(encode_reply(whole)) == whole
    assert len(encode_reply(both)) == len(encode_reply(whole)) + 2


def test_a_vote_costs_a_bit_a_step():
    """The rest of a message of one vote says who sends it, its loss and its cost."""
    assert len(encode_reply(replace(REPLY, scalars=np.array([[-1.0]], np.float32)))) <= 39
    for steps in (1, 30, 400):
        votes = replace(REPLY, scalars=np.ones((steps, 1), np.float32))
        record = replace(RECORD, scalars=np.ones((1, steps, 1), np.float32), factors=np.zeros(1))
        assert len(encode_reply(votes)) <= 41 + -(-steps // 8) and len(pack_record(record)) <= 60 + -(-steps // 8)


def test_a_missed_round_costs_tens_of_bytes():
    for clients, steps in ((1, 1), (3, 30), (10, 5)):
        record = replace(RECORD, clients=range(clients), scalars=np.zeros((clients, steps, 1), np.float32),
                         factors=np.zeros(clients))  # fmt: skip
        assert len(pack_record(record)) <= 60 + clients * (4 * steps + 8 + 4)


def order_of(*changes: tuple[int, object]) -> bytes:
    fields = [VERSION, 0, 3, 2, STATE, 1e-3, [b"one" * 11], b""]
    for place, value in changes:
        fields[place] = value
    return msgpack.packb(fields)


def reply_of(*changes: tuple[int, object]) -> bytes:
    fields = [VERSION, 1, 3, 2, 100, 2, 0.25, 1, 2, bytes(8), b"", 0, 0, None]
    for place, value in changes:
        fields[place] = value
    return msgpack.packb(fields)


def record_of(*changes: tuple[int, object]) -> bytes:
    fields = [7, struct.pack("<2i", 1, 4), [2, 1, 1], bytes(8), bytes(16), STATE]
    for place, value in changes:
        fields[place] = value
    return msgpack.packb(fields)


def test_the_messages_that_rules_are_tried_on_keep_them():
    assert decode_order(order_of()).missed == (b"one" * 11,)
    assert decode_reply(reply_of()).scalars.shape == (1, 2)
    assert unpack_record(record_of()).clients == (1, 4)


WHOLE = "a message is an array of version, kind and fields"
RATIO = "a ratio of learning rates is positive and finite"
SLOPES = "slopes are two finite numbers a block and one of the step"
AGREE = "a message's kind and number of fields agree"


@pytest.mark.parametrize(
    ("decode", "data", "rule"),
    [
        (decode_order, msgpack.packb(7), WHOLE),
        (decode_order, msgpack.packb([VERSION]), WHOLE),
        (decode_order, msgpack.packb([True, 0, 3, 2, STATE, 1e-3, [], b""]), WHOLE),
        (decode_reply, msgpack.packb([b"x" * 999, 1]), WHOLE),
        (decode_order, reply_of(), AGREE),
        (decode_reply, order_of(), AGREE),
        (decode_order, msgpack.packb([VERSION, 0, 3]), AGREE),
        (decode_order, msgpack.packb([VERSION, 0, 3, 2, STATE, 1e-3, [], b"", 0.5, 0.5]), AGREE),
        (decode_reply, msgpack.packb([*msgpack.unpackb(reply_of()), [], []]), AGREE),
        *((decode_order, msgpack.packb([VERSION, 0, 3, 2, STATE, 1e-3, [], b"", value]), RATIO)
          for value in (0, 0.0, -1.0, 2e6, INF, NAN, None, "w")),
        *((unpack_record, msgpack.packb([*msgpack.unpackb(record_of()), value]), RATIO)
          for value in (1, 0.0, -1.0, 2e6, INF, NAN, None, "w")),
        *((decode_reply, msgpack.packb([*msgpack.unpackb(reply_of()), value]), SLOPES)
          for value in ([1.0], [1.0, 2.0, NAN], [1.0, INF, 0.0], [1, 2, 3], [1.0] * 9, 3.0, None, b"one")),
        *((decode_order, order_of((place, value)), "an order's round and client are counts")
          for place in (2, 3) for value in (-1, 2**31, 0.0, None, True, b"1")),
        *((decode_order, order_of((4, value)), "an order's digest has 16 bytes") for value in (bytes(15), "a" * 16, 0)),
        *((decode_order, order_of((5, value)), "an order's learning rate is positive and finite")
          for value in (0.0, -1e-3, NAN, INF, 1, None)),
        *((decode_order, order_of((place, value)), "missed rounds and weights come as bytes")
          for place, value in ((6, None), (6, ["one"]), (6, b"one"), (7, None), (7, "w"))),
        *((decode_reply, reply_of((place, value)), "a reply's counts are whole numbers from 0 to 2^31")
          for place in (2, 3, 4, 5, 7, 8, 11) for value in (-1, 2**31, 1.0, None, False)),
        *((decode_reply, reply_of((place, value)), "a reply's loss is a number, its weights bytes")
          for place, value in ((6, None), (6, 1), (10, None), (10, "w"))),
        *((decode_reply, reply_of((6, value)), "a reply's loss is finite, or NaN where all steps were skipped")
          for value in (INF, -INF)),
        *((decode_reply, reply_of((12, value)),
           "a reply's operations, or those of its two blocks, are whole numbers from 0 to 2^62")
          for value in (-1, 2**62, 1.0, None, [], [1], [1, 2, 3], [-1, 2], [1, 2.0], [1, None])),
        *((decode_reply, reply_of((13, value)), "a root mean square is finite and not negative")
          for value in (-1.0, INF, NAN, 1, "w")),
        *((decode_reply, reply_of((9, value)), "a reply's scalars fill their shape (1, 2)")
          for value in (bytes(7), b"", "12345678", None, [0.5, 0.5])),
        *((decode, message((place, value)), f"{what} leave no bit over where they are signs")
          for decode, message, place, what in ((decode_reply, reply_of, 9, "a reply's scalars"),
                                               (unpack_record, record_of, 3, "a record's scalars"))
          for value in (b"\4", b"\x80", b"\0\0", b"\1\4", b"\x80\1")),
        (decode_reply, reply_of((7, 1), (8, 9), (9, bytes(3))), "a reply's scalars fill their shape (1, 9)"),
        (decode_reply, reply_of((7, 2**10), (8, 2**10 + 1), (9, bytes(2**17 + 2**7))),
         f"a reply's scalars fill their shape {(2**10, 2**10 + 1)}"),
        (decode_reply, reply_of((7, 2**31 - 1), (8, 2)), f"a reply's scalars fill their shape {(2**31 - 1, 2)}"),
        (decode_reply, reply_of((9, struct.pack("<2f", 1, -INF))),
         "a reply's scalars are finite, or NaN where a step was skipped"),
        (unpack_record, msgpack.packb([7]), "a round's record has six fields, or seven"),
        (unpack_record, msgpack.packb("record"), "a round's record has six fields, or seven"),
        *((unpack_record, record_of((0, value)), "a record's round is a count") for value in (-1, 2**31, 0.5)),
        *((unpack_record, record_of((2, value)), "scalars have three dimensions")
          for value in ([2, 1], [2, 1, 1, 1], [2, 1, -1], [2, 1, 1.0], None)),
        *((unpack_record, record_of((1, value)), "clients are 4-byte numbers") for value in (bytes(7), [1, 4], None)),
        *((unpack_record, record_of((5, value)), "a record's digest comes as bytes") for value in ("a" * 16, None)),
        (unpack_record, record_of((5, bytes(15))), "in a record, a digest has 16 bytes"),
        *((unpack_record, record_of((3, value)), "a record's scalars fill their shape (2, 1, 1)")
          for value in (bytes(9), b"", "12345678", None)),
        (unpack_record, record_of((1, b""), (2, [0, 2**31 - 1, 2**31 - 1]), (3, b""), (4, b"")),
         f"a record's scalars fill their shape {(0, 2**31 - 1, 2**31 - 1)}"),
        *((unpack_record, record_of((4, value)), "a record's factors fill their shape (2,)")
          for value in (bytes(8), b"", None)),
        *((unpack_record, record_of((1, struct.pack("<2i", *pair))), "in a record, clients are sorted counts")
          for pair in ((4, 1), (4, 4), (-1, 4))),
        (unpack_record, record_of((1, bytes(0))),
         "in a record, there is a set of scalars for each client, or one for all"),
        (unpack_record, record_of((1, struct.pack("<3i", 1, 2, 3))),
         "in a record, there is a set of scalars for each client, or one for all"),
        (unpack_record, record_of((3, struct.pack("<2f", 1, INF))),
         "in a record, scalars are finite, or NaN where a step was skipped"),
        *((unpack_record, record_of((4, struct.pack("<2d", 1, value))), "in a record, factors are finite")
          for value in (NAN, -INF)),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_rules(decode, data, rule):
    assert refused(decode, data) == f"a message breaks a rule: {rule}"


@pytest.mark.parametrize("decode", [decode_order, decode_reply])
def test_another_version_is_named(decode):
    assert refused(decode, msgpack.packb([VERSION - 1, 0, "whatever"])) == (
        f"message format {VERSION - 1} is not ours, {VERSION}: use the same seedtune on both sides"
    )


@pytest.mark.parametrize("decode", DECODERS[:3])
def test_bytes_that_are_no_message(decode):
    whole = encode_order(ORDER)
    assert refused(decode, whole + b"\0") == (
        f"a message of {len(whole) + 1} bytes is not readable: ExtraData: unpack(b) received extra data."
    )
    for data in (b"", whole[:-1], b"\xc1", msgpack.packb({1: 2}), msgpack.packb(msgpack.ExtType(5, b"x"))):
        assert refused(decode, data).startswith(f"a message of {len(data)} bytes is not readable: ")


def test_every_message_cut_short_or_made_longer_is_refused():
    for decode, data in ((decode_order, encode_order(ORDER)), (decode_reply, encode_reply(REPLY))):
        for size in range(len(data)):
            refused(decode, data[:size])
        refused(decode, data + b"\xc0")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": None}, "a message breaks a rule: weights fill the tuned space"),
        ({"d": torch.ones(1)}, "a message breaks a rule: weights fill the tuned space"),
        ({"a": torch.ones(3, 1)}, "a message breaks a rule: weights fill the tuned space"),
        ({"a": torch.ones(3).half()}, "a message breaks a rule: weights fill the tuned space"),
        ({"a": torch.ones(3, dtype=torch.int32)}, "a message breaks a rule: weights fill the tuned space"),
        ({"a": torch.ones(3).to(torch.float8_e4m3fn)}, "a message breaks a rule: weights fill the tuned space"),
        ({"a": torch.tensor([1, NAN, 1])}, "a message breaks a rule: weights are finite"),
        ({"b": torch.full((2, 2), INF).bfloat16()}, "a message breaks a rule: weights are finite"),
    ],
)
def test_weights_that_do_not_fit(changed, message):
    data = pack_weights({name: t for name, t in {**WEIGHTS, **changed}.items() if t is not None})
    assert refused(lambda data: unpack_weights(data, SPACE), data) == message


def declared(**tensors) -> bytes:
    """Weights that say more than they hold."""
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        pack_weights(WEIGHTS)[:-1],
        declared(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        declared(a={"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}),
        declared(a={"dtype": "F4", "shape": [0], "data_offsets": [0, 0]}),
        declared(a={"dtype": "??", "shape": [0], "data_offsets": [0, 0]}),
        (2**63 - 1).to_bytes(8, "little") + b"{}",
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_weights_that_are_not_readable(data):
    message = refused(lambda data: unpack_weights(data, SPACE), data)
    assert message.startswith(("weights in a message are not readable: ", "a message breaks a rule: weights fill"))


def huge(kind: bytes, size: int = 2**32 - 1, depth: int = 1) -> bytes:
    return (kind + struct.pack(">I", size)) * depth


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "data",
    [
        *(start + huge(kind) for kind in (b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf") for start in (b"", b"\x92\1")),
        huge(b"\xdd", 20_000, depth=4_000),
        huge(b"\xdf", 10_000, depth=4_000),
        b"\x91" * 20_000,
        msgpack.packb([VERSION, 1, 3, 2, 9, 9, 0.5, 2**31 - 1, 2**31 - 1, bytes(8), b"", 0]),
        msgpack.packb([VERSION, 1, 3, 2, 9, 9, 0.5, 0, 2**31 - 1, b"", b"", -1]),
        record_of((1, b""), (2, [0, 2**31 - 1, 2**31 - 1]), (3, b""), (4, b"")),
        record_of((2, [2, 2**31 - 1, 0]), (3, b"")),
    ],
    ids=lambda data: data[:8].hex(),
)
def test_declared_sizes_take_no_memory(decode, data):
    tracemalloc.start()
    try:
        refused(decode, data)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(
    max_size=24
)  # fmt: skip
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
near_messages = st.builds(
    lambda make, changes: make(*changes),
    st.sampled_from([order_of, reply_of, record_of]),
    st.lists(st.tuples(st.integers(0, 5), anything), max_size=3),
)
near_weights = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", "__metadata__"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "F16", "F64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "x"]),
            "shape": st.lists(st.integers(0, 4) | st.integers(0, 2**63), max_size=3),
            "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2),
        }
    ),
    max_size=3,
).map(lambda tensors: declared(**tensors) + bytes(40))


@fuzzed(300)
@given(st.binary(max_size=60) | anything.map(msgpack.packb) | near_messages | near_weights)
@example(save({"a": torch.zeros(0)}))
def test_nothing_but_message_errors_comes_out(data):
    for decode in DECODERS:
        try:
            decode(data)
        except MessageError as error:
            assert "\n" not in str(error) and len(str(error)) < 1_000


@fuzzed(60)
@given(st.data())
def test_a_flipped_bit_is_refused_or_decoded_within_the_rules(data):
    votes = replace(REPLY, scalars=np.array([[1.0, -1.0, NAN]], np.float32))
    decode, sent = data.draw(
        st.sampled_from([(decode_order, encode_order(ORDER)), (decode_reply, encode_reply(REPLY)),
                         (decode_reply, encode_reply(votes)),
                         (unpack_record, pack_record(RECORD)), (DECODERS[3], pack_weights(WEIGHTS))])
    )  # fmt: skip
    damaged = bytearray(sent)
    damaged[data.draw(st.integers(0, len(sent) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(damaged))
    except MessageError:
        return
    if decode is decode_order:
        assert decode_order(messages.encode_order(found)) == found
    elif decode is decode_reply:
        assert not np.isinf(found.scalars).any() and abs(found.loss) != INF
