"""The protocol of weights: the tuned weights go down to each client of the cohort and come back changed.

FedAvg, FedMeZO as published (arXiv 2402.05926) and FedZO: the server takes the mean. A round is a snapshot in the
trajectory, since a mean of rounded weights is not a sum of directions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import MessageError, NotFinite
from ..space import Space, Weights, copy_into, digest
from ..zo.trajectory import RoundRecord
from .contribution import Total, mean_deltas
from .distances import from_weights
from .messages import Order, Reply, unpack_weights
from .replies import share_of
from .server import Server


@dataclass(frozen=True)
class WeightAverage:
    """Orders that carry the weights, and replies whose weights are averaged."""

    def order(self, server: Server, client: int) -> Order:
        rate = server.rate * server.rate_factor(client)
        return Order(
            server.round, client, server.replica.digest, rate, weights=server.packed_weights,
            rate_ratio=server.rate_ratio,
        )  # fmt: skip

    def check(self, server: Server, reply: Reply) -> None:
        if reply.scalars.size:
            raise MessageError(f"client {reply.client} sent scalars beside its weights, which nobody asked for")
        unpack_weights(reply.weights, server.space)

    def reduce(self, server: Server, replies: Iterable[Reply]) -> RoundRecord:
        """theta <- sum_i w_i theta_i: float64 sums in sorted client order, one rounding to storage.

        Memory: the sums, whatever the number of replies.
        """
        sums: dict[str, torch.Tensor] = {}
        shares: dict[int, float] = {}
        for reply in replies:
            shares[reply.client] = share_of(server.recipe, reply)
            for name, tensor in unpack_weights(reply.weights, server.space).items():
                term = tensor.double().mul_(shares[reply.client])
                sums[name] = sums[name].add_(term) if name in sums else term
        if shares:
            copy_into(server.replica.weights, {name: total / sum(shares.values()) for name, total in sums.items()})
            server.replica.digest = digest(server.replica.weights)
        return _snapshot(server, tuple(shares))

    def reduce_sum(self, server: Server, clients: tuple[int, ...], total: Total) -> RoundRecord:
        """theta <- theta + sum_i w_i (theta_i - theta) / sum_i w_i: in float64, one rounding to storage."""
        start, mean = server.replica.weights, mean_deltas(total, server.space)
        moved = {name: (held.double() + mean[name].to(held.device)).to(held.dtype) for name, held in start.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in moved.values()):
            raise NotFinite("the mean of the clients' weights is beyond what the weights' type holds")
        copy_into(start, moved)
        server.replica.digest = digest(start)
        return _snapshot(server, clients)

    def distances(self, server: Server, replies: Sequence[Reply]) -> Mapping[int, float]:
        """Memory: the replies' weights, and one client's unpacked."""
        far = from_weights(_Unpacked(replies, server.space))
        return dict(zip((reply.client for reply in replies), far.tolist(), strict=True))


def _snapshot(server: Server, clients: tuple[int, ...]) -> RoundRecord:
    """The record of a round whose outcome is the weights as they are now."""
    none = np.zeros((len(clients), 0, 0), np.float32)
    return RoundRecord(server.round, clients, none, np.zeros(len(clients)), server.replica.digest)


@dataclass(frozen=True)
class _Unpacked:
    """The weights of replies, unpacked one at a time whenever they are iterated."""

    replies: Sequence[Reply]
    space: Space

    def __iter__(self) -> Iterator[Weights]:
        return (unpack_weights(reply.weights, self.space) for reply in self.replies)

    def __len__(self) -> int:
        return len(self.replies)
