"""A round of which the server sees only sums: what is exchanged, in which order, and who is left out.

    1  masked orders                            ->  masked replies      and the keys of the next round's sum
    2  who survived, to be unmasked             ->  shares              and the shares of the next round's sum

Two exchanges a round. Where no keys are ready (the first round, a resumed run, too few that made some), two more come
before them. A client that fails in one of them is left out and named; one that made no keys in time is left out of the
next round, and makes some in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from secrets import token_bytes

import numpy as np

from ..errors import EngineError, MessageError, NotFinite
from ..foreign_text import describe
from ..privacy.fixed_point import WORD
from ..privacy.ledger import withheld_failures
from ..privacy.public import SESSION_BYTES, Card, Peer, Roster
from ..privacy.secure_sum import unmasked
from ..privacy.sum_plan import SumPlan, quorum
from ..zo.trajectory import RoundRecord
from .binding import SHOWN_BYTES, order_binding, run_context
from .contribution import Total, num_words, total_of
from .messages import encode_order
from .participation import asked_in
from .secure_mail import Mail, Requests
from .secure_messages import (
    Answer,
    KeyRequest,
    MaskedOrder,
    RosterMessage,
    UnmaskRequest,
    decode_keys,
    decode_masked_reply,
    decode_shares,
    decode_unmasked,
    encode_key_request,
    encode_masked_order,
    encode_roster,
    encode_unmask_request,
)
from .server import Engine, ExchangeProtocol, RoundResult, Server
from .wire import check


@dataclass
class _Sum:
    """One sum as far as it has come. sealed: by dealer, its shares for each other client. failed: by client, why it is
    left out."""

    session: bytes
    round: int
    clients: tuple[int, ...]
    context: bytes
    masks: dict[int, bytes] = field(default_factory=dict)
    roster: Roster | None = None
    sealed: dict[int, Mapping[int, bytes]] = field(default_factory=dict)
    failed: dict[int, Exception] = field(default_factory=dict)

    @classmethod
    def of(cls, server: Server, round_: int, clients: tuple[int, ...]) -> "_Sum":
        context = run_context(server.recipe, server.header)
        return cls(token_bytes(SESSION_BYTES), round_, clients, context)

    def binding(self, server: Server) -> bytes:
        """What every client's masks of this round follow from; `server` stands where the round begins."""
        return order_binding(self.context, self.round, *server.round_rates, server.replica.weights)

    @property
    def members(self) -> tuple[int, ...]:
        """The clients of its roster; none before there is one."""
        return self.roster.clients if self.roster else ()

    def check_answer(self, answer: Answer, client: int) -> None:
        check(
            (answer.session, answer.client) == (self.session, client),
            "an answer is for the sum and by the client asked",
        )


