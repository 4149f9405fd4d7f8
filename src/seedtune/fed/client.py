"""A client's round: come to the server's weights, make H local steps, say what was learned.

The same functions run for every protocol and engine. A client keeps its replica of the shared weights; local steps
move a working copy, so the replica is always a state of the trajectory. Nothing here knows the other clients.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import Recipe
from ..errors import EngineError
from ..foreign_text import describe
from ..models.batched_forward import BatchedSuffix
from ..models.blocks import Cut
from ..space import Weights, copied, copy_into, digest
from ..zo import noise, split
from ..zo.estimators import ESTIMATORS, LossesAt, Probe
from ..zo.expansion import updates_of
from ..zo.meter import BACKPROPAGATION_FORWARDS, FROZEN, WHOLE, Meter, Shape, Tally
from ..zo.perturb import Perturber
from ..zo.trajectory import Header, RoundRecord, check_digest, direction_key, round_updates
from ..zo.update import apply
from .auto import is_due
from .byzantine import falsified, falsified_slopes, liars
from .evaluations import ONE_BY_ONE, BatchedWhole, Evaluations, num_together
from .messages import Order, Reply, pack_weights, unpack_weights
from .order_rules import check_sent_weights, unpacked_records
from .private import PrivateSite, sum_over_examples
from .redaction import redact_errors
from .slopes import Measured, along
from .split_steps import CutLosses
from .whole_steps import WholeLosses

if TYPE_CHECKING:
    from ..privacy.identities import Credentials


@dataclass
class Replica:
    """The shared weights as one party holds them, and their digest."""

    weights: Weights
    digest: bytes


@dataclass(frozen=True)
class Site:
    """Where clients work: one model, one replica, one working copy, whatever the number of clients it serves.

    working: the copy that local steps move; empty until a round needs one.
    batch(client, key): the client's training batch that `key` chooses.
    epoch(client, key): all its training examples in batches, in an order that `key` chooses.
    loss(batch): mean loss of the bound model, a float32 scalar; builds a graph exactly if gradients are enabled.
    shape(batch): what its forward's cost depends on.
    frozen_flops(batch): operations that frozen layers took when it was made.
    num_examples(client): its training examples.
    cut: of the model in two blocks, where steps are split (`Header.split`).
    evaluations: which of a step's share a forward.
    arrive(order): brings the replica to where an order begins, in place of `catch_up`'s own way, where more is known of
    the trajectory than the order tells.
    private: what clients of a private run send (`private`); None where nothing is hidden.
    credentials: what a node was given for secure sums (`privacy.identities`).
    """

    recipe: Recipe
    header: Header
    module: torch.nn.Module
    perturber: Perturber
    replica: Replica
    working: dict[str, torch.Tensor]
    batch: Callable[[int, int], Any]
    epoch: Callable[[int, int], Iterable[Any]]
    loss: Callable[[Any], torch.Tensor]
    shape: Callable[[Any], Shape]
    num_examples: Callable[[int], int]
    meter: Meter
    cut: Cut | None = None
    frozen_flops: Callable[[Any], int] = lambda batch: 0
    evaluations: Evaluations = ONE_BY_ONE
    arrive: Callable[[Order], None] | None = None
    private: PrivateSite | None = None
    credentials: "Credentials | None" = None

    @property
    def redacting(self) -> Callable[[Order], AbstractContextManager[None]]:
        """What withholds the reasons of errors (`redaction`), where they may follow from what must not leave."""
        if self.private:
            return partial(redact_errors, of_what="a private run")
        if self.recipe.secure_sum.enabled:
            return partial(redact_errors, of_what="a secure sum")
        return lambda order: nullcontext()


@dataclass(frozen=True)
class Step:
    """One local step: projected gradients (float32 [P], empty for first order), mean loss, forward passes, their
    floating-point operations, and those of block 1 among them where the model is split; and what it says of learning
    rates, where it was asked."""

    scalars: np.ndarray
    loss: float
    num_forwards: int
    num_flops: int
    num_prefix_flops: int = 0
    slopes: tuple[float, ...] = ()

    @property
    def is_skipped(self) -> bool:
        return bool(np.isnan(self.scalars).any()) or not np.isfinite(self.loss)


def local_round(site: Site, order: Order) -> Reply:
    """What a client does with an order.

    Cost: H steps, or as many as `local_epochs` take; for the zeroth order 2 P (two-point) or P + 1 (one-sided) forwards
    each, or what `zo.split` says, and inference memory plus the working copy.

    Raises:
        DigestMismatch: the client cannot come to the weights that the order speaks of.
        EngineError: a step failed; names client, round and step.
    """
    if site.private and (released := site.private.released(order)):
        return released
    catch_up(site, order)
    federation = site.recipe.federation
    sends_weights = federation.upload == "weights"
    moves = sends_weights or federation.local_steps > 1 or is_due(site.recipe, order.round)
    with working_copy(site, moves) as weights:
        with site.redacting(order):
            steps = list(_steps_of(site)(site, order, weights, move_last=sends_weights))
        packed = pack_weights(weights) if sends_weights else b""
    return reply_of(site, order, steps, packed)


def reply_of(site: Site, order: Order, steps: Sequence[Step], packed: bytes = b"") -> Reply:
    """What a client says of its steps: their scalars, or the packed weights that they led to."""
    scalars, sends_weights = np.stack([step.scalars for step in steps]), bool(packed)
    slopes = tuple(number for step in steps for number in step.slopes)
    if order.client in liars(site.recipe):
        scalars = told(site.recipe, falsified(site.recipe, order.round, order.client, scalars))
        slopes = falsified_slopes(site.recipe, slopes)
    if site.private:
        return site.private.reply(order, scalars, sum(step.num_forwards for step in steps))
    return Reply(
        order.round, order.client, site.num_examples(order.client), sum(step.num_forwards for step in steps),
        _mean_of_finite([step.loss for step in steps]),
        scalars=np.zeros((0, 0), np.float32) if sends_weights else scalars, weights=packed,
        num_skipped=sum(step.is_skipped for step in steps), num_flops=sum(step.num_flops for step in steps),
        scalar_rms=root_mean_square(scalars) if sends_weights else None,
        num_prefix_flops=sum(step.num_prefix_flops for step in steps),
        slopes=slopes,
    )  # fmt: skip


def _steps_of(site: Site) -> Callable[..., Iterator[Step]]:
    if site.recipe.local.order == "first":
        return _first_order_steps
    if site.private and site.private.plan.unit == "example":
        return partial(_example_step, site.private)
    return _zeroth_order_steps


def root_mean_square(scalars: np.ndarray) -> float | None:
    """Of the finite ones, None where there are none."""
    finite = scalars[np.isfinite(scalars)].astype(np.float64)
    return float(np.sqrt(np.mean(finite**2))) if finite.size else None


def _mean_of_finite(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def catch_up(site: Site, order: Order) -> None:
    """Brings the replica to the order's digest: by the weights sent, or by replaying the rounds that were missed.

    Rounds that the replica already went through are passed over, so a reply that was lost costs nothing more.

    Raises:
        DigestMismatch: neither leads there, with both digests.
    """
    replica, space = site.replica, site.perturber.space
    if site.arrive is not None:
        site.arrive(order)
    if order.digest == replica.digest:
        return
    check_sent_weights(site.recipe, order)
    records = _since(replica.digest, list(unpacked_records(site.recipe, order)))
    updates = (update for record in records for update in round_updates(site.header, record))
    try:
        if order.weights:
            copy_into(replica.weights, unpack_weights(order.weights, space))
        apply(space, replica.weights, updates, site.header.distribution)
    finally:  # also after an order that breaks off: a replica never says that it is what it is not
        replica.digest = digest(replica.weights)
    check_digest(replica.digest, order.digest, f"of client {order.client} at the start of round {order.round}")


def _since(state: bytes, records: list[RoundRecord]) -> list[RoundRecord]:
    """The records after the last one that ended at the digest `state`; all of them where none did."""
    known = [i for i, record in enumerate(records) if record.digest == state]
    return records[known[-1] + 1 :] if known else records


@contextmanager
def working_copy(site: Site, moves: bool) -> Iterator[Weights]:
    """The weights that local steps read and move: a copy, unless nothing will move."""
    if not moves:
        site.perturber.bind(site.replica.weights)
        yield site.replica.weights
        return
    if site.working:
        copy_into(site.working, site.replica.weights)
    else:
        site.working.update(copied(site.replica.weights))
    site.perturber.bind(site.working)
    try:
        yield site.working
    finally:
        site.perturber.bind(site.replica.weights)


def _zeroth_order_steps(site: Site, order: Order, weights: Weights, move_last: bool) -> Iterator[Step]:
    num_steps, space = site.recipe.federation.local_steps, site.perturber.space
    blocks = site.header.split_at(order.rate_ratio)
    for step, batch in batches(site, order):
        with named(order, step):
            keys = step_keys(site, order, step)
            probe, tally = probed(site, batch, keys)
            scalars = told(site.recipe, probe.scalars)
            scaled = -order.rate / len(keys) * scalars.astype(np.float64)
            updates = updates_of(blocks, keys, scaled, _rounding_key(site, order, step))
            measured = Measured()
            if step == 0 and is_due(site.recipe, order.round):
                start = probe.loss if site.recipe.is_one_sided else None
                measured = along(site, order, batch, weights, updates, start)
            elif move_last or step < num_steps - 1:
                apply(space, weights, updates, site.header.distribution)
            first = _prefix_flops(site.cut, tally, measured.num_flops) if site.cut else 0
            yield Step(
                scalars, probe.loss, probe.num_forwards + measured.num_forwards, tally.flops + measured.num_flops,
                first, measured.slopes,
            )  # fmt: skip


def _prefix_flops(cut: Cut, tally: Tally, more: int) -> int:
    """Operations of block 1: those tallied, and their share of `more` operations of the whole model."""
    first, second = (tally.flops_of[name, cut.k] // tally.runs[name, cut.k] for name in ("prefix", "suffix"))
    return tally.flops_of[FROZEN] + tally.flops_of["prefix", cut.k] + more * first // (first + second)


def probed(site: Site, batch: Any, keys: Sequence[int]) -> tuple[Probe, Tally]:
    """The projected gradients of one batch, and what they took."""
    local, distribution, whole = site.recipe.local, site.header.distribution, partial(site.loss, batch)
    tally = Tally(site.meter, site.shape(batch), site.frozen_flops(batch))
    batched, most = site.evaluations.batched, site.evaluations.most(site.shape(batch))
    if site.cut is None or site.header.split is None:
        points = batched if isinstance(batched, BatchedWhole) else None
        losses_at = WholeLosses(site.perturber, whole, tally, points, most)
        estimate = partial(ESTIMATORS[local.estimator], losses_at)
    else:
        suffix = batched if isinstance(batched, BatchedSuffix) else None
        blocks = CutLosses(site.cut, site.perturber, whole, tally, suffix, most)
        estimate = partial(split.probe, blocks, site.header.split, site.recipe.split.difference == "central")
    return estimate(keys, site.recipe.mu, distribution), tally


def _example_step(private: PrivateSite, site: Site, order: Order, weights: Weights, move_last: bool) -> Iterator[Step]:
    """The one step of a client whose examples are protected each by itself: what they contribute, clipped and added up.

    It moves nothing, and says nothing else of the batch, not even its size.
    """
    recipe, keys = site.recipe, step_keys(site, order, 0)
    key = noise.derive_key(site.header.seed, "batch", round=order.round, client=order.client)
    with named(order, 0):
        batch, num_examples = private.batch(order, site.num_examples(order.client), key)
        total = np.zeros(len(keys)) if batch is None else _sum_of(private, site, batch, num_examples, keys)
    yield Step(total.astype(np.float32), float("nan"), num_together(recipe), 0)


def _sum_of(private: PrivateSite, site: Site, batch: Any, num_examples: int, keys: Sequence[int]) -> np.ndarray:
    local, shape, whole = site.recipe.local, site.shape(batch), partial(private.losses, batch)

    def estimated(losses_at: LossesAt) -> Probe:
        return ESTIMATORS[local.estimator](losses_at, keys, site.recipe.mu, site.header.distribution)

    batched = site.evaluations.batched if isinstance(site.evaluations.batched, BatchedWhole) else None
    losses_at = WholeLosses(site.perturber, whole, Tally(site.meter, shape), batched, site.evaluations.most(shape))
    return sum_over_examples(private.plan, estimated, losses_at, num_examples, len(keys))


def told(recipe: Recipe, scalars: np.ndarray) -> np.ndarray:
    """What of the projected gradients moves weights, here and at the server: all, what `clip` leaves, or the signs."""
    if recipe.federation.aggregation == "sign-vote":
        return np.sign(scalars)
    return np.clip(scalars, -recipe.local.clip, recipe.local.clip) if recipe.local.clip else scalars


def step_keys(site: Site, order: Order, step: int) -> tuple[int, ...]:
    """The keys of a step's P directions: the client's own, or the cohort's."""
    sender = None if site.header.keys == "shared" else order.client
    seed, pool, num_directions = site.header.seed, site.header.key_pool, site.recipe.num_scalars
    return tuple(direction_key(seed, order.round, sender, step, p, pool) for p in range(num_directions))


