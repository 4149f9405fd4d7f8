"""The trajectory: an append-only record of a few kilobytes that, with its base, *is* the tuned model.

A header says what it stands on (base and its digest, space, seed, noise version), each record holds a round. A round's
directions are not stored: their keys follow from seed, round, client, step and direction. Rounds of the weights
protocol cannot be told in scalars; their record names a snapshot, which the run store keeps beside the file. A round
may be *taken back*: its record then says to which earlier state the weights returned, and replay leaves out what lies
between. The file's bytes are `trajectory_file`'s; opening models and run folders is not done here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from ..errors import DigestMismatch, TrajectoryError
from ..space import DIGEST_BYTES, Space, Weights, digest
from . import noise
from .expansion import Split, updates_of
from .noise import Distribution
from .update import Update, apply

FORMAT = 2
MOST_RATIO = 1e6


@dataclass(frozen=True)
class Header:
    """What a trajectory stands on.

    base: the base's id ("starter", a folder, a hub id); base_digest: hex digest of the whole model before round 0.
    space: fingerprint of the tuned tensors; seed: from which every key follows.
    keys: "own" directions for each client, or one "shared" set for all.
    model: how to load the base again (`config.ModelConfig` as plain data), and `num_choices` of a classifier.
    initial: tensors of the base that its id does not give, such as a fitted classification head.
    key_pool: number of keys that directions are drawn from, with replacement; 0: each has a key of its own.
    split: what a step's scalars say of two blocks; None: each is the coefficient of one direction of all tensors.
    inputs: digests of what the run computes from, by part (`seedtune.pinned_inputs`); versions: of libraries, by name.
    """

    base: str
    base_digest: str
    space: str
    seed: int
    keys: str
    distribution: Distribution
    model: Mapping[str, Any]
    num_choices: int | None = None
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)
    key_pool: int = 0
    split: Split | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    noise_version: int = noise.VERSION
    format: int = FORMAT

    def split_at(self, rate_ratio: float | None) -> Split | None:
        """The split of a round with another ratio of rates; None: the header's own."""
        return self.split and self.split.at(rate_ratio)


@dataclass(frozen=True)
class RoundRecord:
    """What moved the shared weights in one round.

    clients: who took part, sorted, [n]; nobody where that is a secret, and then one set of scalars moved the weights.
    scalars: projected gradients, float32 [n, H, P], or [1, H, P], their mean or the sign voted for, where all share
        keys; NaN marks a skipped step. [n, 0, 0] where the round is a snapshot; no clients, and nothing moved, where
        too few answered.
    factors: float64 [n] (or [1]): theta <- theta - factor * scalar * z, that is rate * weight / P.
    digest: of the weights after the round.
    rate_ratio: block 2's learning rate over block 1's in this round; None: the header's, or one block.
    back_to: set where this round, and others before it, were taken back: the weights are again those after so many
        rounds. It then holds no scalars.
    """

    round: int
    clients: tuple[int, ...]
    scalars: np.ndarray
    factors: np.ndarray
    digest: bytes
    back_to: int | None = None
    rate_ratio: float | None = None

    @property
    def is_snapshot(self) -> bool:
        return self.scalars.size == 0 and len(self.clients) > 0 and self.back_to is None


@dataclass(frozen=True)
class Trajectory:
    header: Header
    records: tuple[RoundRecord, ...]


def direction_key(seed: int, round_: int, client: int | None, step: int, direction: int, key_pool: int = 0) -> int:
    """The key of one direction, from the pool if there is one; `client` is None where the cohort shares keys."""
    of_this = partial(noise.derive_key, seed, round=round_, client=client, step=step, direction=direction)
    return noise.derive_key(seed, "pool", direction=of_this("draw") % key_pool) if key_pool else of_this("direction")


