"""The round. Start reading here.

    cohort <- sampled by key
    orders -> the engine -> replies          (a client that fails or stays away is left out, and named)
    the protocol reduces the replies to one record, `apply` moves the shared weights
    the record's digest is the new state

It touches no file and no network: an engine carries the messages, the run store keeps what `run_rounds` yields.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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

    def reduce(self, server: "Server", replies: list[Reply]) -> RoundRecord: ...


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

    asked = [client for client in cohort if client not in dropped]
    orders = {client: encode_order(protocol.order(server, client)) for client in asked}
    replies, bytes_up, failed = _collect(engine.exchange(orders), orders, server, protocol)
    replies = _quorum(server, replies, failed)

    record = protocol.reduce(server, replies)
    result = RoundResult(
        record, cohort, dropped, failed, _mean_loss(replies), sum(map(len, orders.values())), bytes_up,
        sum(reply.num_forwards for reply in replies), sum(reply.num_skipped for reply in replies),
        time.perf_counter() - started,
    )  # fmt: skip
    return after(server, record, failed), result


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


def client_weights(recipe: Recipe, replies: list[Reply]) -> np.ndarray:
    """Each reply's share in the mean, float64 [n], summing to one: equal, or by number of examples."""
    if recipe.federation.weighting == "equal":
        return np.full(len(replies), 1 / len(replies))
    counts = np.array([reply.num_examples for reply in replies], np.float64)
    return counts / counts.sum()


def _collect(
    answers: Iterable[tuple[int, bytes | Exception]],
    orders: Mapping[int, bytes],
    server: Server,
    protocol: ExchangeProtocol,
) -> tuple[list[Reply], int, dict[int, str]]:
    """Usable replies sorted by client, bytes received, and what went wrong with the others."""
    replies, num_bytes, failed = {}, 0, {}
    for client, answer in answers:
        try:
            if isinstance(answer, Exception):
                raise answer
            num_bytes += len(answer)
            if client not in orders or client in replies:
                raise MessageError(f"client {client} answered without being asked, or twice")
            reply = decode_reply(answer)
            _check_sender(reply, client, server)
            protocol.check(server, reply)
            replies[client] = reply
        except Exception as error:  # whatever a client does, the round goes on with the others
            failed[client] = " ".join(f"{type(error).__name__}: {error}".split())
    silent = set(orders) - set(replies) - set(failed)
    failed |= {client: "no answer" for client in silent}
    return [replies[client] for client in sorted(replies)], num_bytes, failed


def _check_sender(reply: Reply, client: int, server: Server) -> None:
    if (reply.round, reply.client) != (server.round, client):
        raise MessageError(
            f"a reply of client {reply.client} for round {reply.round} came where client {client} was asked in "
            f"round {server.round}"
        )
    if reply.num_examples < 1:
        raise MessageError(f"client {client} says that it has {reply.num_examples} examples")


def _quorum(server: Server, replies: list[Reply], failed: Mapping[int, str]) -> list[Reply]:
    """The replies; none where too few clients were there at all: then nothing moves in this round."""
    needed = server.recipe.federation.min_replies
    if len(replies) < needed and failed:
        client = min(failed)
        raise EngineError(
            f"round {server.round}: {len(replies)} usable replies, federation.min_replies is {needed}; "
            f"{len(failed)} failed, first client {client}: {failed[client]}"
        )
    return replies if len(replies) >= needed else []


def _mean_loss(replies: list[Reply]) -> float:
    losses = [reply.loss for reply in replies if np.isfinite(reply.loss)]
    return float(np.mean(losses)) if losses else float("nan")
