"""The round. Start reading here.

    cohort <- sampled by key
    orders -> the engine -> replies, or their sum      (a client that fails or stays away is left out, and named)
    the protocol reduces them to one record, `apply` moves the shared weights
    what the replies tell sets the next rates and is watched for surges, which may take rounds back
    the record's digest is the new state

`after` folds a finished round into the server's state (`server`), in a run and when it is resumed. How orders and
replies travel is `replies`, one a client, or `secure_round`, where the server sees only sums. It touches no file and no
network: an engine carries the messages, the run store keeps what `run_rounds` yields.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..privacy.accounting import epsilon
from ..privacy.ledger import withheld_failures
from ..space import digest
from ..zo.trajectory import RoundRecord, check_digest, path, taken_back
from .client import root_mean_square
from .guard import Seen
from .participation import asked_in, cohort_of, drops_out
from .rates import Told
from .replies import singly
from .server import AHEAD, LOST, Engine, ExchangeProtocol, RoundResult, Server

Exchange = Callable[[Server, ExchangeProtocol, Engine, tuple[int, ...]], RoundResult]
"""How a round's messages go to the clients asked and what came of them, `cohort` and `dropped` not filled in yet: an
order and a reply each (`replies.singly`), or so that the server sees only sums (`secure_round.SecureRound`)."""

PutBack = Callable[[tuple[RoundRecord, ...]], None]
"""Brings the server's weights to the end of a path of records, from the base or a snapshot."""


def run_rounds(
    server: Server,
    protocol: ExchangeProtocol,
    engine: Engine,
    put_back: PutBack | None = None,
    gather: Callable[[Server], Server] = lambda server: server,
    exchange: Exchange = singly,
) -> Iterator[tuple[Server, RoundResult]]:
    """The rounds that are left, each yielded once the server's weights stand at its digest.

    `put_back` is needed where `run.on_surge` is "backoff". `gather` waits, before each round, for those who can be
    asked, and tells the server where they stand.

    Raises:
        EngineError: clients failed and fewer than `min_replies` answered, or than a secure sum needs.
    """
    while server.round < server.recipe.federation.num_rounds and not server.must_stop:
        server, result = one_round(gather(server), protocol, engine, put_back, exchange)
        yield server, result


def one_round(
    server: Server,
    protocol: ExchangeProtocol,
    engine: Engine,
    put_back: PutBack | None = None,
    exchange: Exchange = singly,
) -> tuple[Server, RoundResult]:
    started = time.perf_counter()
    cohort = cohort_of(server.recipe, server.round, server.secret)
    dropped = tuple(client for client in cohort if drops_out(server.recipe, server.round, client))

    result = exchange(server, protocol, engine, asked_in(server.recipe, server.round, server.secret))

    result = replace(result, cohort=cohort, dropped=dropped)
    if server.plan:
        spent, rms = epsilon(server.plan, server.round + 1), root_mean_square(result.record.scalars)
        result = replace(result, epsilon=spent, scalar_rms=float("nan") if rms is None else rms)
    ahead = after(server, result)
    result = replace(result, surge=ahead.guard.surge)
    if result.surge and server.recipe.run.on_surge == "backoff":
        result = replace(result, record=_undone(server, result, result.surge.good_state, put_back))
        ahead = after(server, result)
    told = withheld_failures(server.plan, result.failed)  # to whoever listens: a file, a log, a screen
    return ahead, replace(result, failed=told, seconds=time.perf_counter() - started)


def after(server: Server, result: RoundResult) -> Server:
    """The server once a finished round has moved its replica: a fold, the same in a run and in a resumed one.

    Who took part stood at the round's beginning; where a client that failed stands is not known. A round whose clients
    all failed is one in which their weights were not finite (`replies`). A private run's guard sees nothing, since
    there are no losses.
    """
    record, guard, log = result.record, server.guard, (*server.log, result.record)
    since = server.log[-1].round + 1 if server.log else 0
    failed = {client: AHEAD if server.up_to_date.get(client) == AHEAD else LOST for client in result.failed}
    places = {**server.up_to_date, **failed, **dict.fromkeys(record.clients, len(server.log))}
    if (record.clients or result.failed) and not server.plan:
        guard = guard.after(Seen(since, result.train_loss, result.scalar_rms, result.rate))
    else:
        guard = replace(guard, surge=None)
    if record.back_to is not None:
        guard, log = guard.backed_off(), path(log)
        places = {client: at if 0 <= at <= len(log) else AHEAD for client, at in places.items()}
    told = Told(result.signals, result.slopes, record.back_to)
    rates = server.rates.after(record.round, told).keeping(guard.good_states)
    return replace(server, round=record.round + 1, log=log, up_to_date=places, rates=rates, guard=guard)


def _undone(server: Server, result: RoundResult, good: int, put_back: PutBack | None) -> RoundRecord:
    """Puts the weights back to the state `good`, where the loss was best, and says so in place of the round's record.

    Raises:
        DigestMismatch: they are not the weights that were there then.
    """
    if put_back is None:
        raise ValueError("run_rounds needs put_back where run.on_surge is 'backoff'")
    records = tuple(record for record in server.log if record.round < good)
    put_back(records)
    server.replica.digest = digest(server.replica.weights)
    if records:
        check_digest(server.replica.digest, records[-1].digest, f"put back to {good} rounds")
    return taken_back(result.record, good, server.replica.digest)
