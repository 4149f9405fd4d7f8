"""A cohort that measures the same directions: its batches ride the same perturbed weights.

With shared keys and one local step all clients of a round evaluate their batches at the same points. Each by itself
(`client.local_round`) makes theta + mu z anew; here every point is made once, in a copy of the tuned tensors, and the
batches go through it one after another. Replies are those of `local_round` to the bit: same values, same functions,
same shapes, so a run's digest does not tell which it was.

Memory, over that of one client: the copy (`MOST_COPIED`), and the batches (`MOST_KEPT`: with the outputs of
their frozen layers); a cohort that needs more rides in groups. Nothing is timed. Who
does not ride, takes `local_round`: see `Cohort`. Carrying and encoding messages is the engine's.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..zo.estimators import ESTIMATORS, LossesAt, Probe
from ..zo.materialised import at_copy
from ..zo.meter import WHOLE, Tally
from ..zo.perturb import Perturbation
from .auto import is_due
from .client import Site, Step, batches, local_round, named, reply_of, step_keys, told
from .messages import Order, Reply, encode_reply
from .private import SECRET

MOST_COPIED = 2**27
"""Bytes of tuned tensors of which a copy is made; and an eighth of the model where that is more."""
MOST_KEPT = 2**26
"""Bytes of batches, with outputs of frozen layers, that are held at once; at least one client's."""

Answer = tuple[int, Reply | Exception]


@dataclass
class _Rider:
    """A client on its way through the points: its batch, what is kept of it, and its losses so far, or its error."""

    order: Order
    batch: Any = None
    tally: Tally | None = None
    losses: list[float] = field(default_factory=list)
    error: Exception | None = None

    @property
    def num_flops(self) -> int:
        return self.tally.flops if self.tally else 0

    @property
    def num_bytes(self) -> int:
        own = dict(vars(self.batch)) if hasattr(self.batch, "__dict__") else self.batch
        if frozen := getattr(self.batch, "frozen", None):
            own["frozen"] = frozen.values
        return sum(part.nbytes for part in tree_leaves(own) if isinstance(part, torch.Tensor))


