"""The messages of a secure sum (kinds 10 to 19). Each names its sum's session; an answer its client too.

    a bundle of requests     ->  their answers, each one or the words of an error
    key request              ->  keys: the client's own of this sum, and its card where that is asked
    roster                   ->  shares: those dealt to each other client, sealed
    masked order             ->  masked reply
    unmask request           ->  unmasked: a share of each client that dealt some

Several travel in one bundle, so that the keys of the next sum cost no exchange of their own. Reading checks lengths and
ranges and nothing else: what a client believes is `secure_client`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any

import numpy as np

from .. import errors
from ..errors import EngineError, SeedtuneError
from ..privacy.public import (
    IDENTITY_BYTES,
    KEY_BYTES,
    SEALED_BYTES,
    SESSION_BYTES,
    SHARE_BYTES,
    SIGNATURE_BYTES,
    Card,
)
from .binding import SHOWN_BYTES
from .wire import array_of, check, fields_of, is_count, kind_of, packed

BUNDLE, ANSWERS, KEY_REQUEST, KEYS, ROSTER, SHARES, MASKED_ORDER, MASKED_REPLY, UNMASK_REQUEST, UNMASKED = range(10, 20)
MOST_IN_BUNDLE = 8


@dataclass(frozen=True)
class KeyRequest:
    """introduce: whether the server lacks the client's card."""

    session: bytes
    round: int
    introduce: bool


@dataclass(frozen=True)
class Keys:
    """mask: the client's public key for this sum's masks. agreement: that of the whole run; with the identity and the
    signature of the client's card, where it was asked."""

    session: bytes
    client: int
    mask: bytes
    agreement: bytes
    identity: bytes = b""
    signature: bytes = b""

    @property
    def card(self) -> Card | None:
        return Card(self.client, self.agreement, self.identity, self.signature) if self.identity else None


@dataclass(frozen=True)
class RosterMessage:
    """Who may take part, sorted, each with its key for masks; and the cards of those the client was not told of yet."""

    session: bytes
    masks: Mapping[int, bytes]
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True)
class Shares:
    """By other client, what was dealt to it."""

    session: bytes
    client: int
    sealed: Mapping[int, bytes]


@dataclass(frozen=True)
class MaskedOrder:
    """order: an encoded `Order`. sealed: by dealer, the shares dealt to this client."""

    session: bytes
    order: bytes
    sealed: Mapping[int, bytes]


@dataclass(frozen=True)
class MaskedReply:
    """words: uint64, the client's numbers as `contribution` lays them out, coded and masked. shown: the first bytes of
    the binding that the masks follow from (`binding`)."""

    session: bytes
    client: int
    words: np.ndarray
    shown: bytes


@dataclass(frozen=True)
class UnmaskRequest:
    """survivors: the clients whose masked replies came, sorted."""

    session: bytes
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Unmasked:
    """By dealer, the share revealed."""

    session: bytes
    client: int
    shares: Mapping[int, bytes]


Answer = Keys | Shares | MaskedReply | Unmasked
"""What a client answers in a sum."""


def encode_bundle(requests: Sequence[bytes]) -> bytes:
    return packed(BUNDLE, [list(requests)])


def decode_bundle(data: bytes) -> list[bytes]:
    """
    Raises:
        MessageError: not a bundle of a few messages. As every `decode_*` here, for a message that is none of its kind.
    """
    (requests,) = fields_of(data, BUNDLE, 1)
    _check_few(requests, bytes)
    return requests


def orders_in(bundle: bytes) -> list[bytes]:
    """The encoded orders that a bundle's masked orders hold.

    Raises:
        MessageError: not a bundle, or a masked order in it that is none.
    """
    return [decode_masked_order(part).order for part in decode_bundle(bundle) if kind_of(part) == MASKED_ORDER]


def encode_answers(answers: Sequence[bytes | Exception]) -> bytes:
    """An error travels as its name and its words."""
    each = [words_of_error(answer) if isinstance(answer, Exception) else answer for answer in answers]
    return packed(ANSWERS, [each])


def decode_answers(data: bytes) -> list[bytes | Exception]:
    (answers,) = fields_of(data, ANSWERS, 1)
    _check_few(answers, bytes | str)
    return [error_from(answer) if isinstance(answer, str) else answer for answer in answers]


def encode_key_request(request: KeyRequest) -> bytes:
    return packed(KEY_REQUEST, [request.session, request.round, request.introduce])


def decode_key_request(data: bytes) -> KeyRequest:
    session, round_, introduce = fields_of(data, KEY_REQUEST, 3)
    _check_session(session)
    check(is_count(round_) and type(introduce) is bool, "a key request has a round and says whether a card is asked")
    return KeyRequest(session, round_, introduce)


def encode_keys(keys: Keys) -> bytes:
    return packed(KEYS, [keys.session, keys.client, keys.mask, keys.agreement, keys.identity, keys.signature])


def decode_keys(data: bytes) -> Keys:
    session, client, mask, agreement, identity, signature = fields_of(data, KEYS, 6)
    _check_session(session)
    check(is_count(client), "keys have a client")
    check(_is_bytes(mask, KEY_BYTES) and _is_bytes(agreement, KEY_BYTES), f"keys have {KEY_BYTES} bytes each")
    is_card = _is_bytes(identity, IDENTITY_BYTES) and _is_bytes(signature, SIGNATURE_BYTES)
    check(is_card or identity == signature == b"", "a card has an identity and a signature")
    return Keys(session, client, mask, agreement, identity, signature)


