"""A sum of which the server sees nothing but the sum: masks that cancel, after Bonawitz et al., CCS 2017.

    y_u = x_u + stream(b_u) + sum_{v > u} stream(s_uv, o) - sum_{v < u} stream(s_uv, o)      modulo 2^64

s_uv is what u and v agree on and o the binding, so the pairwise masks of two clients that stay cancel; b_u is u's own.
Every client deals shares of the seeds of both to all others, t of n. For one whose y came, the others reveal shares of
b_u; for one that dropped out, shares of the secret behind its s_uv; never both, since y_u would then be bare.

A client's steps are three records, each made of the one before: `Advertised`, `Shared`, `Ready`. The server's part is
`unmasked`.

Guarantees, where identities are known (`identities`) and 2 t > n:
    * a server that follows the protocol learns the sum over those that came, which are at least t, and nothing else;
      also with up to t - 1 of the clients at its side, but for what their own values tell of the sum;
    * a server that does not, and tells clients different survivors, learns one sum too, of at least n (2 t - n) / t
      clients: an honest client reveals one kind of share a peer, so of each peer one secret at most is known, and all
      but those summed must have been called dropped out to t clients. With c < 2 t - n clients at its side it still
      bares none of the others, where these are two or more;
    * all clients that take part know the same roster: keys are derived from its digest, so another one's shares cannot
      be opened and its masks do not cancel;
    * all clients that are summed measured under the same binding (a digest of their order, `fed.binding`): pairwise
      masks follow from it, so those of clients that were told unlike orders do not cancel, and all that such a server
      can unmask are sums, of the size named above, over clients that were told one and the same;
    * with t clients up to the end the sum is exact, whoever dropped out before.
It does not keep a client from adding what it likes, nor from making the sum fail.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from secrets import token_bytes

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..errors import MessageError
from .masks import agreed, derived, private_key, public_key, words
from .public import SEED_BYTES, SHARE_BYTES, Peer, Roster
from .shares import joined, split

_NO_NONCE = bytes(12)  # a key seals one text: it is derived from keys that its client made for this roster

Entropy = Callable[[int], bytes]


@dataclass(frozen=True)
class Advertised:
    """A client that made its keys of one sum. agreement: its key of the whole run. Everything but `mask` is secret."""

    client: int
    agreement: X25519PrivateKey = field(repr=False)
    mask_seed: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)

    @classmethod
    def fresh(cls, client: int, agreement: X25519PrivateKey, entropy: Entropy = token_bytes) -> "Advertised":
        """`entropy`: of the operating system; a test may give its own."""
        return cls(client, agreement, entropy(SEED_BYTES), entropy(SEED_BYTES))

    @property
    def mask(self) -> bytes:
        return public_key(self.mask_seed)

    def shared(self, roster: Roster) -> tuple["Shared", dict[int, bytes]]:
        """The next step, and for each other client the shares dealt to it, sealed. Cost: that of `shares.split`, twice.

        Raises:
            MessageError: a roster that does not have this client with its own keys.
        """
        own = Peer(self.client, self.agreement.public_key().public_bytes_raw(), self.mask)
        if own not in roster.peers:
            raise MessageError(f"a roster does not have client {self.client} with the keys that it sent")
        dealt = [a + b for a, b in zip(*(split(seed, roster.threshold, len(roster.peers))
                                         for seed in (self.self_seed, self.mask_seed)), strict=True)]  # fmt: skip
        sealed = {
            peer.client: _box(self.agreement, roster, self.client, peer).encrypt(_NO_NONCE, shares, None)
            for peer, shares in zip(roster.peers, dealt, strict=True)
            if peer != own
        }
        return Shared(self, roster, dealt[roster.peers.index(own)]), sealed


@dataclass(frozen=True)
class Shared:
    """A client that dealt its shares. kept: the two that it dealt to itself."""

    member: Advertised
    roster: Roster
    kept: bytes = field(repr=False)

    def opened(self, sealed: Mapping[int, bytes]) -> "Ready":
        """The next step, with the shares of those clients whose masks this one will wear.

        Raises:
            MessageError: shares that the client named has not sealed for this client and roster; or of too few.
        """
        peers = {peer.client: peer for peer in self.roster.peers}
        held = {dealer: self._opened(peers.get(dealer), dealer, box) for dealer, box in sealed.items()}
        held[self.member.client] = self.kept
        if len(held) < self.roster.threshold:
            raise MessageError(f"shares of {len(held)} clients came, a secure sum needs {self.roster.threshold}")
        return Ready(self.member, self.roster, held)

    def _opened(self, peer: Peer | None, dealer: int, box: bytes) -> bytes:
        client = self.member.client
        try:
            if peer is None or dealer == client:
                raise InvalidTag
            shares = _box(self.member.agreement, self.roster, client, peer, is_to_client=True).decrypt(
                _NO_NONCE, box, None
            )
        except InvalidTag:
            raise MessageError(
                f"shares in the name of client {dealer} are not sealed by it for client {client} and this roster: they "
                "were altered, or the server shows different rosters"
            ) from None
        if len(shares) != 2 * SHARE_BYTES:
            raise MessageError(f"client {dealer} dealt {len(shares)} bytes of shares in place of {2 * SHARE_BYTES}")
        return shares


@dataclass(frozen=True)
class Ready:
    """A client that can mask its values, once, and then reveal shares, once. held: the two shares that each client that
    takes part dealt to it, itself included."""

    member: Advertised
    roster: Roster
    held: Mapping[int, bytes] = field(repr=False)

    def masked(self, values: np.ndarray, binding: bytes) -> np.ndarray:
        """`values` (uint64) under this client's own mask and one for each other that takes part.

        binding: digest of what the values were measured under; masks cancel among clients with the same one alone.

        Cost: a stream of as many words for each.
        """
        member, own = self.member, private_key(self.member.mask_seed)
        out = values + words(_own_key(member.self_seed, self.roster), values.size)
        for peer in self.roster.peers:
            if peer.client in self.held and peer.client != member.client:
                out += _pair_mask(own, member.client, peer, self.roster, values.size, binding)
        return out

    def revealed(self, survivors: Collection[int]) -> dict[int, bytes]:
        """By client that dealt them: the share of its own mask's seed where it survived, else of its pairwise masks'.

        Raises:
            MessageError: survivors that are fewer than the threshold, did not all deal shares, or lack this client.
        """
        if len(survivors) < self.roster.threshold:
            raise MessageError(f"{len(survivors)} survivors, a secure sum has at least {self.roster.threshold}")
        if not set(survivors) <= set(self.held) or self.member.client not in survivors:
            raise MessageError(f"survivors are clients that dealt shares, with client {self.member.client} among them")
        return {
            dealer: shares[:SHARE_BYTES] if dealer in survivors else shares[SHARE_BYTES:]
            for dealer, shares in self.held.items()
        }


def unmasked(
    roster: Roster,
    dealers: Collection[int],
    survivors: Collection[int],
    total: np.ndarray,
    revealed: Mapping[int, Mapping[int, bytes]],
    binding: bytes,
) -> np.ndarray:
    """The sum of the survivors' values, uint64, from the sum of what they sent.

    Args:
        dealers: clients whose shares were passed on to all of them, so whose masks they wear.
        revealed: by client that answered, what it revealed by dealer.
        binding: as the survivors had it; what they masked under another one stays masked.

    Raises:
        MessageError: fewer than the threshold survived, or answered; or what they revealed of a client that dropped out
            is not the secret of the key that it sent.

    Cost: that of `shares.joined` a dealer, and a stream for each survivor, with each one that dropped out.
    """
    if len(survivors) < roster.threshold:
        raise MessageError(f"{len(survivors)} survivors, a secure sum has at least {roster.threshold}")
    place = {client: i for i, client in enumerate(roster.clients)}
    by_client = {peer.client: peer for peer in roster.peers}
    out = total.copy()
    for dealer in dealers:
        shares = {place[holder]: given[dealer] for holder, given in revealed.items()}
        seed = joined(shares, roster.threshold)
        if dealer in survivors:
            out -= words(_own_key(seed, roster), out.size)
            continue
        if public_key(seed) != by_client[dealer].mask:
            raise MessageError(f"the shares revealed of client {dealer}'s masks do not give its key: one is altered")
        own = private_key(seed)
        for survivor in survivors:  # what it would have added is minus what each of them did
            out += _pair_mask(own, dealer, by_client[survivor], roster, out.size, binding)
    return out


def _pair_mask(
    own: X25519PrivateKey, client: int, peer: Peer, roster: Roster, count: int, binding: bytes
) -> np.ndarray:
    """What `client` adds for its pair with `peer`: the other adds minus the same."""
    pair = sorted((client, peer.client))
    mask = words(derived(agreed(own, peer.mask), roster.digest, "pairwise mask", *pair, bound=binding), count)
    return mask if client < peer.client else np.negative(mask)


def _own_key(seed: bytes, roster: Roster) -> bytes:
    return derived(seed, roster.digest, "own mask")


def _box(
    own: X25519PrivateKey, roster: Roster, client: int, peer: Peer, is_to_client: bool = False
) -> ChaCha20Poly1305:
    """What seals from `client`, whose key `own` is, to `peer`; or the other way."""
    way = (peer.client, client) if is_to_client else (client, peer.client)
    return ChaCha20Poly1305(derived(agreed(own, peer.agreement), roster.digest, "shares", *way))
