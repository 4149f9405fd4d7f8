"""What a client of secure sums refuses, whatever the server asks."""

from dataclasses import replace

import pytest
from secure_federation import secure
from small_federation import examples, protocol, server, site

from seedtune.errors import MessageError, NotFinite
from seedtune.fed import secure_messages as sm
from seedtune.fed.messages import encode_order
from seedtune.fed.secure_client import SecureClient
from seedtune.privacy.identities import Credentials, Identity

SESSION, OTHER = bytes(16), bytes(range(16))


class Server:
    """One that follows the protocol as far as a test wants it: the clients of one site, each with a memory."""

    def __init__(self, credentials=None):
        self.at = site(secure())
        self.clients = [SecureClient(self.at, i, {}, credentials and credentials[i]) for i in range(4)]
        self.cards = {}

    def keys(self, session=SESSION, round_=0):
        request = sm.encode_key_request(sm.KeyRequest(session, round_, True))
        found = [sm.decode_keys(client.answer(request)) for client in self.clients]
        self.cards |= {keys.client: keys.card for keys in found}
        return {keys.client: keys.mask for keys in found}

    def roster(self, masks, session=SESSION, changed=lambda card: card):
        return sm.encode_roster(sm.RosterMessage(session, masks, tuple(map(changed, self.cards.values()))))

    def dealt(self, session=SESSION, round_=0):
        roster = self.roster(self.keys(session, round_), session)
        shares = [sm.decode_shares(client.answer(roster)).sealed for client in self.clients]
        return [{d: boxes[c] for d, boxes in enumerate(shares) if d != c} for c in range(4)]

    def order(self, client, sealed, session=SESSION, **changed):
        order = replace(protocol(self.at.recipe).order(server(self.at), client), **changed)
        return sm.encode_masked_order(sm.MaskedOrder(session, encode_order(order), sealed))

    def masked(self, session=SESSION, round_=0):
        """All up to the masked replies; the first client's order."""
        sealed = self.dealt(session, round_)
        orders = [self.order(c, sealed[c], session, round=round_) for c in range(4)]
        for client, order in zip(self.clients, orders, strict=True):
            client.answer(order)
        return orders[0]


def unmask(survivors, session=SESSION):
    return sm.encode_unmask_request(sm.UnmaskRequest(session, tuple(survivors)))


def refused(client, request, rule):
    with pytest.raises(MessageError, match=rule):
        client.answer(request)


def test_each_request_is_answered_once_and_again_by_the_same_bytes():
    asked = Server()
    first = asked.clients[0]
    request = sm.encode_key_request(sm.KeyRequest(SESSION, 0, True))
    assert first.answer(request) == first.answer(request)
    refused(first, sm.encode_key_request(sm.KeyRequest(SESSION, 1, True)), "answered another request of this kind")
    masks = asked.keys()
    roster = asked.roster(masks)
    assert first.answer(roster) == first.answer(roster)
    refused(first, asked.roster({c: masks[c] for c in range(3)}), "answered another request of this kind")
    shares = [sm.decode_shares(client.answer(roster)).sealed for client in asked.clients]
    sealed = {d: boxes[0] for d, boxes in enumerate(shares) if d}
    order = asked.order(0, sealed)
    assert first.answer(order) == first.answer(order)
    refused(first, asked.order(0, sealed, rate=0.5), "answered another request of this kind")


def test_both_kinds_of_shares_of_a_peer_are_never_revealed():
    asked = Server()
    asked.masked()
    first = asked.clients[0]
    answer = first.answer(unmask(range(4)))
    assert first.answer(unmask(range(4))) == answer
    refused(first, unmask((0, 1, 2)), "answered another request of this kind")


def test_of_one_round_one_sum_is_unmasked_whatever_session_it_is_asked_in():
    asked = Server()
    asked.masked()
    asked.clients[0].answer(unmask((0, 1, 2)))
    asked.masked(OTHER)
    refused(asked.clients[0], unmask(range(4), OTHER), "helped to unmask a sum of round 0 over 3 clients, and helps")
    assert asked.clients[0].answer(unmask((0, 1, 2), OTHER)), "the same sum again, after a server that started again"


def test_once_unmasked_a_sum_of_an_earlier_round_is_not():
    asked = Server()
    asked.masked(SESSION)
    asked.masked(OTHER, round_=1)
    asked.clients[0].answer(unmask(range(4), OTHER))
    refused(asked.clients[0], unmask(range(4)), "helped to unmask a sum of round 1")


