"""The round. Start reading here.

    cohort <- sampled by key
    orders -> the engine -> replies          (a client that fails or stays away is left out, and named)
    the protocol reduces the replies to one record, `apply` moves the shared weights
    what the replies tell sets the next rates and is watched for surges, which may take rounds back
    the record's digest is the new state

`after` folds a finished round into the server's state, in a run and when it is resumed. Orders are encoded as they are
carried and replies reduced as they come, so memory does not grow with the cohort. It touches no file and no network: an
engine carries the messages, the run store keeps what `run_rounds` yields.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from ..config import Recipe
from ..errors import EngineError, MessageError, NotFinite
from ..privacy.accounting import epsilon, num_rounds_within
from ..privacy.plan import Plan
from ..space import Space, digest
from ..zo.trajectory import Header, RoundRecord, check_digest, path, taken_back
from .client import Replica, root_mean_square
from .guard import MAX_BACKOFFS, Guard, Seen, Surge
from .messages import Order, Reply, decode_reply, encode_order, pack_record, pack_weights
from .participation import cohort_of, drops_out
from .personalise import Rates
from .schedule import learning_rate_at

AHEAD, LOST = -1, -2
"""Where a client stands whose rounds were taken back: no records lead from there, it is sent the weights. And where one
stands that failed: after some of the records, so it is told them all, and passes over those that it knows."""


class Engine(Protocol):
    """Carries bytes to clients and back."""

    def exchange(self, orders: Mapping[int, bytes]) -> Iterable[tuple[int, bytes | Exception]]:
        """For each client asked: its reply, or what went wrong with it; in any order, as they come."""
        ...


class ExchangeProtocol(Protocol):
    """Says what is exchanged: pure but for `reduce`, which moves the server's replica."""

    def order(self, server: "Server", client: int) -> Order: ...

    def check(self, server: "Server", reply: Reply) -> None:
        """Raises MessageError for a reply that cannot be reduced."""
        ...

    def reduce(self, server: "Server", replies: Iterable[Reply]) -> RoundRecord:
        """Takes the replies, sorted by client, as they come; moves the replica once the last one is there."""
        ...

    def distances(self, server: "Server", replies: Sequence[Reply]) -> Mapping[int, float]:
        """How far each client's update of this round lies from the mean, by client (`distances`)."""
        ...


PutBack = Callable[[tuple[RoundRecord, ...]], None]
"""Brings the server's weights to the end of a path of records, from the base or a snapshot."""


