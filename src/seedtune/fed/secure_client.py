"""A client's side of secure sums: what it answers, and what it refuses.

Each request of a sum is answered once. The same one again gets the same bytes, so a lost answer costs nothing; another
one of the same kind is refused, since two different answers together would tell what each of them hides. A refused
order counts as answered. Of one round a client masks a reply to one order and helps to unmask one set of survivors,
whatever session it is asked in; that it keeps in `answered`, which outlasts restarts.

Masks follow from a digest of the whole order (`binding`), computed from the recipe, the rates and the weights that this
client itself has. No text with a value measured here leaves it (`redaction`).

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
from ..privacy.public import SEED_BYTES, Peer, Roster
from ..privacy.secure_sum import Advertised, Ready, Shared
from ..privacy.sum_plan import SumPlan
from .answering import attempted
from .binding import SHOWN_BYTES, order_binding, run_context
from .client import Site, catch_up, local_round
from .contribution import words_of
from .messages import Order, decode_order
from .order_rules import check_order
from .redaction import redact_errors
from .secure_memory import Answered, Own, Part
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
    error_from,
    words_of_error,
)
from .wire import check, kind_of

MOST_SESSIONS = 4
"""Sums that a client has a part in at once, of which the oldest is forgotten: two in a row, and what went wrong."""
MOST_KEPT = 2**20
"""Bytes of an answer that is kept to be given again."""

_Step = Callable[["SecureClient", Part, Any], tuple[Part, bytes]]


class SecureClient:
    """One client of a site. Nothing is kept here but in `memory` and `answered`, so it can be made anew for every
    message; `answered` is by default the memory too."""

    def __init__(
        self,
        site: Site,
        client: int,
        memory: MutableMapping[str, bytes],
        credentials: Credentials | None = None,
        answered: MutableMapping[str, bytes] | None = None,
    ):
        self.client, self._site, self._memory, self._credentials = client, site, memory, credentials
        self._answered = memory if answered is None else answered
        plan = SumPlan.of(site.recipe)
        if plan is None:
            raise MessageError("secure sums are not part of this run: its recipe does not have secure_sum.enabled")
        self._plan, self._context = plan, run_context(site.recipe, site.header)

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
            return self._again(*part.answered[kind], digest)
        if kind == MASKED_ORDER:
            self._begin(part, decode_order(asked.order))
        try:
            part, answer = step(self, part, asked)
        except Exception as error:
            if kind == MASKED_ORDER:  # which may follow from data; a refusal of another kind tells nothing
                self._keep(part.with_answer(kind, digest, words_of_error(error)))
            raise
        self._keep(part.with_answer(kind, digest, answer if len(answer) <= MOST_KEPT else b""))
        return answer

    def _again(self, before: bytes, answer: bytes | str, digest: bytes) -> bytes:
        """
        Raises:
            MessageError: another request than the first. SeedtuneError: the refusal that the first one had.
        """
        if digest != before or not answer:
            raise MessageError(f"client {self.client} has answered another request of this kind for the same sum")
        if isinstance(answer, str):
            raise error_from(answer)
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
        shared, sealed = self._member(part).shared(self._roster(part))
        return replace(part, kept=shared.kept), encode_shares(Shares(part.session, self.client, sealed))

    def _masked(self, part: Part, asked: MaskedOrder) -> tuple[Part, bytes]:
        """Its local round, as words under masks."""
        order, site = decode_order(asked.order), self._site
        ready = Shared(self._member(part), self._roster(part), part.kept).opened(asked.sealed)
        binding = order_binding(self._context, order.round, order.rate, order.rate_ratio, site.replica.weights)
        self._note(order, binding)
        reply = local_round(site, order)
        with redact_errors(order, "a secure sum"):
            words = words_of(site, order, reply, self._plan.code)
        masked = MaskedReply(part.session, self.client, ready.masked(words, binding), binding[:SHOWN_BYTES])
        return replace(part, held=ready.held), encode_masked_reply(masked)

    def _begin(self, part: Part, order: Order) -> None:
        """Check an order and come to where it begins. No data is touched, so another order may follow a refusal.

        Raises:
            MessageError, DigestMismatch: an order that is not of this sum and recipe, or that leads elsewhere.
        """
        check(
            (order.round, order.client) == (part.round, self.client), "an order is for the client and round of its sum"
        )
        check(bool(part.kept), "an order to be masked comes after the roster")
        check_order(self._site.recipe, self._site.perturber.space, order)
        catch_up(self._site, order)

    def _note(self, order: Order, binding: bytes) -> None:
        """Remember the one order of a round that is answered, in whatever session.

        Raises:
            MessageError: this round, or a later one, was answered, and to another order.
        """
        before = self._before()
        if order.round < before.round or (order.round == before.round and binding != before.binding):
            raise MessageError(
                f"client {self.client} has masked a reply for round {before.round}, and answers no other order for "
                f"round {order.round}"
            )
        if order.round > before.round:
            self._keep_before(replace(before, round=order.round, binding=binding))

    def _revealed(self, part: Part, asked: UnmaskRequest) -> tuple[Part, bytes]:
        """Shares of the peers, for one set of survivors a round; its secrets of this sum are then forgotten."""
        check(bool(part.held), "an unmask request comes after the order")
        before = self._before()
        last, survivors = before.revealed
        if part.round < last or (part.round == last and asked.survivors != survivors):
            raise MessageError(
                f"client {self.client} has helped to unmask a sum of round {last} over {len(survivors)} clients, and "
                f"helps with no other of round {part.round}"
            )
        ready = Ready(self._member(part), self._roster(part), part.held)
        shares = ready.revealed(asked.survivors)
        self._keep_before(replace(before, revealed=(part.round, asked.survivors)))
        return part.forgotten(), encode_unmasked(Unmasked(part.session, self.client, shares))

    def _roster(self, part: Part) -> Roster:
        return part.roster(self._plan.threshold, self._context)

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

    def _before(self) -> Answered:
        data = self._answered.get(self._answered_name)
        return Answered.unpacked(data) if data else Answered()

    def _keep_before(self, before: Answered) -> None:
        self._answered[self._answered_name] = before.packed()

    @property
    def _answered_name(self) -> str:
        return f"secure-answered-{self.client}"

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
