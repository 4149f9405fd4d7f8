"""A client's side of secure sums: what it answers, and what it refuses.

Each request of a sum is answered once. The same one again gets the same bytes, so a lost answer costs nothing; another
one of the same kind is refused, since two different answers together would tell what each of them hides. Of one round
a client helps to unmask one sum only, whatever session it is asked in.

Secrets come from the operating system. On a node, which has credentials, they live in the worker's memory alone: a
worker that starts again has no part in the sums that it had begun. Without credentials, in one process or a simulation,
they are kept where what else a client remembers is kept, with an identity made for the run, which protects nothing from
whoever runs the simulation.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from hashlib import sha256
from secrets import token_bytes
from typing import Any

from ..errors import MessageError
from ..privacy.identities import Credentials, Identity, Trust
from ..privacy.masks import private_key, public_key
from ..privacy.public import SEED_BYTES, Peer
from ..privacy.secure_sum import Advertised, Ready, Shared
from ..privacy.sum_plan import SumPlan
from .answering import attempted
from .client import Site, local_round
from .contribution import words_of
from .messages import decode_order
from .secure_memory import Own, Part
from .secure_messages import (
    KEY_REQUEST,
    MASKED_ORDER,
    ROSTER,
    UNMASK_REQUEST,
    KeyRequest,
    Keys,
    MaskedOrder,
    MaskedReply,
    RosterMessage,
    Shares,
    Unmasked,
    UnmaskRequest,
    decode_bundle,
    decode_key_request,
    decode_masked_order,
    decode_roster,
    decode_unmask_request,
    encode_answers,
    encode_keys,
    encode_masked_reply,
    encode_shares,
    encode_unmasked,
)
from .wire import check, kind_of

MOST_SESSIONS = 4
"""Sums that a client has a part in at once, of which the oldest is forgotten: two in a row, and what went wrong."""
MOST_KEPT = 2**20
"""Bytes of an answer that is kept to be given again."""

_Step = Callable[["SecureClient", Part, Any], tuple[Part, bytes]]


class SecureClient:
    """One client of a site. Nothing is kept here but in `memory`, so it can be made anew for every message."""

    def __init__(
        self, site: Site, client: int, memory: MutableMapping[str, bytes], credentials: Credentials | None = None
    ):
        self.client, self._site, self._memory, self._credentials = client, site, memory, credentials
        plan = SumPlan.of(site.recipe)
        if plan is None:
            raise MessageError("secure sums are not part of this run: its recipe does not have secure_sum.enabled")
        self._plan = plan

    def answers(self, bundle: bytes) -> bytes:
        """The answers to a bundle of requests, one after another; an error of one is its answer."""
        return encode_answers([attempted(self.answer, request) for request in decode_bundle(bundle)])

    def answer(self, request: bytes) -> bytes:
        """
        Raises:
            MessageError: a request that is not answered, with the reason. SeedtuneError: what its local round raises.
        """
        kind = kind_of(request)
        check(kind in _STEPS, f"a secure sum has requests of kinds {sorted(_STEPS)}")
        decode, step = _STEPS[kind]
        asked = decode(request)
        part, digest = self._part(kind, asked), sha256(request).digest()
        if kind in part.answered:
            before, answer = part.answered[kind]
            if digest != before or not answer:
                raise MessageError(f"client {self.client} has answered another request of this kind for the same sum")
            return answer
        part, answer = step(self, part, asked)
        kept = answer if len(answer) <= MOST_KEPT else b""
        self._keep(replace(part, answered={**part.answered, kind: (digest, kept)}))
        return answer

    def _keys(self, part: Part, asked: KeyRequest) -> tuple[Part, bytes]:
        """Its first answer has its card, so that a server notices a client that started again."""
        own = self._own()
        card = own.cards[self.client]
        vouched = (card.identity, card.signature) if asked.introduce or not own.sessions else ()
        sessions = (*own.sessions, part.session)
        for old in sessions[:-MOST_SESSIONS]:
            self._memory.pop(self._name(old), None)
        self._keep_own(replace(own, sessions=sessions[-MOST_SESSIONS:]))
        mask = public_key(part.mask_seed)
        return part, encode_keys(Keys(part.session, self.client, mask, card.agreement, *vouched))

    def _shares(self, part: Part, asked: RosterMessage) -> tuple[Part, bytes]:
        """Deals shares to the clients of a roster, all of whom it knows by their cards."""
        own, most = self._own(), self._plan.code.num_parts
        check(len(asked.masks) <= most, f"a roster has at most the {most} clients of a cohort")
        roster = self._credentials.roster if self._credentials else None
        for card in asked.cards:
            Trust(roster, own.met).check(card)
            own = replace(own, cards={**own.cards, card.client: card})
        if strangers := set(asked.masks) - set(own.cards):
            raise MessageError(f"a roster has client {min(strangers)}, whose card client {self.client} was not shown")
        self._keep_own(own)
        peers = (Peer(client, own.cards[client].agreement, mask) for client, mask in asked.masks.items())
        part = replace(part, peers=tuple(peers))
        shared, sealed = self._member(part).shared(part.roster(self._plan.threshold))
        return replace(part, kept=shared.kept), encode_shares(Shares(part.session, self.client, sealed))

    def _masked(self, part: Part, asked: MaskedOrder) -> tuple[Part, bytes]:
        """Its local round, as words under masks."""
        order = decode_order(asked.order)
        check(
            (order.round, order.client) == (part.round, self.client), "an order is for the client and round of its sum"
        )
        check(bool(part.kept), "an order to be masked comes after the roster")
        roster = part.roster(self._plan.threshold)
        ready = Shared(self._member(part), roster, part.kept).opened(asked.sealed)
        words = words_of(self._site, order, local_round(self._site, order), self._plan.code)
        reply = MaskedReply(part.session, self.client, ready.masked(words))
        return replace(part, held=ready.held), encode_masked_reply(reply)

    def _revealed(self, part: Part, asked: UnmaskRequest) -> tuple[Part, bytes]:
        """Shares of the peers, for one set of survivors a round; its secrets of this sum are then forgotten."""
        check(bool(part.held), "an unmask request comes after the order")
        own = self._own()
        last, survivors = own.revealed
        if part.round < last or (part.round == last and asked.survivors != survivors):
            raise MessageError(
                f"client {self.client} has helped to unmask a sum of round {last} over {len(survivors)} clients, and "
                f"helps with no other of round {part.round}"
            )
        ready = Ready(self._member(part), part.roster(self._plan.threshold), part.held)
        shares = ready.revealed(asked.survivors)
        self._keep_own(replace(own, revealed=(part.round, asked.survivors)))
        return part.forgotten(), encode_unmasked(Unmasked(part.session, self.client, shares))

    def _member(self, part: Part) -> Advertised:
        return Advertised(self.client, private_key(self._own().agreement), part.mask_seed, part.self_seed)

    def _part(self, kind: int, asked: KeyRequest) -> Part:
        """What it has of the sum that a request is about; a new part where keys are asked."""
        if data := self._memory.get(self._name(asked.session)):
            return Part.unpacked(data)
        if kind != KEY_REQUEST:
            raise MessageError(
                f"client {self.client} has no part in this sum: it made no keys for it, or has started again since"
            )
        return Part(asked.session, asked.round, token_bytes(SEED_BYTES), token_bytes(SEED_BYTES))

    def _own(self) -> Own:
        if data := self._memory.get(self._name()):
            return Own.unpacked(data)
        identity = self._credentials.identity if self._credentials else Identity.generated()
        agreement = token_bytes(SEED_BYTES)
        own = Own(agreement, {self.client: identity.card(self.client, public_key(agreement))})
        self._keep_own(own)
        return own

    def _keep_own(self, own: Own) -> None:
        self._memory[self._name()] = own.packed()

    def _keep(self, part: Part) -> None:
        self._memory[self._name(part.session)] = part.packed()

    def _name(self, session: bytes = b"") -> str:
        return f"secure-{self.client}-{session.hex() or 'own'}"


_STEPS: Mapping[int, tuple[Callable[[bytes], Any], _Step]] = {
    KEY_REQUEST: (decode_key_request, SecureClient._keys),
    ROSTER: (decode_roster, SecureClient._shares),
    MASKED_ORDER: (decode_masked_order, SecureClient._masked),
    UNMASK_REQUEST: (decode_unmask_request, SecureClient._revealed),
}
