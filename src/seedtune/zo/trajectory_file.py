"""The trajectory as a file: frames that are appended, and read back with every byte verified.

A frame is a 4-byte little-endian length, that many bytes of safetensors (arrays, and JSON metadata), and a 16-byte
BLAKE2b digest that chains the previous frame's digest with this frame's bytes. The first frame is the header, each
later one a round. So a frame is written with one append, a torn or altered file is recognised, and the file up to any
frame is a trajectory itself. Whether its base is there, and where its rounds lead, is not asked here.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..errors import TrajectoryError
from ..foreign_text import parse_json, quote, sanitize
from ..space import DIGEST_BYTES
from . import noise
from .expansion import Split
from .noise import Distribution
from .trajectory import FORMAT, Header, RoundRecord, Trajectory, broken_rule

_ARRAYS = {"clients": (np.int32, 1), "scalars": (np.float32, 3), "factors": (np.float64, 1), "digest": (np.uint8, 1)}
_LONGEST_NAME = 64


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
    numbers = {"round": record.round, "back_to": record.back_to, "rate_ratio": record.rate_ratio}
    return _frame(
        written, save_tensors(arrays, {name: repr(number) for name, number in numbers.items() if number is not None})
    )


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
    payloads: list[bytes] = []
    chain, at = b"", 0
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
        fields = parse_json(_metadata(payload)["header"])
        tensors = load_tensors(payload)
        if not isinstance(fields, dict):
            raise ValueError("the header is no object")
    except Exception:  # whatever a file holds that is no header: a dozen unrelated types
        raise TrajectoryError(f"{source}: does not begin with a trajectory's header") from None
    for name, known in (("format", FORMAT), ("noise_version", noise.VERSION)):
        if fields.get(name) != known:
            found = quote(fields.get(name))
            raise TrajectoryError(
                f"{source}: has {name} {found}, this seedtune knows {known}: install the one that wrote it"
            )
    tensors.pop("none", None)
    try:
        split = Split(**fields["split"]) if fields.get("split") is not None else None
        distribution = Distribution(fields["distribution"])
        header = Header(**{**fields, "distribution": distribution, "initial": tensors, "split": split})
        _check_header(header)
        return header
    except (KeyError, TypeError, ValueError) as error:
        raise TrajectoryError(f"{source}: its header is not complete: {sanitize(error)}") from None


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
        "inputs": _is_text(header.inputs, f"[0-9a-f]{{{2 * DIGEST_BYTES}}}"),
        "versions": _is_text(header.versions, ".{1,64}"),
    }
    for name, holds in rules.items():
        if not holds:
            raise ValueError(f"{name} = {quote(getattr(header, name))}")


def _is_text(values: object, form: str) -> bool:
    """Whether it is an object of short names, each with a text of a form."""
    return isinstance(values, dict) and all(
        len(name) <= _LONGEST_NAME and isinstance(text, str) and re.fullmatch(form, text)
        for name, text in values.items()
    )


def _record(payload: bytes, source: str, number: int) -> RoundRecord:
    try:
        arrays = load_arrays(payload)
        for name, (dtype, num_dimensions) in _ARRAYS.items():
            if arrays[name].dtype != dtype or arrays[name].ndim != num_dimensions:
                raise ValueError(f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}")
        clients, scalars, factors, found = (arrays[name] for name in _ARRAYS)
        numbers = _metadata(payload)
        back_to = int(numbers["back_to"]) if "back_to" in numbers else None
        ratio = float(numbers["rate_ratio"]) if "rate_ratio" in numbers else None
        record = RoundRecord(
            int(numbers["round"]), tuple(clients.tolist()), scalars, factors, found.tobytes(), back_to, ratio
        )
    except Exception as error:  # as for the header
        raise TrajectoryError(f"{source}: the record of round {number} is not readable: {quote(error)}") from None
    fault = "rounds follow each other" if record.round != number else broken_rule(record)
    if fault:
        raise TrajectoryError(f"{source}: the record of round {number} breaks a rule: {fault}")
    return record


def _metadata(payload: bytes) -> dict[str, str]:
    length = int.from_bytes(payload[:8], "little")
    return parse_json(payload[8 : 8 + length])["__metadata__"]


def _frame(written: bytes, payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + payload + _chain(written, payload)


def _chain(written: bytes, payload: bytes) -> bytes:
    return blake2b(written + payload, digest_size=DIGEST_BYTES).digest()
