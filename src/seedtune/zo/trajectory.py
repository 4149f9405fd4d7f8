"""The trajectory: an append-only file of a few kilobytes that, with its base, *is* the tuned model.

Format: a sequence of frames. A frame is a 4-byte little-endian length, that many bytes of safetensors (arrays, and
JSON metadata), and a 16-byte BLAKE2b digest that chains the previous frame's digest with this frame's bytes. The first
frame says what the trajectory stands on (base and its digest, space, seed, noise version), each later one holds a
round. So a frame is written with one append, a torn or altered file is recognised, and the file up to any frame is a
trajectory itself.

A round may be *taken back*: its frame then says to which earlier state the weights returned, and replay leaves out what
lies between. A round's directions are not stored: their keys follow from seed, round, client, step and direction.
Rounds of the weights protocol cannot be told in scalars; their frame names a snapshot, which the run store keeps beside
the file. Opening models and run folders is not done here.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..errors import DigestMismatch, TrajectoryError
from ..space import DIGEST_BYTES, Space, Weights, digest
from . import noise
from .expansion import Split, updates_of
from .noise import Distribution
from .update import Update, apply

FORMAT = 1
_ARRAYS = {"clients": (np.int32, 1), "scalars": (np.float32, 3), "factors": (np.float64, 1), "digest": (np.uint8, 1)}


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
    noise_version: int = noise.VERSION
    format: int = FORMAT


@dataclass(frozen=True)
class RoundRecord:
    """What moved the shared weights in one round.

    clients: who took part, sorted, [n].
    scalars: projected gradients, float32 [n, H, P], or [1, H, P], their mean or the sign voted for, where all share
        keys; NaN marks a skipped step. [n, 0, 0] where the round is a snapshot; no clients, and nothing moved, where
        too few answered.
    factors: float64 [n] (or [1]): theta <- theta - factor * scalar * z, that is rate * weight / P.
    digest: of the weights after the round.
    back_to: set where this round, and others before it, were taken back: the weights are again those after so many
        rounds. It then holds no scalars.
    """

    round: int
    clients: tuple[int, ...]
    scalars: np.ndarray
    factors: np.ndarray
    digest: bytes
    back_to: int | None = None

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
    senders = record.clients if header.keys == "own" else (None,) * min(len(record.clients), 1)
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
    updates = updates_of(header.split, keys, scaled, rounding_key)
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

    Cost: one `apply` a round, or the last snapshot; one digest. No forward pass.

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
    for record in _since_last_snapshot(records):
        if record.is_snapshot:
            _set(weights, record, snapshot)
        else:
            apply(space, weights, round_updates(header, record), header.distribution)


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


def _since_last_snapshot(records: tuple[RoundRecord, ...]) -> tuple[RoundRecord, ...]:
    last = max((i for i, record in enumerate(records) if record.is_snapshot), default=0)
    return records[last:]


def _set(weights: Weights, record: RoundRecord, snapshot: Callable[[int], Weights] | None) -> None:
    if snapshot is None:
        raise TrajectoryError(
            f"round {record.round} is a snapshot, kept in its run folder: replay the folder, not the file alone"
        )
    for name, tensor in snapshot(record.round).items():
        weights[name].copy_(tensor)


def header_frame(header: Header) -> bytes:
    """The bytes with which a trajectory file begins."""
    fields = {name: value for name, value in vars(header).items() if name != "initial"}
    fields["split"] = asdict(header.split) if header.split else None
    tensors = {name: tensor.contiguous() for name, tensor in header.initial.items()}
    return _frame(b"", save_tensors(tensors or {"none": torch.zeros(0)}, {"header": json.dumps(fields)}))


def round_frame(written: bytes, record: RoundRecord) -> bytes:
    """The bytes to append for `record`; `written` is the chain digest, the last 16 bytes of the file so far."""
    arrays = {
        "clients": torch.tensor(record.clients, dtype=torch.int32),
        "scalars": torch.from_numpy(np.array(record.scalars, np.float32)),
        "factors": torch.from_numpy(np.array(record.factors, np.float64)),
        "digest": torch.tensor(list(record.digest), dtype=torch.uint8),
    }
    numbers = {"round": record.round} | ({} if record.back_to is None else {"back_to": record.back_to})
    return _frame(written, save_tensors(arrays, {name: str(number) for name, number in numbers.items()}))


def read(path: Path) -> Trajectory:
    """The trajectory in `path`, every byte of it verified.

    Raises:
        TrajectoryError: not a trajectory; truncated (says after which round); altered; or written by a later format
            or noise version than this package knows.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"trajectory {path}: cannot be read: {error.strerror}") from None
    return parse(data, str(path))


def parse(data: bytes, source: str = "trajectory") -> Trajectory:
    """As `read`, from bytes; `source` names them in errors."""
    payloads, chain, at = [], b"", 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        end = at + 4 + length + DIGEST_BYTES
        if end > len(data):
            raise _torn(source, len(payloads))
        if data[end - DIGEST_BYTES : end] != _chain(chain, data[at + 4 : end - DIGEST_BYTES]):
            raise _torn(source, len(payloads))
        payloads.append(data[at + 4 : end - DIGEST_BYTES])
        chain, at = data[end - DIGEST_BYTES : end], end
    if not payloads:
        raise TrajectoryError(f"{source}: is empty, not a trajectory")
    header = _header(payloads[0], source)
    records = tuple(_record(payload, source, i) for i, payload in enumerate(payloads[1:]))
    _check_way_back(records, source)
    return Trajectory(header, records)