def round_keys(header: Header, round_: int, client: int | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The keys of one client's directions in a round, `shape` being (H, P), in the order of step, direction."""
    sender = client if header.keys == "own" else None
    steps, directions = shape
    places = (divmod(i, directions) for i in range(steps * directions))  # none at once where one of them is 0
    return tuple(direction_key(header.seed, round_, sender, step, p, header.key_pool) for step, p in places)


def taken_back(record: RoundRecord, back_to: int, digest: bytes) -> RoundRecord:
    """`record` as it stands in the trajectory once its round has been taken back to the weights with that digest."""
    none = np.zeros((len(record.clients), 0, 0), np.float32)
    return RoundRecord(record.round, record.clients, none, np.zeros(len(none)), digest, back_to)


def path(records: Iterable[RoundRecord]) -> tuple[RoundRecord, ...]:
    """The records that lead from the base to the weights after the last of `records`: without what was taken back."""
    kept: list[RoundRecord] = []
    for record in records:
        if record.back_to is None:
            kept.append(record)
        else:
            kept = [earlier for earlier in kept if earlier.round < record.back_to]
    return tuple(kept)


def round_updates(header: Header, record: RoundRecord) -> tuple[Update, ...]:
    """What `apply` does for `record`: one update, or one a block; directions in the order of client, step, direction.

    coefficient = float32(-factor * scalar), computed in float64; float32 again of what `moves` makes for blocks.

    Raises:
        TrajectoryError: a set of scalars and a factor for each client, or one where keys are shared, is not what the
            record holds, or its steps have other numbers of scalars than the split; or a coefficient is beyond float32.
    """
    is_moved = bool(record.clients) or len(record.scalars) > 0
    senders = record.clients if header.keys == "own" else (None,) * is_moved
    if not len(record.scalars) == len(record.factors) == len(senders):
        raise TrajectoryError(
            f"round {record.round}: {len(record.clients)} clients with {header.keys} keys need {len(senders)} sets of "
            f"scalars and factors, found {len(record.scalars)} and {len(record.factors)}: the record is not of this run"
        )
    if not record.scalars.size:
        return ()
    shape = record.scalars.shape[1:]
    if header.split and shape[1] != header.split.num_scalars:
        raise TrajectoryError(
            f"round {record.round}: its steps have {shape[1]} scalars, the split of this run makes "
            f"{header.split.num_scalars}: the record is not of this run"
        )
    keys = tuple(key for client in senders for key in round_keys(header, record.round, client, shape))
    scaled = -record.factors[:, None, None] * record.scalars.astype(np.float64)
    rounding_key = noise.derive_key(header.seed, "rounding", round=record.round)
    updates = updates_of(header.split_at(record.rate_ratio), keys, scaled, rounding_key)
    if any(np.isinf(update.coefficients).any() for update in updates):
        raise TrajectoryError(
            f"round {record.round}: a scalar times its factor is beyond float32: lower local.learning_rate"
        )
    return updates


def replay(
    space: Space,
    weights: Weights,
    trajectory: Trajectory,
    num_rounds: int | None = None,
    snapshot: Callable[[int], Weights] | None = None,
) -> None:
    """Moves `weights` from the base to the state after `num_rounds` rounds (None: all of them), in place.

    Guarantee: the result is bit-identical to the weights of the run that wrote the trajectory, on any processor; its
    digest is compared with the recorded one.

    Cost: one `apply` of all rounds after the last snapshot; one digest. No forward pass.

    Raises:
        DigestMismatch: the weights that came out are not the recorded ones, with both digests.
        TrajectoryError: fewer rounds than asked for, or a snapshot is needed and not there.
    """
    check_rounds(trajectory, num_rounds)
    records = trajectory.records[:num_rounds]
    follow(space, weights, trajectory.header, path(records), snapshot)
    if records:
        check_digest(digest(weights), records[-1].digest, f"after round {records[-1].round}")


def follow(
    space: Space,
    weights: Weights,
    header: Header,
    records: tuple[RoundRecord, ...],
    snapshot: Callable[[int], Weights] | None = None,
) -> None:
    """Moves `weights` from the base along a path of records, in place.

    Raises:
        TrajectoryError: a snapshot is needed and not there.
    """
    since = since_last_snapshot(records)
    if since and since[0].is_snapshot:
        _set(weights, since[0], snapshot)
        since = since[1:]
    updates = (update for record in since for update in round_updates(header, record))
    apply(space, weights, updates, header.distribution)


def check_rounds(trajectory: Trajectory, num_rounds: int | None) -> None:
    """
    Raises:
        TrajectoryError: the trajectory is shorter than `num_rounds`.
    """
    if num_rounds is not None and not 0 <= num_rounds <= len(trajectory.records):
        raise TrajectoryError(
            f"round {num_rounds} was asked for, but the trajectory holds rounds 0 to {len(trajectory.records)}"
        )


def check_base(header: Header, found: bytes, space: Space) -> None:
    """
    Raises:
        DigestMismatch: the model is not the one that the trajectory was recorded on, with both digests.
    """
    if space.fingerprint != header.space:
        raise DigestMismatch(
            f"the trajectory tunes the space {header.space}, this model's is {space.fingerprint}: other tensors, "
            f"shapes or dtypes; load the base {header.base!r} as its header says"
        )
    if header.split and not header.split.fits(space):
        raise TrajectoryError(
            f"the trajectory's first block is the mask {header.split.block1} of tensors, of which this space has "
            f"{len(space.tensors)}, and some must be left for the second: its header was altered"
        )
    check_digest(found, bytes.fromhex(header.base_digest), f"of the base (recorded on {header.base!r})")


def check_digest(found: bytes, expected: bytes, when: str) -> None:
    if found != expected:
        raise DigestMismatch(f"the weights' digest {when} is {found.hex()}, expected {expected.hex()}")


def since_last_snapshot(records: tuple[RoundRecord, ...]) -> tuple[RoundRecord, ...]:
    """The last snapshot and what follows it, or all records."""
    last = max((i for i, record in enumerate(records) if record.is_snapshot), default=0)
    return records[last:]


def _set(weights: Weights, record: RoundRecord, snapshot: Callable[[int], Weights] | None) -> None:
    if snapshot is None:
        raise TrajectoryError(
            f"round {record.round} is a snapshot, kept in its run folder: replay the folder, not the file alone"
        )
    kept = snapshot(record.round)
    if {name: _form(tensor) for name, tensor in kept.items()} != {name: _form(t) for name, t in weights.items()}:
        raise TrajectoryError(
            f"the snapshot of round {record.round} holds other tensors, shapes or dtypes than are tuned: take a fresh "
            "copy of the run's folder"
        )
    for name, tensor in kept.items():
        weights[name].copy_(tensor)


def _form(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def broken_rule(record: RoundRecord) -> str | None:
    """The rule that a record read from bytes does not keep; None if it keeps them all. Its arrays' types are right."""
    scalars, factors, clients = record.scalars, record.factors, record.clients
    rules = {
        "clients are sorted counts": list(clients) == sorted(set(clients)) and min(clients, default=0) >= 0,
        "there is a set of scalars for each client, or one for all": len(scalars) in (len(clients), 1),
        "there is a factor for each set of scalars": factors.shape == scalars.shape[:1],
        "scalars are finite, or NaN where a step was skipped": not np.isinf(scalars).any(),
        "a round that was taken back has no scalars": record.back_to is None or scalars.size == 0,
        "a ratio of rates is positive and finite": record.rate_ratio is None or 0 < record.rate_ratio <= MOST_RATIO,
        "factors are finite": bool(np.isfinite(factors).all()),
        f"a digest has {DIGEST_BYTES} bytes": len(record.digest) == DIGEST_BYTES,
    }
    return next((rule for rule, holds in rules.items() if not holds), None)
