"""The sum is that of plain integers whoever drops out, and clients refuse what would bare one of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2
from small_sums import BINDING, SESSION, advertised, plain_sum, roster_of, seeded, sent_by, summed, words_of

from seedtune.errors import MessageError
from seedtune.privacy.fixed_point import WORD
from seedtune.privacy.masks import private_key
from seedtune.privacy.public import Peer, Roster
from seedtune.privacy.secure_sum import Advertised, unmasked

CLIENTS, THRESHOLD = (2, 3, 5, 8, 13), 3
ALL = frozenset(CLIENTS)


def refused(rule: str):
    return pytest.raises(MessageError, match=rule)


@pytest.mark.parametrize("first", range(4))
def test_exact_under_every_dropout_pattern_of_five_clients(first):
    """All 4^5 patterns: each client stays, or drops out before shares, values, or what it reveals."""
    num_exact = 0
    for others in itertools.product(range(4), repeat=4):
        left = [{c for c, phase in zip(CLIENTS, (first, *others), strict=True) if phase == p} for p in range(4)]
        if len(left[0]) >= THRESHOLD:
            assert (summed(CLIENTS, THRESHOLD, *left[1:]) == plain_sum(ALL - left[1] - left[2])).all()
            num_exact += 1
        else:
            with refused(r"shares of \d clients came|\d survivors, a secure sum|\d shares of a secret are there"):
                summed(CLIENTS, THRESHOLD, *left[1:])
    assert num_exact == {0: 67, 1: 13, 2: 13, 3: 13}[first]


@pytest.mark.parametrize("num_clients, threshold", [(2, 2), (3, 2), (4, 3), (9, 5)])
def test_other_sizes(num_clients, threshold):
    clients = tuple(range(num_clients))
    dropped = clients[: num_clients - threshold]
    for phase in range(3):
        left = [dropped if phase == p else () for p in range(3)]
        came = clients if phase == 2 else set(clients) - set(dropped)
        assert (summed(clients, threshold, *left) == plain_sum(came)).all()


def test_what_one_client_sends_is_uniform_whatever_its_values():
    """Bytes of masked values over many sums, for zeros and for values that are all ones: chi-square of 256 bins each,
    and of the difference of both. A false alarm once in 10^6 a figure, were the sums' secrets not seeded."""
    quantile = chi2.isf(1e-6, 255)
    counts = []
    for bits in (0, 2**64 - 1):
        values, found = np.full(64, bits, WORD), np.zeros(256)
        for seed in range(40):
            members = advertised((0, 1), seed=seed + 1000 * (bits > 0))
            roster = roster_of(members, 2)
            shared, _ = members[0].shared(roster)
            _, boxes = members[1].shared(roster)
            sent = shared.opened({1: boxes[0]}).masked(values, BINDING)
            found += np.bincount(sent.view(np.uint8), minlength=256)
        expected = found.sum() / 256
        assert ((found - expected) ** 2 / expected).sum() < quantile
        counts.append(found)
    both = counts[0] + counts[1]
    assert ((counts[0] - counts[1]) ** 2 / both).sum() < quantile


def test_even_with_its_pairwise_masks_known_a_survivor_wears_its_own():
    """What the server knows after a sum of which all others are its own: still not one that came too late."""
    roster, masked, sent = sent_by(CLIENTS, ALL, THRESHOLD)
    revealed = {c: masked[c].revealed(ALL - {2}) for c in ALL - {2}}
    assert (
        unmasked(roster, ALL, ALL - {2}, plain_like(sent, ALL - {2}), revealed, BINDING) == plain_sum(ALL - {2})
    ).all()
    with_it = unmasked(roster, ALL, ALL - {2}, plain_like(sent, ALL), revealed, BINDING)
    assert not ((with_it - plain_sum(ALL - {2})) == words_of(2)).any()


def plain_like(sent, clients):
    return sum((sent[c] for c in clients), np.zeros_like(words_of(0)))


def test_a_client_reveals_one_kind_of_share_a_peer():
    _, masked, _ = sent_by(CLIENTS, ALL, THRESHOLD)
    own, pairwise = masked[2].revealed(ALL), masked[2].revealed(ALL - {5, 8})
    assert set(own) == set(pairwise) == ALL and all(len(share) == 16 for share in own.values())
    assert {c for c in ALL if own[c] != pairwise[c]} == {5, 8}


@pytest.mark.parametrize(
    "survivors, rule",
    [
        ({2, 3}, "2 survivors, a secure sum has at least 3"),
        ({3, 5, 8}, "with client 2 among them"),
        ({2, 3, 5, 99}, "survivors are clients that dealt shares"),
    ],
)
def test_survivors_that_would_bare_somebody_are_refused(survivors, rule):
    _, masked, _ = sent_by(CLIENTS, ALL, THRESHOLD)
    with refused(rule):
        masked[2].revealed(survivors)