@pytest.mark.parametrize(
    "survivors, rule",
    [((0, 1), "2 survivors"), ((1, 2, 3), "with client 0 among them"), ((0, 1, 7), "that dealt shares")],
)
def test_survivors_that_are_too_few_or_strange_are_refused(survivors, rule):
    asked = Server()
    asked.masked()
    refused(asked.clients[0], unmask(survivors), rule)


def test_steps_out_of_order_are_refused():
    asked = Server()
    first = asked.clients[0]
    for request in (unmask(range(4)), asked.order(0, {}), asked.roster({})):
        refused(first, request, "has no part in this sum")
    asked.keys()
    refused(first, asked.order(0, {}), "an order to be masked comes after the roster")
    refused(first, unmask(range(4)), "an unmask request comes after the order")
    sealed = asked.dealt()
    refused(first, asked.order(0, sealed[0], round=1), "for the client and round of its sum")
    refused(first, asked.order(1, sealed[0]), "for the client and round of its sum")
    refused(first, b"\xc1", "a message is an array")
    refused(first, encode_order(protocol(asked.at.recipe).order(server(asked.at), 0)), "has requests of kinds")


def swapped(card):
    """The server's own key in the name of client 2, under an identity of its own."""
    return Identity.generated().card(2, bytes(range(32))) if card.client == 2 else card


@pytest.mark.parametrize(
    "changed, rule",
    [
        (lambda card: replace(card, agreement=bytes(range(32))), "not signed by the identity that it comes with"),
        (lambda card: replace(card, signature=bytes(96)), "not signed by the identity that it comes with"),
        (swapped, "client 2 comes with another identity than the roster of identities says"),
    ],
)
def test_unsigned_and_swapped_keys_are_refused(changed, rule):
    identities = [Identity.generated() for _ in range(4)]
    roster = {client: identity.public for client, identity in enumerate(identities)}
    asked = Server([Credentials(identity, roster) for identity in identities])
    masks = asked.keys()
    refused(asked.clients[0], asked.roster(masks, changed=changed), rule)


def test_without_a_roster_the_first_identity_is_kept():
    asked = Server()
    asked.dealt()
    masks = asked.keys(OTHER)
    refused(asked.clients[0], asked.roster(masks, OTHER, swapped), "another identity than it first came with")


def test_rosters_with_strangers_too_few_or_too_many_are_refused():
    asked = Server()
    masks = asked.keys()
    refused(asked.clients[0], asked.roster(masks | {9: bytes(32)}), "at most the 4 clients of a cohort")
    refused(asked.clients[0], asked.roster({0: masks[0], 1: masks[1]}), "a roster of 2 clients")
    del asked.cards[3]
    refused(asked.clients[1], asked.roster(masks), "has client 3, whose card client 1 was not shown")


def test_secrets_are_forgotten_once_shares_were_revealed_and_old_sums_too():
    asked = Server()
    first = asked.clients[0]
    asked.masked()
    before = first._memory[f"secure-0-{SESSION.hex()}"]
    first.answer(unmask(range(4)))
    after = first._memory[f"secure-0-{SESSION.hex()}"]
    seed = before[before.index(SESSION) + 16 :][3:19]  # after the round and the length of the mask's seed
    assert seed in before and seed not in after
    for number in range(6):
        asked.keys(bytes([9] * 15 + [number]), number)
    assert len(first._memory) == 1 + 4 + 1  # the last: what it must never forget


def test_a_refusal_that_may_follow_from_data_is_repeated():
    """d5: a rate of 1e30 made a client say "has a scalar of 24.6", and it could be asked again."""
    asked = Server()
    first = asked.clients[0]
    loud = replace(asked.at, batch=lambda client, key: tuple(1e8 * t for t in examples(client)))
    first._site = loud
    sealed = asked.dealt()
    order = asked.order(0, sealed[0])
    told = []
    for _ in range(2):
        with pytest.raises(NotFinite) as refusal:
            first.answer(order)
        told.append(str(refusal.value))
    assert told[0] == told[1] and told[0].endswith(
        "client 0, round 0: what it would add to a secure sum is not finite, or too large to be coded or applied; the "
        "number stays on the device: lower local.learning_rate, set local.clip, or lower secure_sum.fraction_bits"
    )
    first._site = asked.at
    with pytest.raises(NotFinite):
        first.answer(order)
