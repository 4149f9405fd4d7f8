"""The protocol of keys and scalars: a round costs a client 4 bytes a direction upwards.

Down goes what the client missed: for each round the scalars that moved the weights, from which it rebuilds them; or
the weights themselves, where that is shorter. Up go the projected gradients of its local steps. With keys of its own
(`keys = "own"`) each client explores other directions and the server applies them all: FedMeZO told in scalars. With
shared keys the cohort measures the same directions and the server applies their mean: DeComFL; their median or trimmed
mean, which a few liars cannot move far; or the sign that most clients see, which costs a bit a direction in place of
4 bytes: FeedSign.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import Recipe
from ..errors import MessageError
from ..space import digest
from ..zo.expansion import moves
from ..zo.trajectory import RoundRecord, round_keys, round_updates
from ..zo.update import apply
from . import aggregation
from .contribution import Total, mean_scalars, voted
from .distances import from_scalars
from .messages import Order, Reply
from .reach import check_reach
from .replies import share_of
from .server import AHEAD, Server


@dataclass(frozen=True)
class SeedScalar:
    """Orders that catch clients up, and replies reduced to one record of scalars."""

    def order(self, server: Server, client: int) -> Order:
        stands_at, replays = server.up_to_date.get(client, 0), server.recipe.secure_sum.enabled
        missed = server.packed_since(max(stands_at, 0))
        rate = server.rate * server.rate_factor(client)
        order = Order(server.round, client, server.replica.digest, rate, missed, rate_ratio=server.rate_ratio)
        is_short = sum(map(len, missed)) <= sum(t.nbytes for t in server.replica.weights.values())
        if replays or (is_short and stands_at != AHEAD):  # a client of secure sums takes no weights (`order_rules`)
            return order
        return replace(order, missed=(), weights=server.packed_weights)

    def check(self, server: Server, reply: Reply) -> None:
        recipe = server.recipe
        asked = (recipe.federation.local_steps, recipe.num_scalars)
        if reply.scalars.shape != asked:
            raise MessageError(f"client {reply.client} sent scalars of shape {reply.scalars.shape}, asked were {asked}")
        _check_told(recipe, reply)
        whose, factor = f"client {reply.client} sent", server.rate_factor(reply.client)
        check_reach(server.header, server.space, server.round_rates, whose, reply.scalars, factor)

    def reduce(self, server: Server, replies: Iterable[Reply]) -> RoundRecord:
        """theta <- theta - sum_i eta_i w_i / P sum_hp g_ihp z_ihp, clients in sorted order.

        By votes: theta <- theta - eta / P sum_hp sign(sum_i w_i sign(g_ihp)) z_hp, and a tie moves nothing.
        """
        return _applied(server, _record(server, list(replies)))

    def reduce_sum(self, server: Server, clients: tuple[int, ...], total: Total) -> RoundRecord:
        """As `reduce`, from the sums of w_i g_ihp and of w_i over those that did not skip; keys are shared."""
        recipe = server.recipe
        shape = (recipe.federation.local_steps, recipe.num_scalars)
        of = voted if recipe.federation.aggregation == "sign-vote" else mean_scalars
        one = of(total, shape)
        check_reach(server.header, server.space, server.round_rates, "the clients' mean has", one)
        return _applied(server, _shared_record(server, clients, one))

    def distances(self, server: Server, replies: Sequence[Reply]) -> Mapping[int, float]:
        recipe, header, clients = server.recipe, server.header, [reply.client for reply in replies]
        rates = [server.rate * server.rate_factor(client) / recipe.num_scalars for client in clients]
        told = [
            moves(header.split_at(server.rate_ratio),
                  round_keys(header, server.round, reply.client, reply.scalars.shape),
                  -rate * reply.scalars.astype(np.float64))
            for rate, reply in zip(rates, replies, strict=True)
        ]  # fmt: skip
        far = np.zeros(len(clients))
        for block in zip(*told, strict=True):
            space, updates = server.space.part(block[0].tensors), [(move.keys, move.coefficients) for move in block]
            far += from_scalars(space, updates, header.distribution)
        return dict(zip(clients, far.tolist(), strict=True))


def _applied(server: Server, record: RoundRecord) -> RoundRecord:
    apply(server.space, server.replica.weights, round_updates(server.header, record), server.header.distribution)
    server.replica.digest = digest(server.replica.weights)
    return replace(record, digest=server.replica.digest)


def _check_told(recipe: Recipe, reply: Reply) -> None:
    """
    Raises:
        MessageError: a scalar that a client of this recipe does not send.
    """
    sizes = np.abs(reply.scalars)
    if recipe.federation.aggregation == "sign-vote" and not (np.isnan(sizes) | np.isin(sizes, (0, 1))).all():
        raise MessageError(f"client {reply.client} sent scalars where signs were asked: 1, -1 or 0, NaN where skipped")
    clip = np.float32(recipe.local.clip)
    if clip and np.nanmax(sizes, initial=0.0) > clip:
        raise MessageError(f"client {reply.client} sent a scalar beyond local.clip = {recipe.local.clip:g}")


def _record(server: Server, replies: list[Reply]) -> RoundRecord:
    recipe, clients = server.recipe, tuple(reply.client for reply in replies)
    shape = (len(replies), recipe.federation.local_steps, recipe.num_scalars)
    if not replies:
        return RoundRecord(server.round, (), np.zeros(shape, np.float32), np.zeros(0), b"")
    scalars = np.stack([reply.scalars for reply in replies])
    counts = np.array([share_of(recipe, reply) for reply in replies])
    factors = np.array([server.rate_factor(client) for client in clients])
    if recipe.federation.keys == "shared":
        return _shared_record(server, clients, _aggregated(recipe, scalars, factors, counts))
    rate = server.rate / recipe.num_scalars
    shares = rate * factors * (counts / counts.sum())
    return RoundRecord(server.round, clients, scalars, shares, b"", rate_ratio=server.rate_ratio)


def _shared_record(server: Server, clients: tuple[int, ...], one: np.ndarray) -> RoundRecord:
    """Of the scalars [H, P] that stand for all clients."""
    factor = np.array([server.rate / server.recipe.num_scalars])
    return RoundRecord(server.round, clients, one[None], factor, b"", rate_ratio=server.rate_ratio)


def _aggregated(recipe: Recipe, scalars: np.ndarray, factors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What moves the weights in place of the scalars [n, H, P] of a cohort with shared directions; float32 [H, P]."""
    if recipe.federation.aggregation == "sign-vote":
        return aggregation.majority(scalars, counts)
    scaled = scalars * factors[:, None, None]
    if recipe.federation.aggregation == "median":
        return aggregation.median(scaled)
    if recipe.federation.aggregation == "trimmed-mean":
        return aggregation.trimmed_mean(scaled, recipe.federation.trimmed_fraction)
    return aggregation.mean(scaled, counts)
