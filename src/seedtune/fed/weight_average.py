"""The protocol of weights: the tuned weights go down to each client of the cohort and come back changed.

FedAvg, FedMeZO as published (arXiv 2402.05926) and FedZO: the server takes the mean. A round is a snapshot in the
trajectory, since a mean of rounded weights is not a sum of directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..space import Weights, copy_into, digest
from ..zo.trajectory import RoundRecord
from .messages import Order, Reply, pack_weights, unpack_weights
from .rounds import Server, client_weights


@dataclass(frozen=True)
class WeightAverage:
    """Orders that carry the weights, and replies whose weights are averaged."""

    def order(self, server: Server, client: int) -> Order:
        rate, packed = server.recipe.local.learning_rate, pack_weights(server.replica.weights)
        return Order(server.round, client, server.replica.digest, rate, weights=packed)

    def check(self, server: Server, reply: Reply) -> None:
        unpack_weights(reply.weights, server.space)

    def reduce(self, server: Server, replies: list[Reply]) -> RoundRecord:
        """theta <- sum_i w_i theta_i: float64 sums in sorted client order, one rounding to storage."""
        clients, scalars = tuple(reply.client for reply in replies), np.zeros((len(replies), 0, 0), np.float32)
        if replies:
            copy_into(server.replica.weights, _mean(server, replies))
            server.replica.digest = digest(server.replica.weights)
        return RoundRecord(server.round, clients, scalars, np.zeros(len(replies)), server.replica.digest)


def _mean(server: Server, replies: list[Reply]) -> Mapping[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for reply, share in zip(replies, client_weights(server.recipe, replies), strict=True):
        weights: Weights = unpack_weights(reply.weights, server.space)
        for name, tensor in weights.items():
            term = tensor.double() * float(share)
            sums[name] = sums[name].add_(term) if name in sums else term
    return {name: total.to(server.replica.weights[name].dtype) for name, total in sums.items()}