@dataclass(frozen=True)
class Server:
    """The server between two rounds.

    round: the next round's number. log: the records that lead from the base to the weights. up_to_date: for each
    client that ever was asked, the number of these that its weights stand at, `AHEAD` or `LOST`. rates: what the
    clients' own learning rates follow from. guard: what it knows of the loss. rates_at: the rates as they were at each
    of the guard's good states, a number of rounds. secret: gives a private run's central noise and its secret samples.
    packed: by round, a record and how it travels, one memory for all states of a run.
    """

    recipe: Recipe
    header: Header
    space: Space
    replica: Replica
    round: int
    log: tuple[RoundRecord, ...]
    up_to_date: Mapping[int, int]
    rates: Rates
    guard: Guard
    rates_at: Mapping[int, Rates]
    secret: bytes = field(default=b"", repr=False)
    packed: dict[int, tuple[RoundRecord, bytes]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def at_start(cls, recipe: Recipe, header: Header, space: Space, replica: Replica, secret: bytes = b"") -> "Server":
        rates = Rates.of(recipe)
        return cls(recipe, header, space, replica, 0, (), {}, rates, Guard(recipe), {0: rates}, secret)

    @cached_property
    def plan(self) -> Plan | None:
        """Of a private run."""
        return Plan.of(self.recipe)

    @cached_property
    def packed_weights(self) -> bytes:
        """The weights as they travel, packed once a round."""
        return pack_weights(self.replica.weights)

    def packed_since(self, place: int) -> tuple[bytes, ...]:
        """The records of the log from `place` on as they travel, each packed once a run and gathered once a round."""
        if place not in self._gathered:
            self._gathered[place] = tuple(self._packed(record) for record in self.log[place:])
        return self._gathered[place]

    def _packed(self, record: RoundRecord) -> bytes:
        held, data = self.packed.get(record.round, (None, b""))
        if held is not record:  # none yet, or that of another future of an earlier state
            data = pack_record(record)
            self.packed[record.round] = record, data
        return data

    @cached_property
    def _gathered(self) -> dict[int, tuple[bytes, ...]]:
        """By place, what `packed_since` has given in this round."""
        return {}

    @property
    def rate(self) -> float:
        """The coming round's learning rate, before any client's own."""
        return learning_rate_at(self.recipe, self.round) * self.guard.rate_share

    def rate_factor(self, client: int) -> float:
        """A client's own rate as a multiple of the round's."""
        return self.rates.factor(self.round, client)

    @property
    def must_stop(self) -> bool:
        """Whether the run ends before its last round: for a surge, by the recipe or since halving the rate has not
        helped, since nothing finite comes back any more, or since another round is beyond the privacy budget."""
        is_surge = self.guard.surge is not None
        ends_by_surge = (is_surge and self.recipe.run.on_surge == "stop") or self.guard.num_backoffs > MAX_BACKOFFS
        return ends_by_surge or self.guard.has_diverged or self.is_budget_spent

    @property
    def is_budget_spent(self) -> bool:
        """Whether another round would be worth more than a private run's target epsilon."""
        return self.plan is not None and self.round >= num_rounds_within(self.plan)


@dataclass(frozen=True)
class RoundResult:
    """One finished round, as the run store records it.

    Losses and signals are those of the clients whose replies counted; bytes those of the encoded messages; forwards,
    floating-point operations and skipped steps those of the replies that counted. scalar_rms: root mean square of the
    projected gradients. rate: the round's learning rate, before any client's own. surge: one that began in this round.
    num_prefix_flops: operations of block 1 among them, where the model is split. epsilon: what a private run has spent.
    """

    record: RoundRecord
    cohort: tuple[int, ...]
    dropped: tuple[int, ...]
    failed: Mapping[int, str]
    losses: Mapping[int, float]
    signals: Mapping[int, float]
    scalar_rms: float
    rate: float
    bytes_down: int
    bytes_up: int
    num_forwards: int
    num_flops: int
    skipped_steps: int
    seconds: float
    surge: Surge | None = None
    num_prefix_flops: int = 0
    epsilon: float | None = None

    @property
    def train_loss(self) -> float:
        """Mean over clients, NaN where no loss was finite."""
        finite = [loss for loss in self.losses.values() if np.isfinite(loss)]
        return float(np.mean(finite)) if finite else float("nan")


def run_rounds(
    server: Server,
    protocol: ExchangeProtocol,
    engine: Engine,
    put_back: PutBack | None = None,
    gather: Callable[[Server], Server] = lambda server: server,
) -> Iterator[tuple[Server, RoundResult]]:
    """The rounds that are left, each yielded once the server's weights stand at its digest.

    `put_back` is needed where `run.on_surge` is "backoff". `gather` waits, before each round, for those who can be
    asked, and tells the server where they stand.

    Raises:
        EngineError: clients failed and fewer than `min_replies` answered.
    """
    while server.round < server.recipe.federation.num_rounds and not server.must_stop:
        server, result = one_round(gather(server), protocol, engine, put_back)
        yield server, result


def one_round(
    server: Server, protocol: ExchangeProtocol, engine: Engine, put_back: PutBack | None = None
) -> tuple[Server, RoundResult]:
    started = time.perf_counter()
    cohort = cohort_of(server.recipe, server.round, server.secret)
    dropped = tuple(client for client in cohort if drops_out(server.recipe, server.round, client))

    orders = _Orders(server, protocol, _asked(server.recipe, cohort, dropped))
    heard = _Heard(keeps_weights=server.rates.policy.signal == "distances")
    record = protocol.reduce(server, _usable(engine.exchange(orders), orders, heard))
    rms = root_mean_square(record.scalars) if server.plan else _scalar_rms(heard.replies)

    losses = {reply.client: reply.loss for reply in heard.replies}
    signals = server.rates.measured(losses, lambda: protocol.distances(server, heard.replies))
    result = RoundResult(
        record, cohort, dropped, heard.failed, losses, signals, rms, server.rate,
        orders.num_bytes, heard.num_bytes, sum(reply.num_forwards for reply in heard.replies),
        sum(reply.num_flops for reply in heard.replies), sum(reply.num_skipped for reply in heard.replies), 0.0,
        num_prefix_flops=sum(reply.num_prefix_flops for reply in heard.replies),
        epsilon=epsilon(server.plan, server.round + 1) if server.plan else None,
    )  # fmt: skip
    ahead = after(server, result)
    result = replace(result, surge=ahead.guard.surge)
    if result.surge and server.recipe.run.on_surge == "backoff":
        result = replace(result, record=_undone(server, result, put_back))
        ahead = after(server, result)
    return ahead, replace(result, seconds=time.perf_counter() - started)


def after(server: Server, result: RoundResult) -> Server:
    """The server once a finished round has moved its replica: a fold, the same in a run and in a resumed one.

    Who took part stood at the round's beginning; where a client that failed stands is not known. A round whose clients
    all failed is one in which their weights were not finite (`_check_quorum`). A private run's guard sees
    nothing, since there are no losses.
    """
    record, guard, rates, log = result.record, server.guard, server.rates, (*server.log, result.record)
    since = server.log[-1].round + 1 if server.log else 0
    rates_at = {**server.rates_at, since: rates}
    failed = {client: AHEAD if server.up_to_date.get(client) == AHEAD else LOST for client in result.failed}
    places = {**server.up_to_date, **failed, **dict.fromkeys(record.clients, len(server.log))}
    if (record.clients or result.failed) and not server.plan:
        guard = guard.after(Seen(since, result.train_loss, result.scalar_rms, result.rate))
    else:
        guard = replace(guard, surge=None)
    if record.back_to is not None:
        guard, log, rates = guard.backed_off(), path(log), rates_at[record.back_to]
        places = {client: at if 0 <= at <= len(log) else AHEAD for client, at in places.items()}
    else:
        rates = rates.after(result.signals)
    rates_at = {state: rates_at[state] for state in guard.good_states}
    return replace(
        server, round=record.round + 1, log=log, up_to_date=places, rates=rates, guard=guard, rates_at=rates_at
    )


def _undone(server: Server, result: RoundResult, put_back: PutBack | None) -> RoundRecord:
    """Puts the weights back to where the loss was best, and says so in place of the round's record.

    Raises:
        DigestMismatch: they are not the weights that were there then.
    """
    if put_back is None:
        raise ValueError("run_rounds needs put_back where run.on_surge is 'backoff'")
    good = result.surge.good_state
    records = tuple(record for record in server.log if record.round < good)
    put_back(records)
    server.replica.digest = digest(server.replica.weights)
    if records:
        check_digest(server.replica.digest, records[-1].digest, f"put back to {good} rounds")
    return taken_back(result.record, good, server.replica.digest)


def share_of(recipe: Recipe, reply: Reply) -> float:
    """How much a reply counts in the mean: as any other, or by its number of examples."""
    return 1.0 if recipe.federation.weighting == "equal" else float(reply.num_examples)


def _asked(recipe: Recipe, cohort: Collection[int], dropped: Collection[int]) -> tuple[int, ...]:
    """Who gets an order: nobody where too few are there, and then nothing moves in this round."""
    present = tuple(client for client in cohort if client not in dropped)
    return present if len(present) >= recipe.federation.min_replies else ()


class _Orders(Mapping[int, bytes]):
    """The order of each client asked, encoded when it is carried; `num_bytes` of them so far."""

    def __init__(self, server: Server, protocol: ExchangeProtocol, clients: tuple[int, ...]):
        self.server, self.protocol, self.num_bytes = server, protocol, 0
        self._clients = dict.fromkeys(clients)

    def __getitem__(self, client: int) -> bytes:
        if client not in self._clients:
            raise KeyError(client)
        order = encode_order(self.protocol.order(self.server, client))
        self.num_bytes += len(order)
        return order

    def __iter__(self) -> Iterator[int]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


@dataclass
class _Heard:
    """What came of a round's orders so far; replies without the weights that they brought, unless these are needed."""

    keeps_weights: bool
    num_bytes: int = 0
    replies: list[Reply] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    num_not_finite: int = 0


def _usable(answers: Iterable[tuple[int, bytes | Exception]], orders: _Orders, heard: _Heard) -> Iterator[Reply]:
    """The replies that can be reduced, sorted by client; notes them, and what went wrong with the others.

    Raises:
        EngineError: in the end, as `_check_quorum` says.
    """
    server, protocol = orders.server, orders.protocol
    for client, answer in _sorted_by_client(answers, orders):
        try:
            heard.num_bytes += len(answer) if isinstance(answer, bytes) else 0
            reply = _decoded(answer, client, server)
            protocol.check(server, reply)
        except Exception as error:  # whatever a client does, the round goes on with the others
            heard.failed[client] = " ".join(f"{type(error).__name__}: {error}".split())
            heard.num_not_finite += isinstance(error, NotFinite)
        else:
            heard.replies.append(reply if heard.keeps_weights else replace(reply, weights=b""))
            yield reply
    _check_quorum(server, heard)


def _sorted_by_client(
    answers: Iterable[tuple[int, bytes | Exception]], asked: Collection[int]
) -> Iterator[tuple[int, bytes | Exception]]:
    """One answer a client, each as soon as those before it are there, so that few are held."""
    missing, waiting, turn = set(asked), {}, deque(sorted(asked))
    for client, answer in answers:
        if client not in missing:
            yield client, MessageError(f"client {client} answered without being asked, or twice")
            continue
        missing.remove(client)
        waiting[client] = answer
        while turn and turn[0] in waiting:
            yield turn[0], waiting.pop(turn.popleft())
    for client in turn:
        yield client, waiting.pop(client, EngineError("no answer"))


def _decoded(answer: bytes | Exception, client: int, server: Server) -> Reply:
    if isinstance(answer, Exception):
        raise answer
    reply = decode_reply(answer)
    if (reply.round, reply.client) != (server.round, client):
        raise MessageError(
            f"a reply of client {reply.client} for round {reply.round} came where client {client} was asked in "
            f"round {server.round}"
        )
    if reply.num_examples < 1:
        raise MessageError(f"client {client} says that it has {reply.num_examples} examples")
    return reply


def _check_quorum(server: Server, heard: _Heard) -> None:
    """
    Raises:
        EngineError: clients failed and fewer than `min_replies` answered; unless it is the weights of all of them that
            are not finite, which is no failure but where such a rate leads.
    """
    needed, failed = server.recipe.federation.min_replies, heard.failed
    if failed and len(heard.replies) < needed and heard.num_not_finite < len(failed) + len(heard.replies):
        client = min(failed)
        raise EngineError(
            f"round {server.round}: {len(heard.replies)} usable replies, federation.min_replies is {needed}; "
            f"{len(failed)} failed, first client {client}: {failed[client]}"
        )


def _scalar_rms(replies: list[Reply]) -> float:
    """Over clients, NaN where no projected gradient was finite."""
    each = [root_mean_square(reply.scalars) if reply.scalar_rms is None else reply.scalar_rms for reply in replies]
    squares = [rms**2 for rms in each if rms is not None]
    return float(np.sqrt(np.mean(squares))) if squares else float("nan")
