"""What a client must still know of its secure sums when the next message comes, as bytes.

`Own` is kept for the whole run, a `Part` for one sum. Both hold secrets: where they are kept says `secure_client`.
`Answered` holds none and outlasts them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgpack

from ..privacy.public import Card, Peer, Roster


@dataclass(frozen=True)
class Own:
    """agreement: the seed of the key of the whole run. cards: of the clients that it was told of, itself included.
    sessions: of the sums it has a part in, oldest first."""

    agreement: bytes = field(repr=False)
    cards: Mapping[int, Card] = field(default_factory=dict)
    sessions: tuple[bytes, ...] = ()

    @property
    def met(self) -> dict[int, bytes]:
        """The identities that peers came with."""
        return {client: card.identity for client, card in self.cards.items()}

    def packed(self) -> bytes:
        cards = [[card.client, card.agreement, card.identity, card.signature] for card in self.cards.values()]
        return msgpack.packb([self.agreement, cards, self.sessions])

    @classmethod
    def unpacked(cls, data: bytes) -> "Own":
        agreement, cards, sessions = msgpack.unpackb(data)
        known = {fields[0]: Card(*fields) for fields in cards}
        return cls(agreement, known, tuple(sessions))


@dataclass(frozen=True)
class Answered:
    """What a client must never forget of its sums, also across restarts; nothing of it is secret.

    round, binding: of the last order that it masked a reply to. revealed: the last round whose sum it helped to unmask,
    and the survivors.
    """

    round: int = -1
    binding: bytes = b""
    revealed: tuple[int, tuple[int, ...]] = (-1, ())

    def packed(self) -> bytes:
        return msgpack.packb([self.round, self.binding, self.revealed])

    @classmethod
    def unpacked(cls, data: bytes) -> "Answered":
        round_, binding, (last, survivors) = msgpack.unpackb(data)
        return cls(round_, binding, (last, tuple(survivors)))


@dataclass(frozen=True)
class Part:
    """A client's part in one sum, as far as it has come.

    peers: of the roster, empty before it came. kept: the shares that it dealt to itself. held: those dealt to it, by
    dealer, once its values were sent. answered: by kind of request, the digest of the one that was answered, and the
    answer, empty where that is too long to keep, or the words of a refusal.
    """

    session: bytes
    round: int
    mask_seed: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)
    peers: tuple[Peer, ...] = ()
    kept: bytes = field(default=b"", repr=False)
    held: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    answered: Mapping[int, tuple[bytes, bytes | str]] = field(default_factory=dict, repr=False)

    def roster(self, threshold: int, context: bytes) -> Roster:
        return Roster(self.session, self.round, threshold, self.peers, context)

    def with_answer(self, kind: int, request: bytes, answer: bytes | str) -> "Part":
        """Remember what the request of this kind and digest was answered."""
        return replace(self, answered={**self.answered, kind: (request, answer)})

    def forgotten(self) -> "Part":
        """Without its secrets, which nothing needs once shares were revealed."""
        return replace(self, mask_seed=b"", self_seed=b"", kept=b"", held={})

    def packed(self) -> bytes:
        peers = [[peer.client, peer.agreement, peer.mask] for peer in self.peers]
        pairs = [list(self.held.items()), [[kind, *pair] for kind, pair in self.answered.items()]]
        return msgpack.packb([self.session, self.round, self.mask_seed, self.self_seed, peers, self.kept, *pairs])

    @classmethod
    def unpacked(cls, data: bytes) -> "Part":
        session, round_, mask_seed, self_seed, peers, kept, held, answered = msgpack.unpackb(data)
        known = {kind: (request, answer) for kind, request, answer in answered}
        return cls(
            session, round_, mask_seed, self_seed, tuple(Peer(*fields) for fields in peers), kept, dict(held), known
        )
