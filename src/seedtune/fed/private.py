"""What a client of a private run sends: one bounded vector of scalars, and nothing else that follows from its data.

A reply has the same length and the same fields whatever the data is, but for its scalars: no loss, no number of
examples, no skipped steps, no operations (a batch's length is data). A step whose loss was not finite counts as 0.
With central noise the scalars are the exact contribution, for a server that is trusted; with local noise they are
noised here.

The client's secret, from which its noise and the choice of its examples follow, stays in its memory, which is of one
run. There it also notes which order it answered last: with local noise the server is not trusted, and a second answer
to other weights in the same round would be a release that nobody accounted for, so it is refused. What noise is worth
is `privacy.plan`'s.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from math import nan
from typing import Any

import numpy as np
import torch

from ..config import Recipe
from ..data.keyed import client_batch_indices
from ..errors import ConfigError, EngineError, MessageError, SeedtuneError
from ..privacy.clipping import clipped
from ..privacy.noise import noisy
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
        if self.memory is None:
            raise ConfigError("a private client was asked without a memory: it has no secret to draw noise from")
        if SECRET not in self.memory:
            self.memory[SECRET] = new_secret()
        return self.memory[SECRET]

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
            MessageError: this round, or a later one, was answered already, and on other weights.
        """
        plan, values = self.plan, np.where(np.isfinite(scalars), scalars, 0).astype(np.float64)
        if plan.unit == "client":
            values = clipped(values.reshape(1, -1), plan.clip).reshape(values.shape)
        if plan.noise == "local":
            self._note(order)
            given = values.tobytes()
            drawn = words(self.secret, "local noise", 2 * values.size, order.round, order.client, given=given)
            values = noisy(values, plan.standard_deviation, drawn) / plan.denominator
        return Reply(order.round, order.client, 1, num_forwards, nan, values.astype(np.float32), is_fixed_size=True)

    def _note(self, order: Order) -> None:
        """Remembers what is answered now, and refuses what was not accounted for."""
        if order.round >= self.plan.num_rounds:
            raise MessageError(
                f"client {order.client} was asked for round {order.round}, but {self.plan.num_rounds} rounds are "
                f"accounted for"
            )
        name = f"privacy-answered-{order.client}"
        now = order.round.to_bytes(4, "big") + blake2b(order.digest, digest_size=16).digest()
        before = self.memory.get(name, b"") if self.memory is not None else b""
        if before[:4] > now[:4] or (before[:4] == now[:4] and before != now):
            raise MessageError(
                f"client {order.client} has answered round {int.from_bytes(before[:4], 'big')} of this run already, "
                f"and was asked for round {order.round} on other weights: a second answer is not accounted for"
            )
        if self.memory is not None and before != now:
            self.memory[name] = now


@contextmanager
def discreet(order: Order) -> Iterator[None]:
    """
    Raises:
        EngineError: that a step failed within it, but not why, since that may follow from the data.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SeedtuneError) and not isinstance(error, EngineError):
            raise  # of the recipe, the weights or the number of examples, in words of ours
        where = f"client {order.client}, round {order.round}"
        raise EngineError(f"{where}: a local step of a private run failed; why stays on the device") from None


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