def _first_order_steps(site: Site, order: Order, weights: Weights, move_last: bool) -> Iterator[Step]:
    """Backpropagation: the baseline, with an optimizer that begins anew each round.

    A step counts as three forwards: one, and a backward of twice its operations; a loss that is not finite is skipped.
    """
    parameters = [p for name, p in site.module.named_parameters() if name in weights]
    local = site.recipe.local
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[local.optimizer]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = make(parameters, lr=order.rate, weight_decay=local.weight_decay)
        for step, batch in batches(site, order):
            with named(order, step), torch.enable_grad():
                loss, flops = site.meter.counted(site.shape(batch), WHOLE, partial(site.loss, batch))
                moves = bool(loss.isfinite())
                if moves:
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            forwards = BACKPROPAGATION_FORWARDS if moves else 1
            yield Step(np.zeros(0, np.float32), loss.item(), forwards, forwards * flops + site.frozen_flops(batch))
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False).grad = None


def batches(site: Site, order: Order) -> Iterator[tuple[int, Any]]:
    """The batches of a client's round, each with the number of its step."""
    federation = site.recipe.federation
    client, keyed = order.client, partial(noise.derive_key, site.header.seed, round=order.round, client=order.client)
    if federation.local_epochs:
        epochs = (site.epoch(client, keyed("epoch", step=epoch)) for epoch in range(federation.local_epochs))
        drawn: Iterator[Any] = chain.from_iterable(epochs)
    else:
        drawn = (site.batch(client, keyed("batch", step=step)) for step in range(federation.local_steps))
    for step in count():
        with named(order, step):
            batch = next(drawn, None)
        if batch is None:
            return
        yield step, batch


def _rounding_key(site: Site, order: Order, step: int) -> int:
    return noise.derive_key(site.header.seed, "local rounding", round=order.round, client=order.client, step=step)


@contextmanager
def named(order: Order, step: int) -> Iterator[None]:
    """
    Raises:
        EngineError: what went wrong within it, with client, round and step.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        where = f"client {order.client}, round {order.round}, local step {step}"
        raise EngineError(f"{where}: {describe(error)}") from error