def _check_way_back(records: Sequence[RoundRecord], source: str) -> None:
    """A round can be taken back to the base, or to where a round ended that has not been taken back itself."""
    ends = [0]
    for record in records:
        if record.back_to is not None and record.back_to not in ends:
            raise TrajectoryError(
                f"{source}: the record of round {record.round} goes back to {record.back_to} rounds, a state that the "
                f"weights did not come from: take a fresh copy"
            )
        if record.back_to is None:
            ends.append(record.round + 1)
        else:
            ends = [end for end in ends if end <= record.back_to]


def _torn(source: str, num_frames: int) -> TrajectoryError:
    if num_frames == 0:
        return TrajectoryError(f"{source}: is not a trajectory, or its first bytes were altered or cut off")
    return TrajectoryError(
        f"{source}: truncated or altered after {num_frames - 1} whole rounds; take a fresh copy, or the run's folder"
    )


def _header(payload: bytes, source: str) -> Header:
    try:
        fields = json.loads(_metadata(payload)["header"])
        tensors = load_tensors(payload)
        if not isinstance(fields, dict):
            raise ValueError("the header is no object")
    except Exception:  # whatever a file holds that is no header: a dozen unrelated types
        raise TrajectoryError(f"{source}: does not begin with a trajectory's header") from None
    for name, known in (("format", FORMAT), ("noise_version", noise.VERSION)):
        if fields.get(name) != known:
            raise TrajectoryError(
                f"{source}: has {name} {fields.get(name)}, this seedtune knows {known}: install the one that wrote it"
            )
    tensors.pop("none", None)
    try:
        split = Split(**fields["split"]) if fields.get("split") is not None else None
        distribution = Distribution(fields["distribution"])
        header = Header(**{**fields, "distribution": distribution, "initial": tensors, "split": split})
        _check_header(header)
        return header
    except (KeyError, TypeError, ValueError) as error:
        raise TrajectoryError(f"{source}: its header is not complete: {error}") from None


def _check_header(header: Header) -> None:
    rules = {
        "base": isinstance(header.base, str),
        "base_digest": re.fullmatch(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}", header.base_digest),
        "space": isinstance(header.space, str),
        "seed": type(header.seed) is int and 0 <= header.seed < 2**63,
        "keys": header.keys in ("own", "shared"),
        "key_pool": type(header.key_pool) is int and 0 <= header.key_pool < 2**31,
        "model": isinstance(header.model, dict),
        "num_choices": header.num_choices is None or type(header.num_choices) is int,
    }
    for name, holds in rules.items():
        if not holds:
            raise ValueError(f"{name} = {getattr(header, name)!r}")


def _record(payload: bytes, source: str, number: int) -> RoundRecord:
    try:
        arrays = load_arrays(payload)
        for name, kind in _ARRAYS.items():
            if (arrays[name].dtype, arrays[name].ndim) != kind:
                raise ValueError(f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}")
        clients, scalars, factors, found = (arrays[name] for name in _ARRAYS)
        numbers = _metadata(payload)
        back_to = int(numbers["back_to"]) if "back_to" in numbers else None
        record = RoundRecord(int(numbers["round"]), tuple(clients.tolist()), scalars, factors, found.tobytes(), back_to)
    except Exception as error:  # as for the header
        raise TrajectoryError(f"{source}: the record of round {number} is not readable: {error!r}") from None
    fault = "rounds follow each other" if record.round != number else broken_rule(record)
    if fault:
        raise TrajectoryError(f"{source}: the record of round {number} breaks a rule: {fault}")
    return record


def broken_rule(record: RoundRecord) -> str | None:
    """The rule that a record read from bytes does not keep; None if it keeps them all. Its arrays' types are right."""
    scalars, factors, clients = record.scalars, record.factors, record.clients
    shared = min(len(clients), 1)
    rules = {
        "clients are sorted counts": list(clients) == sorted(set(clients)) and min(clients, default=0) >= 0,
        "there is a set of scalars for each client, or one for all": len(scalars) in (len(clients), shared),
        "there is a factor for each set of scalars": factors.shape == scalars.shape[:1],
        "scalars are finite, or NaN where a step was skipped": not np.isinf(scalars).any(),
        "a round that was taken back has no scalars": record.back_to is None or scalars.size == 0,
        "factors are finite": bool(np.isfinite(factors).all()),
        f"a digest has {DIGEST_BYTES} bytes": len(record.digest) == DIGEST_BYTES,
    }
    return next((rule for rule, holds in rules.items() if not holds), None)


def _metadata(payload: bytes) -> dict[str, str]:
    length = int.from_bytes(payload[:8], "little")
    return json.loads(payload[8 : 8 + length])["__metadata__"]


def _frame(written: bytes, payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + payload + _chain(written, payload)


def _chain(written: bytes, payload: bytes) -> bytes:
    return blake2b(written + payload, digest_size=DIGEST_BYTES).digest()
