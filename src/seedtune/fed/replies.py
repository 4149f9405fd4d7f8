"""A round's orders and replies, one a client: encoded as they are carried, checked and reduced as they come.

So memory does not grow with the cohort. A client that fails, or whose reply cannot be used, is left out and named.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..config import Recipe
from ..errors import EngineError, MessageError, NotFinite
from ..foreign_text import describe
from ..privacy.ledger import withheld_failures
from .auto import is_due
from .client import root_mean_square
from .messages import Reply, decode_reply, encode_order
from .server import Engine, ExchangeProtocol, RoundResult, Server


def singly(server: Server, protocol: ExchangeProtocol, engine: Engine, asked: tuple[int, ...]) -> RoundResult:
    """An order to each client asked, and the record that their replies are reduced to.

    Raises:
        EngineError: clients failed and fewer than `min_replies` answered.
    """
    orders = _Orders(server, protocol, asked)
    heard = _Heard(keeps_weights=server.rates.personal.policy.signal == "distances")
    record = protocol.reduce(server, _usable(engine.exchange(orders), orders, heard))

    losses, is_asked = {reply.client: reply.loss for reply in heard.replies}, is_due(server.recipe, server.round)
    signals = server.rates.personal.measured(losses, lambda: protocol.distances(server, heard.replies))
    return RoundResult(
        record, (), (), heard.failed, losses, signals, _scalar_rms(heard.replies), server.rate,
        orders.num_bytes, heard.num_bytes, sum(reply.num_forwards for reply in heard.replies),
        sum(reply.num_flops for reply in heard.replies), sum(reply.num_skipped for reply in heard.replies), 0.0,
        num_prefix_flops=sum(reply.num_prefix_flops for reply in heard.replies),
        slopes={reply.client: reply.slopes for reply in heard.replies if reply.slopes and is_asked},
    )  # fmt: skip


def share_of(recipe: Recipe, reply: Reply) -> float:
    """How much a reply counts in the mean: as any other, or by its number of examples."""
    return 1.0 if recipe.federation.weighting == "equal" else float(reply.num_examples)


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
            heard.failed[client] = describe(error)
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
        told = withheld_failures(server.plan, failed)
        first = f"{len(failed)} failed, first client {min(told)}: {told[min(told)]}" if told else "others failed"
        found = "too few" if server.plan and server.plan.hides_cohort else str(len(heard.replies))
        raise EngineError(f"round {server.round}: {found} usable replies, federation.min_replies is {needed}; {first}")


def _scalar_rms(replies: list[Reply]) -> float:
    """Over clients, NaN where no projected gradient was finite."""
    each = [root_mean_square(reply.scalars) if reply.scalar_rms is None else reply.scalar_rms for reply in replies]
    squares = [rms**2 for rms in each if rms is not None]
    return float(np.sqrt(np.mean(squares))) if squares else float("nan")