class Cohort:
    """The clients of one site, round after round.

    Those ride whose site has shared keys, one zeroth-order step of two-point or one-sided differences, and tuned
    tensors that may be copied; who evaluate each point in a forward of their own, and need not catch up. The first of
    them also goes alone: unless both replies are the same bytes, nobody rides.
    """

    def __init__(self, site: Site):
        self.site = site
        self._is_exact: bool | None = None

    def replies(self, orders: Iterable[tuple[int, Order | Exception]]) -> Iterator[Answer]:
        """What `local_round` gives for each order, or raises; an error in place of an order is the answer.

        Cost: that of `local_round`, but the noise of a point once a group in place of once a client. Orders are taken
        one at a time where nobody rides; where all do, without what they bring to catch up with.
        """
        waiting: list[Order] = []
        for client, order in orders:
            if isinstance(order, Exception):
                yield client, order
            elif self._rides(order) and all(order.round == other.round for other in waiting[:1]):
                waiting.append(replace(order, missed=(), weights=b""))
            else:
                yield from self._ridden(waiting)  # before this one moves the replica
                waiting = []
                yield client, self._alone(order)
        yield from self._ridden(waiting)

    @cached_property
    def _may_ride(self) -> bool:
        site, recipe = self.site, self.site.recipe
        is_shared = site.header.keys == "shared" and recipe.federation.local_steps == 1
        copied = sum(tensor.nbytes for tensor in site.replica.weights.values())
        model = sum(parameter.nbytes for parameter in site.module.parameters())
        is_whole = recipe.local.order == "zeroth" and site.cut is None
        by_example = site.private is not None and site.private.plan.unit == "example"
        return is_shared and is_whole and not by_example and copied <= max(MOST_COPIED, model // 8)

    def _rides(self, order: Order) -> bool:
        is_plain = self._may_ride and not is_due(self.site.recipe, order.round)
        is_here = is_plain and self._is_exact is not False and order.digest == self.site.replica.digest
        if self.site.private and not self.site.private.plan.trusts_server:
            is_here = is_here and not self.site.private.is_released(order)
        return is_here and (self.site.evaluations.batched is None or self._takes_single_forwards(order))

    def _takes_single_forwards(self, order: Order) -> bool:
        """Whether each point has a forward of its own. An error of its batch is `local_round`'s to tell."""
        try:
            return self.site.evaluations.most(self.site.shape(next(batches(self.site, order))[1])) == 1
        except Exception:
            return False

    def _alone(self, order: Order) -> Reply | Exception:
        try:
            return local_round(self.site, order)
        except Exception as error:  # whatever it is, the others go on
            return error

    def _ridden(self, orders: Sequence[Order]) -> Iterator[Answer]:
        waiting = deque(orders)
        while waiting and not self._is_exact:
            order = waiting.popleft()
            alone = self._alone(order)
            if self._is_exact is None and isinstance(alone, Reply):
                self._is_exact = self._gives(order, alone)
            yield order.client, alone
        while waiting:
            yield from [(rider.order.client, self._reply(rider)) for rider in self._group(waiting)]

    def _gives(self, order: Order, expected: Reply) -> bool:
        """Whether a ride ends in the same bytes."""
        try:
            (rider,) = self._group(deque([order]))
            reply = self._reply(rider, forgetting(self.site))
            return isinstance(reply, Reply) and encode_reply(_uncounted(reply)) == encode_reply(_uncounted(expected))
        except Exception:  # what `local_round` can do and a ride cannot
            return False

    def _group(self, waiting: deque[Order]) -> list[_Rider]:
        """As many of those waiting as `MOST_KEPT` lets on, after their last point."""
        site, riders, num_kept = self.site, [], 0
        first, *others = self._points(waiting[0])
        with self._at(first):
            while waiting and num_kept < MOST_KEPT:
                riders.append(rider := _boarded(site, waiting.popleft()))
                _measure(site, rider)
                num_kept += rider.num_bytes
        for point in others:
            with self._at(point):
                for rider in riders:
                    _measure(site, rider)
        return riders

    def _points(self, order: Order) -> Sequence[Perturbation | None]:
        """Those of an order's step, as its estimator asks for them."""
        asked: list[Perturbation | None] = []

        def note(points: Sequence[Perturbation | None]) -> list[float]:
            asked.extend(points)
            return [0.0] * len(points)

        self._estimated(order, note)
        return asked

    def _estimated(self, order: Order, losses_at: LossesAt) -> Probe:
        local, keys = self.site.recipe.local, step_keys(self.site, order, 0)
        return ESTIMATORS[local.estimator](losses_at, keys, self.site.recipe.mu, self.site.header.distribution)

    def _at(self, point: Perturbation | None) -> AbstractContextManager[None]:
        site = self.site
        if not site.working:
            site.working.update({name: torch.empty_like(held) for name, held in site.replica.weights.items()})
        return at_copy(site.perturber, site.replica.weights, site.working, point)

    def _reply(self, rider: _Rider, site: Site | None = None) -> Reply | Exception:
        if rider.error:
            return rider.error
        probe = self._estimated(rider.order, lambda points: rider.losses)
        step = Step(told(self.site.recipe, probe.scalars), probe.loss, probe.num_forwards, rider.num_flops)
        return reply_of(site or self.site, rider.order, [step])


def forgetting(site: Site) -> Site:
    """A site whose private clients do not know what they answered, so that a reply is computed anew."""
    if site.private is None or site.private.plan.trusts_server:
        return site
    return replace(site, private=replace(site.private, memory={SECRET: site.private.secret}))


def _uncounted(reply: Reply) -> Reply:
    """The reply without its operations: the first to ask for an example's frozen layers pays for them."""
    return replace(reply, num_flops=0)


def _boarded(site: Site, order: Order) -> _Rider:
    rider = _Rider(order)
    with _noting(site, rider):
        _, rider.batch = next(batches(site, order))
        rider.tally = Tally(site.meter, site.shape(rider.batch), site.frozen_flops(rider.batch))
    return rider


def _measure(site: Site, rider: _Rider) -> None:
    """One more loss, unless there was an error."""
    if rider.error is None and (tally := rider.tally):
        with _noting(site, rider):
            rider.losses.append(tally.counted(WHOLE, lambda: float(site.loss(rider.batch))))


@contextmanager
def _noting(site: Site, rider: _Rider) -> Iterator[None]:
    """Whatever is raised is the rider's answer and stops nobody else."""
    try:
        with site.redacting(rider.order), named(rider.order, 0):
            yield
    except Exception as error:
        rider.error = error