def test_survivors_that_dealt_no_shares_are_refused():
    _, masked, _ = sent_by(CLIENTS, ALL - {13}, THRESHOLD)
    with refused("survivors are clients that dealt shares"):
        masked[2].revealed(ALL)


def peers(members=None) -> tuple[Peer, ...]:
    return roster_of(members or advertised(CLIENTS), THRESHOLD).peers


@pytest.mark.parametrize(
    "changed, rule",
    [
        (lambda p: p[:2], "a roster of 2 clients, where a secure sum of threshold 3 has at least 3 and less than 6"),
        (lambda p: (*p, replace(p[0], client=20, agreement=b"a" * 32, mask=b"b" * 32)), "a roster of 6 clients"),
        (lambda p: p[::-1], "once each, in order"),
        (lambda p: (p[0], replace(p[1], client=2), *p[2:]), "once each, in order"),
        (lambda p: (p[0], replace(p[1], mask=p[0].mask), *p[2:]), "no two of them are the same"),
        (lambda p: (p[0], replace(p[1], agreement=p[0].agreement), *p[2:]), "no two of them are the same"),
        (lambda p: (p[0], replace(p[1], mask=b"short"), *p[2:]), "32 bytes each"),
    ],
)
def test_rosters_that_are_none_are_refused(changed, rule):
    with refused(rule):
        Roster(SESSION, 0, THRESHOLD, changed(peers()))


@pytest.mark.parametrize(
    "changed",
    [
        lambda p: p[1:],
        lambda p: (replace(p[0], mask=b"x" * 32), *p[1:]),
        lambda p: (replace(p[0], agreement=b"x" * 32), *p[1:]),
    ],
)
def test_a_client_refuses_a_roster_without_its_own_keys(changed):
    members = advertised(CLIENTS)
    with refused("does not have client 2 with the keys that it sent"):
        members[2].shared(Roster(SESSION, 0, THRESHOLD, changed(peers(members))))


def test_a_key_that_gives_the_same_with_everybody_is_refused():
    members = advertised(CLIENTS)
    with refused("not one of X25519"):
        members[2].shared(Roster(SESSION, 0, THRESHOLD, (*peers(members)[:-1], Peer(13, bytes(32), b"m" * 32))))


@pytest.mark.parametrize("other", ["session", "round", "mask", "altered", "sender", "recipient"])
def test_shares_for_another_roster_or_client_are_not_opened(other):
    """So a server that shows clients different rosters, such as one with a mask key of its own, gets no values."""
    members = advertised(CLIENTS)
    shown = roster_of(members, THRESHOLD)
    theirs = {
        "session": replace(shown, session=bytes(16)),
        "round": replace(shown, round=1),
        "mask": replace(shown, peers=(*shown.peers[:-1], replace(shown.peers[-1], mask=b"x" * 32))),
    }.get(other, shown)
    boxes = members[3].shared(theirs)[1]
    box = {"altered": boxes[2][:-1] + bytes([boxes[2][-1] ^ 1]), "recipient": boxes[5]}.get(other, boxes[2])
    sender = 5 if other == "sender" else 3
    shared, _ = members[2].shared(shown)
    with refused(f"shares in the name of client {sender} are not sealed by it for client 2 and this roster"):
        shared.opened({sender: box, 13: members[13].shared(shown)[1][2]})


def test_a_client_masks_nothing_where_too_few_dealt_shares():
    members = advertised(CLIENTS)
    roster = roster_of(members, THRESHOLD)
    shared, _ = members[2].shared(roster)
    with refused("shares of 2 clients came, a secure sum needs 3"):
        shared.opened({3: members[3].shared(roster)[1][2]})


def test_an_altered_share_of_a_dropped_client_is_noticed():
    roster, masked, sent = sent_by(CLIENTS, ALL, THRESHOLD)
    revealed = {c: masked[c].revealed(ALL - {13}) for c in ALL - {13}}
    revealed[2][13] = bytes(16)
    with refused("client 13's masks do not give its key"):
        unmasked(roster, ALL, ALL - {13}, plain_like(sent, ALL - {13}), revealed, BINDING)


def test_secrets_come_from_the_operating_system_and_do_not_show():
    key = private_key(bytes(16))
    one, other = Advertised.fresh(1, key), Advertised.fresh(1, key)
    assert len({one.mask_seed, one.self_seed, other.mask_seed, other.self_seed}) == 4
    assert repr(one) == repr(other) == "Advertised(client=1)"
    assert Advertised.fresh(1, key, seeded(3)) == Advertised.fresh(1, key, seeded(3))