def encode_roster(roster: RosterMessage) -> bytes:
    cards = [[card.client, card.agreement, card.identity, card.signature] for card in roster.cards]
    return packed(ROSTER, [roster.session, *_columns(roster.masks), cards])


def decode_roster(data: bytes) -> RosterMessage:
    session, clients, masks, cards = fields_of(data, ROSTER, 4)
    _check_session(session)
    check(isinstance(cards, list), "a roster's cards are a list")
    return RosterMessage(session, _by_client(clients, masks, KEY_BYTES), tuple(map(_card, cards)))


def encode_shares(shares: Shares) -> bytes:
    return packed(SHARES, [shares.session, shares.client, *_columns(shares.sealed)])


def decode_shares(data: bytes) -> Shares:
    session, client, clients, sealed = fields_of(data, SHARES, 4)
    _check_session(session)
    check(is_count(client), "shares have a client that deals them")
    return Shares(session, client, _by_client(clients, sealed, SEALED_BYTES))


def encode_masked_order(order: MaskedOrder) -> bytes:
    return packed(MASKED_ORDER, [order.session, order.order, *_columns(order.sealed)])


def decode_masked_order(data: bytes) -> MaskedOrder:
    session, order, clients, sealed = fields_of(data, MASKED_ORDER, 4)
    _check_session(session)
    check(isinstance(order, bytes), "a masked order holds an order")
    return MaskedOrder(session, order, _by_client(clients, sealed, SEALED_BYTES))


def encode_masked_reply(reply: MaskedReply) -> bytes:
    return packed(MASKED_REPLY, [reply.session, reply.client, reply.words.astype("<u8").tobytes(), reply.shown])


def decode_masked_reply(data: bytes) -> MaskedReply:
    session, client, words, shown = fields_of(data, MASKED_REPLY, 4)
    _check_session(session)
    check(is_count(client) and isinstance(words, bytes), "a masked reply has a client and words")
    check(_is_bytes(shown, SHOWN_BYTES), f"a masked reply shows {SHOWN_BYTES} bytes of its order's digest")
    return MaskedReply(session, client, array_of(words, "<u8", (len(words) // 8,), "a masked reply's words"), shown)


def encode_unmask_request(request: UnmaskRequest) -> bytes:
    return packed(UNMASK_REQUEST, [request.session, np.array(request.survivors, "<i4").tobytes()])


def decode_unmask_request(data: bytes) -> UnmaskRequest:
    session, survivors = fields_of(data, UNMASK_REQUEST, 2)
    _check_session(session)
    return UnmaskRequest(session, _clients(survivors))


def encode_unmasked(unmasked: Unmasked) -> bytes:
    return packed(UNMASKED, [unmasked.session, unmasked.client, *_columns(unmasked.shares)])


def decode_unmasked(data: bytes) -> Unmasked:
    session, client, clients, shares = fields_of(data, UNMASKED, 4)
    _check_session(session)
    check(is_count(client), "revealed shares have a client that held them")
    return Unmasked(session, client, _by_client(clients, shares, SHARE_BYTES))


def words_of_error(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def error_from(text: str) -> Exception:
    """The error of that name where it is one of ours, so that it counts as what it is."""
    name, _, words = text.partition(": ")
    kind: Any = getattr(errors, name, None)
    is_ours = isinstance(kind, type) and issubclass(kind, SeedtuneError)
    return kind(words) if is_ours else EngineError(text)


def _card(fields: Any) -> Card:
    check(isinstance(fields, list) and len(fields) == 4, "a card has four fields")
    client, *sized = fields
    sizes = (KEY_BYTES, IDENTITY_BYTES, SIGNATURE_BYTES)
    check(is_count(client) and all(map(_is_bytes, sized, sizes)), "a card has a client and keys of their sizes")
    return Card(client, *sized)


def _columns(by_client: Mapping[int, bytes]) -> list[bytes]:
    """The clients, sorted, and what each has, one after the other."""
    clients = sorted(by_client)
    return [np.array(clients, "<i4").tobytes(), b"".join(by_client[client] for client in clients)]


def _by_client(clients: object, data: Any, size: int) -> dict[int, bytes]:
    named = _clients(clients)
    check(_is_bytes(data, size * len(named)), f"each client named has {size} bytes")
    return {client: data[i * size : (i + 1) * size] for i, client in enumerate(named)}


def _clients(raw: Any) -> tuple[int, ...]:
    check(isinstance(raw, bytes) and len(raw) % 4 == 0, "clients are 4-byte numbers")
    clients = tuple(np.frombuffer(raw, "<i4").tolist())
    check(list(clients) == sorted(set(clients)) and min(clients, default=0) >= 0, "clients are sorted counts")
    return clients


def _check_session(session: object) -> None:
    check(_is_bytes(session, SESSION_BYTES), f"a session has {SESSION_BYTES} bytes")


def _check_few(parts: object, kind: type | UnionType) -> None:
    few = isinstance(parts, list) and len(parts) <= MOST_IN_BUNDLE and all(isinstance(part, kind) for part in parts)
    check(few, f"a bundle has at most {MOST_IN_BUNDLE} messages")


def _is_bytes(value: object, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size
