"""A secure sum of a few clients in one process, with dropouts wherever a test wants them, and its plain twin."""

from collections.abc import Collection
from functools import cache

import numpy as np

from seedtune.privacy.fixed_point import WORD
from seedtune.privacy.masks import private_key
from seedtune.privacy.public import Peer, Roster
from seedtune.privacy.secure_sum import Advertised, Ready, unmasked

SESSION, BINDING = bytes(range(16)), bytes(range(32))


def seeded(seed: int):
    """Entropy that a seed gives: for tests alone."""
    return np.random.default_rng(seed).bytes


def advertised(clients: Collection[int], seed: int = 0) -> dict[int, Advertised]:
    """Each client with keys of its own."""
    entropy = seeded(seed)
    return {client: Advertised.fresh(client, private_key(entropy(16)), entropy) for client in clients}


def roster_of(members: dict[int, Advertised], threshold: int, round_: int = 0, session: bytes = SESSION) -> Roster:
    peers = (Peer(c, members[c].agreement.public_key().public_bytes_raw(), members[c].mask) for c in sorted(members))
    return Roster(session, round_, threshold, tuple(peers))


@cache
def sent_by(
    clients: tuple[int, ...], dealers: frozenset[int], threshold: int
) -> tuple[Roster, dict[int, Ready], dict[int, np.ndarray]]:
    """What the clients that dealt shares send of their `words_of`."""
    members = advertised(clients)
    roster = roster_of(members, threshold)
    dealt = {client: members[client].shared(roster) for client in dealers}
    ready, sent = {}, {}
    for client, (shared, _) in dealt.items():
        mine = {dealer: boxes[client] for dealer, (_, boxes) in dealt.items() if dealer != client}
        ready[client] = shared.opened(mine)
        sent[client] = ready[client].masked(words_of(client), BINDING)
    return roster, ready, sent


def summed(
    clients: tuple[int, ...],
    threshold: int,
    no_shares: Collection[int] = (),
    no_values: Collection[int] = (),
    no_reveal: Collection[int] = (),
) -> np.ndarray:
    """The server's sum where some clients drop out before they deal shares, send values, or reveal.

    Raises:
        MessageError: too few are left somewhere.
    """
    dealers = frozenset(clients) - set(no_shares)
    roster, ready, sent = sent_by(clients, dealers, threshold)
    survivors = dealers - set(no_values)
    total = sum((sent[client] for client in survivors), np.zeros_like(words_of(0)))
    revealed = {client: ready[client].revealed(survivors) for client in survivors - set(no_reveal)}
    return unmasked(roster, dealers, survivors, total, revealed, BINDING)


@cache
def words_of(client: int) -> np.ndarray:
    """Values over the whole range of words."""
    return np.frombuffer(seeded(1000 + client)(3 * 8), WORD)


def plain_sum(clients: Collection[int]) -> np.ndarray:
    """Of their words, modulo 2^64."""
    return sum((words_of(client) for client in clients), np.zeros_like(words_of(0)))
