"""What travels between server and clients: orders down, replies up, as bytes.

Each is framed as `wire` says; arrays of numbers are raw little-endian bytes, and scalars that are all signs (votes, and
what came of them) are bits. No pickle, no code. `decode_*` checks every length, range and number before anything is
used. A message's cost is the length of these bytes: what is reported as traffic is what was encoded. Message encoding
knows neither models nor files.
"""

from dataclasses import dataclass
from math import inf, prod
from typing import Any

import msgpack
import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..errors import MessageError, NotFinite
from ..foreign_text import describe
from ..space import DIGEST_BYTES, Space, Weights
from ..zo.trajectory import MOST_RATIO, RoundRecord, broken_rule
from .wire import array_of, check, fields_of, is_count, packed, unpacked

ORDER, REPLY = 0, 1
_SLOPES = (0, 3, 5)  # none; two a block and one of the whole step
_MOST_BITS = 2**20  # signs in one array, so that few bytes do not unpack to gigabytes; more of them travel as numbers


@dataclass(frozen=True)
class Order:
    """What the server asks of one client in one round.

    digest: of the weights that the client must hold when it begins.
    rate: learning rate of its local steps; rate_ratio: block 2's over block 1's, None: as the run's header says.
    missed: packed records of the rounds since the client last took part, oldest first.
    weights: the packed weights themselves, where the protocol or the shorter way says so; then `missed` is empty.
    """

    round: int
    client: int
    digest: bytes
    rate: float
    missed: tuple[bytes, ...] = ()
    weights: bytes = b""
    rate_ratio: float | None = None


@dataclass(frozen=True)
class Reply:
    """What one client sends back.

    scalars: projected gradients of its steps, or their signs, float32 [H, P]; empty where weights are sent.
    loss: mean training loss over the steps; may be NaN where all steps were skipped.
    num_skipped: steps without an update, since a loss was not finite.
    num_flops: floating-point operations of the forwards (`zo.meter`); num_prefix_flops: those of block 1 among them,
        where the model is split.
    is_fixed_size: scalars travel in 4 bytes each, whatever they are, so that its length tells nothing; not sent.
    slopes: two numbers a block and one of the step, where the round estimates learning rates (`slopes`).
    scalar_rms: root mean square of the projected gradients where weights are sent in their place; None otherwise.
    """

    round: int
    client: int
    num_examples: int
    num_forwards: int
    loss: float
    scalars: np.ndarray
    weights: bytes = b""
    num_skipped: int = 0
    num_flops: int = 0
    scalar_rms: float | None = None
    num_prefix_flops: int = 0
    is_fixed_size: bool = False
    slopes: tuple[float, ...] = ()


def encode_order(order: Order) -> bytes:
    rate, missed = float(order.rate), list(order.missed)
    ratio = [] if order.rate_ratio is None else [float(order.rate_ratio)]
    return packed(ORDER, [order.round, order.client, order.digest, rate, missed, order.weights, *ratio])


def decode_order(data: bytes) -> Order:
    """
    Raises:
        MessageError: not an order of this version, or a field out of its range.
    """
    round_, client, digest, rate, missed, weights, *ratio = fields_of(data, ORDER, 6, 7)
    check(is_count(round_) and is_count(client), "an order's round and client are counts")
    check(isinstance(digest, bytes) and len(digest) == DIGEST_BYTES, f"an order's digest has {DIGEST_BYTES} bytes")
    check(isinstance(rate, float) and 0 < rate < inf, "an order's learning rate is positive and finite")
    as_bytes = isinstance(missed, list) and all(isinstance(record, bytes) for record in missed)
    check(as_bytes and isinstance(weights, bytes), "missed rounds and weights come as bytes")
    check(all(_is_ratio(value) for value in ratio), "a ratio of learning rates is positive and finite")
    return Order(round_, client, digest, rate, tuple(missed), weights, *ratio)


def encode_reply(reply: Reply) -> bytes:
    steps, directions = reply.scalars.shape
    scalars = reply.scalars.astype("<f4").tobytes() if reply.is_fixed_size else _pack_scalars(reply.scalars)
    counts = [reply.round, reply.client, reply.num_examples, reply.num_forwards]
    first = reply.num_prefix_flops
    flops = [first, reply.num_flops - first] if first else reply.num_flops
    more: list[Any] = [reply.num_skipped, flops, None if reply.scalar_rms is None else float(reply.scalar_rms)]
    more += [list(map(float, reply.slopes))] if reply.slopes else []
    return packed(REPLY, [*counts, float(reply.loss), steps, directions, scalars, reply.weights, *more])