class SecureRound:
    """The `Exchange` (`rounds`) of a run with secure sums.

    What it keeps from round to round, the keys of the next sum and who was shown whose card, may be lost at any time:
    that costs two more exchanges.
    """

    def __init__(self, plan: SumPlan):
        self._plan = plan
        self._next: _Sum | None = None
        self._cards: dict[int, Card] = {}
        self._shown: dict[int, dict[int, Card]] = {}

    def __call__(
        self, server: Server, protocol: ExchangeProtocol, engine: Engine, asked: tuple[int, ...]
    ) -> RoundResult:
        """
        Raises:
            EngineError: fewer clients than the threshold, or than `min_replies`, came as far as was needed; or what
                they sent does not sum up. The round can be tried again: the run is as it was before it.
        """
        mail, needed = Mail(engine), quorum(server.recipe)
        if not asked:
            return _result(server, mail, protocol.reduce(server, iter(())), {})
        now, coming = self._prepared(server, mail, asked, needed), _coming(server)
        binding = now.binding(server)
        total, survivors = self._collected(server, protocol, mail, now, coming, binding)
        if len(survivors) < needed and all(isinstance(error, NotFinite) for error in now.failed.values()):
            return _result(server, mail, protocol.reduce(server, iter(())), now.failed)
        _check_enough(server, now, len(survivors), needed, "sent masked values")

        revealed = self._revealed(mail, now, coming, survivors)
        _check_enough(server, now, len(revealed), self._plan.threshold, "revealed shares")
        self._next = coming
        return self._reduced(server, protocol, mail, now, survivors, total, revealed, binding)

    def _prepared(self, server: Server, mail: Mail, asked: tuple[int, ...], needed: int) -> _Sum:
        """The sum of this round, its shares dealt: made with the round before, or anew."""
        now, self._next = self._next, None
        if now and now.round == server.round and len(now.sealed) >= needed:
            return now
        now = _Sum.of(server, server.round, asked)
        for _, client, answer in mail.exchange(self._key_requests(now)):
            self._take_keys(now, client, answer)
        for _, client, answer in mail.exchange(self._rosters(now)):
            self._take_shares(now, client, answer)
        _check_enough(server, now, len(now.sealed), needed, "dealt shares")
        return now

    def _key_requests(self, of: _Sum | None) -> Requests:
        """None of a sum that is not to come."""
        return {} if of is None else {client: partial(self._key_request, of, client) for client in of.clients}

    def _key_request(self, of: _Sum, client: int) -> bytes:
        return encode_key_request(KeyRequest(of.session, of.round, client not in self._cards))

    def _take_keys(self, of: _Sum, client: int, answer: bytes | Exception) -> None:
        try:
            keys = decode_keys(_given(answer))
            of.check_answer(keys, client)
            if keys.card and keys.card != self._cards.get(client):  # new, or started again: it knows nobody
                self._cards[client], self._shown[client] = keys.card, {}
            if client not in self._cards or self._cards[client].agreement != keys.agreement:
                self._cards.pop(client, None)
                raise MessageError(f"client {client} came with a key of agreement without a card: it is asked for one")
        except Exception as error:  # whatever a client does, the round goes on with the others
            of.failed[client] = error
        else:
            of.masks[client] = keys.mask

    def _rosters(self, of: _Sum | None) -> Requests:
        if of is None or len(of.masks) < self._plan.threshold:
            return {}
        peers = (Peer(client, self._cards[client].agreement, of.masks[client]) for client in sorted(of.masks))
        try:
            of.roster = Roster(of.session, of.round, self._plan.threshold, tuple(peers), of.context)
        except MessageError as error:  # two clients with one key: which of them copied it is not known
            of.failed |= dict.fromkeys(of.masks, error)
            return {}
        return {client: partial(self._roster, of, client) for client in of.roster.clients}

    def _roster(self, of: _Sum, client: int) -> bytes:
        """The same bytes until it is answered, since an engine may ask for it again."""
        shown = self._shown.get(client, {})
        cards = tuple(self._cards[c] for c in of.members if c != client and shown.get(c) != self._cards[c])
        return encode_roster(RosterMessage(of.session, of.masks, cards))

    def _take_shares(self, of: _Sum, client: int, answer: bytes | Exception) -> None:
        try:
            shares = decode_shares(_given(answer))
            of.check_answer(shares, client)
            others = set(of.members) - {client}
            check(set(shares.sealed) == others, "a client deals shares to all others of a roster")
        except Exception as error:
            of.failed[client] = error
            self._shown[client] = {}  # it may not have read them
        else:
            of.sealed[client] = shares.sealed
            self._shown[client] = self._shown.get(client, {}) | {c: self._cards[c] for c in of.members}

    def _collected(
        self,
        server: Server,
        protocol: ExchangeProtocol,
        mail: Mail,
        now: _Sum,
        coming: _Sum | None,
        binding: bytes,
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """The sum of masked replies as they come, and whose they are; and the next sum's keys."""
        total, survivors = np.zeros(num_words(server.recipe, server.space), WORD), []
        orders = {client: partial(_masked_order, server, protocol, now, client) for client in now.sealed}
        for is_next, client, answer in mail.exchange(orders, self._key_requests(coming)):
            if is_next and coming:
                self._take_keys(coming, client, answer)
                continue
            try:
                reply = decode_masked_reply(_given(answer))
                now.check_answer(reply, client)
                check(reply.words.shape == total.shape, f"a masked reply to this recipe has {total.size} words")
                check(
                    reply.shown == binding[:SHOWN_BYTES],
                    f"a client masks the order that it was sent, and client {client} masked another",
                )
            except Exception as error:
                now.failed[client] = error
            else:
                total += reply.words
                survivors.append(client)
        return total, tuple(sorted(survivors))

    def _revealed(
        self, mail: Mail, now: _Sum, coming: _Sum | None, survivors: tuple[int, ...]
    ) -> dict[int, Mapping[int, bytes]]:
        """By survivor, the shares that it revealed; and the next sum's shares."""
        revealed, request = {}, encode_unmask_request(UnmaskRequest(now.session, survivors))
        requests = dict.fromkeys(survivors, lambda: request)
        for is_next, client, answer in mail.exchange(requests, self._rosters(coming)):
            if is_next and coming:
                self._take_shares(coming, client, answer)
                continue
            try:
                found = decode_unmasked(_given(answer))
                now.check_answer(found, client)
                check(set(found.shares) == set(now.sealed), "a share of each client that dealt some is revealed")
            except Exception as error:
                now.failed[client] = error
            else:
                revealed[client] = found.shares
        return revealed

    def _reduced(self, server, protocol, mail, now, survivors, words, revealed, binding) -> RoundResult:
        try:
            plain = unmasked(now.roster, now.sealed, survivors, words, revealed, binding)
            total = total_of(plain, len(survivors), self._plan.code)
        except MessageError as error:
            raise EngineError(f"round {server.round}: {error}; 'seedtune resume' tries the round again") from None
        try:
            record = protocol.reduce_sum(server, survivors, total)
        except NotFinite as error:
            now.failed |= dict.fromkeys(survivors, error)
            return _result(server, mail, protocol.reduce(server, iter(())), now.failed)
        return _result(server, mail, record, now.failed, total)


def _coming(server: Server) -> _Sum | None:
    """The sum of the next round, nothing done for it yet; None where there is none."""
    round_ = server.round + 1
    is_last = round_ >= server.recipe.federation.num_rounds
    asked = () if is_last else asked_in(server.recipe, round_)
    return _Sum.of(server, round_, asked) if asked else None


def _masked_order(server: Server, protocol: ExchangeProtocol, now: _Sum, client: int) -> bytes:
    sealed = {dealer: boxes[client] for dealer, boxes in now.sealed.items() if dealer != client}
    return encode_masked_order(MaskedOrder(now.session, encode_order(protocol.order(server, client)), sealed))


def _given(answer: bytes | Exception) -> bytes:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _check_enough(server: Server, now: _Sum, num_clients: int, needed: int, did: str) -> None:
    if num_clients < needed:
        told = withheld_failures(server.plan, {client: describe(error) for client, error in now.failed.items()})
        client = min(told, default=None)
        first = "" if client is None else f"; first that did not, client {client}: {told[client]}"
        raise EngineError(
            f"round {server.round}: {num_clients} clients {did}, a secure sum needs {needed}{first}; 'seedtune resume' "
            "tries the round again"
        )


def _result(
    server: Server, mail: Mail, record: RoundRecord, failed: Mapping[int, Exception], total: Total | None = None
) -> RoundResult:
    """What a round came to; without a total, nothing moved."""
    reasons = {client: describe(error) for client, error in sorted(failed.items())}
    costs = (total.num_forwards, total.num_flops, total.num_skipped) if total else (0, 0, 0)
    nan = float("nan")
    return RoundResult(
        record, (), (), reasons, {}, {}, total.scalar_rms if total else nan, server.rate, mail.bytes_down,
        mail.bytes_up, *costs, 0.0, num_prefix_flops=total.num_prefix_flops if total else 0,
        mean_loss=total.mean_loss if total else nan,
    )  # fmt: skip
