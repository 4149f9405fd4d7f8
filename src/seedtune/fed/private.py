"""What a client of a private run sends: one bounded vector of scalars, and nothing else that follows from its data.

A reply has the same length and the same fields whatever the data is, but for its scalars: no loss, no number of
examples, no skipped steps, no operations (a batch's length is data). A step whose loss was not finite counts as 0.
With central noise the scalars are the exact contribution, for a server that is trusted; with local noise they are
noised here.

The client's secret, from which its noise and the choice of its examples follow, stays in its memory, which is of one
run. Where the server is not trusted (noise "local" or "shares"), there is one release a round: the first answer is kept
before it leaves, and given again whatever the rate is that is asked with. Another state in the same round, or an
earlier round, is refused. What noise is worth is `privacy.plan`'s.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from math import nan
from typing import Any

import msgpack
import numpy as np
import torch

from ..config import Recipe
from ..data.keyed import client_batch_indices
from ..errors import ConfigError, MessageError
from ..privacy.clipping import clipped
from ..privacy.noise import noisy, noisy_share
from ..privacy.plan import Plan
from ..privacy.sampling import secret_batch
from ..privacy.secrets import new_secret, words
from ..zo.estimators import LossesAt
from .messages import Order, Reply

SECRET = "privacy-secret"
"""The name of the secret in a client's memory. Whoever resumes clients from elsewhere has to put it there."""


@dataclass(frozen=True)
class PrivateSite:
    """What clients of a private run have beyond others.

    chosen(client, places): the examples at these places of the client's own, as a batch.
    losses(batch): the loss of each of its examples, float32 [B].
    memory: where the secret and the last answers are kept; without one nothing leaves.
    """

    recipe: Recipe
    plan: Plan
    chosen: Callable[[int, np.ndarray], Any]
    losses: Callable[[Any], torch.Tensor]
    memory: MutableMapping[str, bytes] | None = field(default=None, repr=False)

    @property
    def secret(self) -> bytes:
        """
        Raises:
            ConfigError: the site has no memory.
        """
        memory = self._memory
        if SECRET not in memory:
            memory[SECRET] = new_secret()
        return memory[SECRET]

    def batch(self, order: Order, num_examples: int, public_key: int) -> tuple[Any, int]:
        """The examples of a client's step and how many these are; None where a sample came out empty.

        public_key: chooses them where that is no secret.
        """
        if self.plan.hides_batches:
            places = secret_batch(self.plan, self.secret, num_examples, order.round, order.client)
        else:
            places = client_batch_indices(public_key, num_examples, self.recipe.federation.batch_size)
        return (self.chosen(order.client, places), len(places)) if len(places) else (None, 0)

    def reply(self, order: Order, scalars: np.ndarray, num_forwards: int) -> Reply:
        """What leaves the device. `scalars`: [H, P], of the client's steps or already the sum over its examples.

        Raises:
            MessageError: as `released`.
        """
        if (before := self.released(order)) is not None:
            return before
        plan, values = self.plan, np.where(np.isfinite(scalars), scalars, 0).astype(np.float64)
        if plan.unit == "client":
            values = clipped(values.reshape(1, -1), plan.clip).reshape(values.shape)
        if plan.trusts_server:
            return self._reply(order, values, num_forwards)
        given = values.tobytes()
        drawn = words(self.secret, f"{plan.noise} noise", 2 * values.size, order.round, order.client, given=given)
        if plan.noise == "shares":
            values = noisy_share(values, plan.share_deviation, plan.share_step, drawn)
        else:
            values = noisy(values, plan.standard_deviation, drawn) / plan.denominator
        reply = self._reply(order, values, num_forwards)
        kept = [order.round, order.digest, num_forwards, reply.scalars.astype("<f8").tobytes()]
        self._memory[self._name(order)] = msgpack.packb(kept)
        return reply

    def released(self, order: Order) -> Reply | None:
        """Return what this client has answered in this round already; None where it has not, or trusts the server.

        Raises:
            MessageError: this round was answered on other weights, a later one was answered, or the round is not one of
                those that are accounted for.
        """
        if self.plan.trusts_server:
            return None
        if order.round >= self.plan.num_rounds:
            raise MessageError(
                f"client {order.client} was asked for round {order.round}, but {self.plan.num_rounds} rounds are "
                f"accounted for"
            )
        last, digest, num_forwards, scalars = self._last(order)
        if order.round < last or (order.round == last and order.digest != digest):
            raise MessageError(
                f"client {order.client} has answered round {last} of this run already, and was asked for round "
                f"{order.round} on other weights: a second answer is not accounted for"
            )
        if order.round > last:
            return None
        shape = self.recipe.federation.local_steps, self.recipe.num_scalars
        return self._reply(order, np.frombuffer(scalars, "<f8").reshape(shape), num_forwards)

    def is_released(self, order: Order) -> bool:
        """Whether nothing new can leave for this order: the server is trusted, or the round was answered."""
        return self.plan.trusts_server or order.round <= self._last(order)[0]

    def _last(self, order: Order) -> tuple[int, bytes, int, bytes]:
        """The round that the order's client answered last, on which weights, after how many forwards, with what."""
        kept = self._memory.get(self._name(order))
        return tuple(msgpack.unpackb(kept)) if kept else (-1, b"", 0, b"")

    def _reply(self, order: Order, values: np.ndarray, num_forwards: int) -> Reply:
        """Shares stay float64: they are coded in fixed point and not sent as they are."""
        kind, rms = (np.float64, nan) if self.plan.noise == "shares" else (np.float32, None)
        return Reply(
            order.round, order.client, 1, num_forwards, nan, values.astype(kind), is_fixed_size=True, scalar_rms=rms
        )

    @property
    def _memory(self) -> MutableMapping[str, bytes]:
        """
        Raises:
            ConfigError: the site has none.
        """
        if self.memory is None:
            raise ConfigError("a private client was asked without a memory: it has no secret to draw noise from")
        return self.memory

    def _name(self, order: Order) -> str:
        return f"privacy-answered-{order.client}"


def sum_over_examples(
    plan: Plan, estimated: Callable[[LossesAt], Any], losses_at: LossesAt, num_examples: int, num_scalars: int
) -> np.ndarray:
    """The contributions of a batch's examples, each clipped, added up: float64 [P], exact in any order.

    estimated: what an estimator makes of the losses at its points (`Probe`), for one example.
    losses_at: gives a loss an example at each point, [points][B]; asked once.
    """
    table: list[Any] = []

    def of(example: int) -> LossesAt:
        def losses(points: Any) -> list[float]:
            if not table:
                table.extend(losses_at(points))
            return [row[example] for row in table]

        return losses

    each = [estimated(of(example)).scalars for example in range(num_examples)]
    rows = np.array(each, np.float64).reshape(num_examples, num_scalars)
    return clipped(rows, plan.clip).sum(0)