def decode_reply(data: bytes) -> Reply:
    """
    Raises:
        MessageError: not a reply of this version, a field out of its range, or an infinite number.
    """
    fields = fields_of(data, REPLY, 12, 13)
    round_, client, examples, forwards, loss, steps, directions, raw, weights, skipped, flops, rms, *more = fields
    counts = (round_, client, examples, forwards, steps, directions, skipped)
    check(all(is_count(value) for value in counts), "a reply's counts are whole numbers from 0 to 2^31")
    check(isinstance(loss, float) and isinstance(weights, bytes), "a reply's loss is a number, its weights bytes")
    blocks = flops if isinstance(flops, list) else [0, flops]
    whole = len(blocks) == 2 and all(type(count) is int and 0 <= count < 2**62 for count in blocks)
    check(whole, "a reply's operations, or those of its two blocks, are whole numbers from 0 to 2^62")
    check(abs(loss) != inf, "a reply's loss is finite, or NaN where all steps were skipped")
    check(rms is None or (type(rms) is float and 0 <= rms < inf), "a root mean square is finite and not negative")
    slopes = more[0] if more else []
    numbers = isinstance(slopes, list) and all(type(value) is float and abs(value) < inf for value in slopes)
    check(numbers and len(slopes) in _SLOPES, "slopes are two finite numbers a block and one of the step")
    scalars = _unpack_scalars(raw, (steps, directions), "a reply's scalars")
    check(not np.isinf(scalars).any(), "a reply's scalars are finite, or NaN where a step was skipped")
    return Reply(
        round_, client, examples, forwards, loss, scalars, weights, skipped, sum(blocks), rms, blocks[0],
        slopes=tuple(slopes),
    )  # fmt: skip


def pack_record(record: RoundRecord) -> bytes:
    """One round as it travels to a client that missed it: about 60 bytes, and 4 a scalar or a bit a sign."""
    clients, factors = np.array(record.clients, "<i4").tobytes(), record.factors.astype("<f8").tobytes()
    shape, scalars = list(record.scalars.shape), _pack_scalars(record.scalars)
    ratio = [] if record.rate_ratio is None else [record.rate_ratio]
    return msgpack.packb([record.round, clients, shape, scalars, factors, record.digest, *ratio])


def unpack_record(data: bytes) -> RoundRecord:
    """
    Raises:
        MessageError: bytes that are no record, or one that breaks a rule of records, such as infinite numbers.
    """
    fields = unpacked(data)
    check(isinstance(fields, list) and len(fields) in (6, 7), "a round's record has six fields, or seven")
    round_, clients, shape, scalars, factors, digest, *ratio = fields
    check(is_count(round_), "a record's round is a count")
    check(isinstance(shape, list) and len(shape) == 3 and all(map(is_count, shape)), "scalars have three dimensions")
    check(isinstance(clients, bytes) and len(clients) % 4 == 0, "clients are 4-byte numbers")
    check(isinstance(digest, bytes), "a record's digest comes as bytes")
    values = _unpack_scalars(scalars, tuple(shape), "a record's scalars")
    steps = array_of(factors, "<f8", (shape[0],), "a record's factors")
    check(all(_is_ratio(value) for value in ratio), "a ratio of learning rates is positive and finite")
    numbers = tuple(np.frombuffer(clients, "<i4").tolist())
    record = RoundRecord(round_, numbers, values, steps, digest, rate_ratio=ratio[0] if ratio else None)
    fault = broken_rule(record)
    check(fault is None, f"in a record, {fault}")
    return record


def _is_ratio(value: Any) -> bool:
    return type(value) is float and 0 < value <= MOST_RATIO


def pack_weights(weights: Weights) -> bytes:
    """Weights as they travel: safetensors. Cost: one copy of them."""
    return save_tensors({name: tensor.contiguous() for name, tensor in weights.items()})


def unpack_weights(data: bytes, space: Space) -> Weights:
    """
    Raises:
        MessageError: not readable, or other tensors, shapes or dtypes than `space` has.
        NotFinite: numbers that are not finite.
    """
    try:
        weights = load_tensors(data)
    except Exception as error:  # not only its own: a dtype that torch lacks is a KeyError
        raise MessageError(f"weights in a message are not readable: {describe(error)}") from None
    sent = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in weights.items()}
    check(sent == {spec.name: (spec.shape, spec.dtype) for spec in space.tensors}, "weights fill the tuned space")
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise NotFinite("a message breaks a rule: weights are finite")
    return weights


def _pack_scalars(values: np.ndarray) -> bytes:
    """float32; or, where every one is 1, -1, 0 or NaN, a bit each (1: minus) and, if some are 0 or NaN, a second one
    (1: it is; the first bit then says which, 1: NaN). Lossless; 4, 1/8 or 1/4 bytes a scalar, which tells them apart.
    """
    raw = values.astype("<f4").tobytes()
    flat = np.frombuffer(raw, "<f4")
    if not 0 < flat.size <= _MOST_BITS:
        return raw
    is_silent = np.isnan(flat) | (flat == 0)
    bits = np.packbits([~(flat >= 0), is_silent][: 1 + is_silent.any()], axis=1, bitorder="little").tobytes()
    return bits if _from_bits(bits, flat.size).tobytes() == raw else raw


def _unpack_scalars(raw: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    size = prod(shape)
    as_bits = isinstance(raw, bytes) and 0 < size <= _MOST_BITS and len(raw) in (-(-size // 8), 2 * -(-size // 8))
    if not as_bits:
        return array_of(raw, "<f4", shape, what)
    values = _from_bits(raw, size)
    check(_pack_scalars(values) == raw, f"{what} leave no bit over where they are signs")
    return values.reshape(shape)


def _from_bits(bits: bytes, size: int) -> np.ndarray:
    rows = np.frombuffer(bits, np.uint8).reshape(-1, -(-size // 8))
    is_minus, *is_silent = np.unpackbits(rows, axis=1, count=size, bitorder="little").astype(bool)
    values = np.where(is_minus, np.float32(-1), np.float32(1))
    for silent in is_silent:
        values[silent] = np.where(is_minus[silent], np.float32("nan"), np.float32(0))
    return values
