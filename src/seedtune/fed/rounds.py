"""The round. Start reading here.

    cohort <- sampled by key
    orders -> the engine -> replies          (a client that fails or stays away is left out, and named)
    the protocol reduces the replies to one record, `apply` moves the shared weights
    the record's digest is the new state

Orders are encoded as they are carried and replies reduced as they come, so memory does not grow with the cohort. It
touches no file and no network: an engine carries the messages, the run store keeps what `run_rounds` yields.
"""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ..config import Recipe
from ..data.keyed import keyed_permutation
from ..errors import EngineError, MessageError
from ..space import Space
from ..zo import noise
from ..zo.trajectory import Header, RoundRecord
from .client import Replica
from .messages import Order, Reply, decode_reply, encode_order


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


@dataclass(frozen=True)
class Server:
    """The server between two rounds.

    round: the next round's number. log: every record so far. up_to_date: for each client that ever took part, the
    number of rounds its weights stand at.
    """

    recipe: Recipe
    header: Header
    space: Space
    replica: Replica
    round: int
    log: tuple[RoundRecord, ...]
    up_to_date: Mapping[int, int]


@dataclass(frozen=True)
class RoundResult:
    """One finished round, as the run store records it.

    Bytes are those of the encoded messages; forwards and skipped steps those of the replies that counted.
    """

    record: RoundRecord
    cohort: tuple[int, ...]
    dropped: tuple[int, ...]
    failed: Mapping[int, str]
    train_loss: float
    bytes_down: int
    bytes_up: int
    num_forwards: int
    skipped_steps: int
    seconds: float


def run_rounds(server: Server, protocol: ExchangeProtocol, engine: Engine) -> Iterator[tuple[Server, RoundResult]]:
    """The rounds that are left, each yielded once the server's weights stand at its digest.

    Raises:
        EngineError: clients failed and fewer than `min_replies` answered.
    """
    while server.round < server.recipe.federation.num_rounds:
        server, result = one_round(server, protocol, engine)
        yield server, result


def one_round(server: Server, protocol: ExchangeProtocol, engine: Engine) -> tuple[Server, RoundResult]:
    started = time.perf_counter()
    cohort = sample_cohort(server.recipe, server.round)
    dropped = tuple(client for client in cohort if drops_out(server.recipe, server.round, client))

    orders = _Orders(server, protocol, _asked(server.recipe, cohort, dropped))
    heard = _Heard()
    record = protocol.reduce(server, _usable(engine.exchange(orders), orders, heard))

    result = RoundResult(
        record, cohort, dropped, heard.failed, _mean_loss(heard.replies), orders.num_bytes, heard.num_bytes,
        sum(reply.num_forwards for reply in heard.replies), sum(reply.num_skipped for reply in heard.replies),
        time.perf_counter() - started,
    )  # fmt: skip
    return after(server, record, heard.failed), result


def after(server: Server, record: RoundRecord, failed: Collection[int]) -> Server:
    """The server once `record` has moved its replica: who took part stood at the round's beginning, and where a client
    that failed stands is not known."""
    seen = {client: record.round for client in record.clients}
    known = {client: stood for client, stood in server.up_to_date.items() if client not in failed}
    return replace(server, round=record.round + 1, log=(*server.log, record), up_to_date={**known, **seen})


def sample_cohort(recipe: Recipe, round_: int) -> tuple[int, ...]:
    """The clients asked in a round, sorted; a function of seed and round alone."""
    num_clients, size = recipe.partition.num_clients, recipe.federation.cohort_size
    if size in (0, num_clients):
        return tuple(range(num_clients))
    key = noise.derive_key(recipe.run.seed, "cohort", round=round_)
    return tuple(sorted(keyed_permutation(key, num_clients)[:size].tolist()))


def drops_out(recipe: Recipe, round_: int, client: int) -> bool:
    """Whether a client of the cohort stays silent; a function of seed, round and client alone."""
    key = noise.derive_key(recipe.run.seed, "dropout", round=round_, client=client)
    return key / 2**64 < recipe.federation.dropout_rate


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
    """What came of a round's orders so far; replies without the weights that they brought."""

    num_bytes: int = 0
    replies: list[Reply] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


def _usable(answers: Iterable[tuple[int, bytes | Exception]], orders: _Orders, heard: _Heard) -> Iterator[Reply]:
    """The replies that can be reduced, sorted by client; notes them, and what went wrong with the others.

    Raises:
        EngineError: in the end, where clients failed and fewer than `min_replies` answered.
    """
    server, protocol = orders.server, orders.protocol
    for client, answer in _sorted_by_client(answers, orders):
        try:
            heard.num_bytes += len(answer) if isinstance(answer, bytes) else 0
            reply = _decoded(answer, client, server)
            protocol.check(server, reply)
        except Exception as error:  # whatever a client does, the round goes on with the others
            heard.failed[client] = " ".join(f"{type(error).__name__}: {error}".split())
        else:
            heard.replies.append(replace(reply, weights=b""))
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
    needed, failed = server.recipe.federation.min_replies, heard.failed
    if failed and len(heard.replies) < needed:
        client = min(failed)
        raise EngineError(
            f"round {server.round}: {len(heard.replies)} usable replies, federation.min_replies is {needed}; "
            f"{len(failed)} failed, first client {client}: {failed[client]}"
        )


def _mean_loss(replies: list[Reply]) -> float:
    losses = [reply.loss for reply in replies if np.isfinite(reply.loss)]
    return float(np.mean(losses)) if losses else float("nan")
