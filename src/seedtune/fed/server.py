"""What a round is made of: the server between two rounds, what carries messages, what they say, what came of them.

Frozen records and interfaces; what a round does with them is `rounds`. No file and no network is touched.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..config import Recipe
from ..privacy.accounting import num_rounds_within
from ..privacy.plan import Plan
from ..space import Space
from ..zo.trajectory import Header, RoundRecord
from .client import Replica
from .guard import MAX_BACKOFFS, Guard, Surge
from .messages import Order, Reply, pack_record, pack_weights
from .rates import NextRates
from .schedule import rate_share_at

if TYPE_CHECKING:
    from .contribution import Total

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

    def reduce_sum(self, server: "Server", clients: tuple[int, ...], total: "Total") -> RoundRecord:
        """`reduce` where only the sum over some clients is known; moves the replica.

        Raises:
            NotFinite: a mean that weights cannot be moved by; the replica is as it was.
        """
        ...

    def distances(self, server: "Server", replies: Sequence[Reply]) -> Mapping[int, float]:
        """How far each client's update of this round lies from the mean, by client (`distances`)."""
        ...


@dataclass(frozen=True)
class Server:
    """The server between two rounds.

    round: the next round's number. log: the records that lead from the base to the weights. up_to_date: for each
    client that ever was asked, the number of these that its weights stand at, `AHEAD` or `LOST`. rates: what the
    coming round's learning rates follow from. guard: what it knows of the loss. secret: gives a private run's central
    noise and its secret samples.
    packed: by round, a record and how it travels, one memory for all states of a run.
    """

    recipe: Recipe
    header: Header
    space: Space
    replica: Replica
    round: int
    log: tuple[RoundRecord, ...]
    up_to_date: Mapping[int, int]
    rates: NextRates
    guard: Guard
    secret: bytes = field(default=b"", repr=False)
    packed: dict[int, tuple[RoundRecord, bytes]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def at_start(cls, recipe: Recipe, header: Header, space: Space, replica: Replica, secret: bytes = b"") -> "Server":
        return cls(recipe, header, space, replica, 0, (), {}, NextRates.of(recipe), Guard(recipe), secret)

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
        eta = self.rates.auto.rate if self.rates.auto else self.recipe.first_rate
        return eta * rate_share_at(self.recipe, self.round) * self.guard.rate_share

    @property
    def rate_ratio(self) -> float | None:
        """Block 2's rate over block 1's in the coming round; None where it is what the header says."""
        return self.rates.auto.ratio if self.rates.auto else None

    @property
    def round_rates(self) -> tuple[float, float | None]:
        return self.rate, self.rate_ratio

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
    num_prefix_flops: operations of block 1 among them, where the model is split. mean_loss: of the clients, where the
    losses of single ones are not known. epsilon: what a private run has spent.
    slopes: what clients measured for the next rates, by client.
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
    mean_loss: float | None = None
    epsilon: float | None = None
    slopes: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def train_loss(self) -> float:
        """Mean over clients, NaN where no loss was finite."""
        if self.mean_loss is not None:
            return self.mean_loss
        finite = [loss for loss in self.losses.values() if np.isfinite(loss)]
        return float(np.mean(finite)) if finite else float("nan")
