"""What everybody may know of a secure sum: who takes part, with which public keys. Sizes are in bytes.

Nothing here is secret and nothing is computed but a digest, so that messages can be read without `cryptography`.
"""

from dataclasses import dataclass
from hashlib import sha256

from ..errors import MessageError

SESSION_BYTES, SEED_BYTES, SHARE_BYTES, KEY_BYTES = 16, 16, 16, 32
SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Two shares and the tag that says they were not altered."""
IDENTITY_BYTES, SIGNATURE_BYTES = 49, 96
"""Of ECDSA on P-384: a compressed point, two numbers."""


@dataclass(frozen=True)
class Card:
    """A client's key of agreement, the identity that it says it has, and that identity's signature."""

    client: int
    agreement: bytes
    identity: bytes
    signature: bytes


@dataclass(frozen=True)
class Peer:
    """A client's public keys: of the whole run, under which shares are sealed, and of this sum's masks."""

    client: int
    agreement: bytes
    mask: bytes


@dataclass(frozen=True)
class Roster:
    """Who may take part in a sum, sorted by client; a client's place is its point of Shamir's shares.

    context: digest of what all clients must have in common beside their keys, such as the run's recipe.

    Raises:
        MessageError: fewer than `threshold` clients, or so many that t of them are no majority; not sorted; a key that
            two of them have.
    """

    session: bytes
    round: int
    threshold: int
    peers: tuple[Peer, ...]
    context: bytes = b""

    def __post_init__(self):
        clients, keys = self.clients, [key for peer in self.peers for key in (peer.agreement, peer.mask)]
        if not self.threshold <= len(clients) < 2 * self.threshold:
            raise MessageError(
                f"a roster of {len(clients)} clients, where a secure sum of threshold {self.threshold} has at least "
                f"{self.threshold} and less than {2 * self.threshold}"
            )
        if list(clients) != sorted(set(clients)):
            raise MessageError("a roster names its clients once each, in order")
        if len(set(keys)) < len(keys) or any(len(key) != KEY_BYTES for key in keys):
            raise MessageError(f"a roster's keys have {KEY_BYTES} bytes each and no two of them are the same")

    @property
    def clients(self) -> tuple[int, ...]:
        return tuple(peer.client for peer in self.peers)

    @property
    def digest(self) -> bytes:
        """32 bytes that change with anything in it."""
        parts = [self.session, self.context, *(number.to_bytes(8, "little") for number in (self.round, self.threshold))]
        for peer in self.peers:
            parts += [peer.client.to_bytes(8, "little"), peer.agreement, peer.mask]
        return sha256(b"".join(parts)).digest()
