"""A tiny run's trajectory: its records, the weights that it went through, and the file's frames."""

from dataclasses import replace

import numpy as np
import torch

from seedtune.space import copied, digest, space_of
from seedtune.zo import trajectory_file
from seedtune.zo.noise import Distribution, values
from seedtune.zo.trajectory import Header, RoundRecord, Trajectory, round_updates
from seedtune.zo.update import apply

NAN, INF = float("nan"), float("inf")
HEADER = Header("starter", "ab" * 16, "cd" * 16, 17, "own", Distribution.GAUSSIAN, {"name": "starter", "lora_rank": 8})
SHARED = replace(HEADER, keys="shared", distribution=Distribution.RADEMACHER, num_choices=3)


def module() -> torch.nn.Module:
    made = torch.nn.utils.skip_init(torch.nn.Linear, 5, 3)
    for k, parameter in enumerate(made.parameters()):
        parameter.data = (0.1 * values(k, 0, parameter.numel(), Distribution.GAUSSIAN)).view(parameter.shape).bfloat16()
    return made


SPACE = space_of(module(), ["weight", "bias"])
START = {name: parameter.data for name, parameter in module().named_parameters()}


def record(round_: int, clients, scalars, factors=None, state: bytes = b"\7" * 16) -> RoundRecord:
    scalars = np.array(scalars, np.float32)
    factors = np.full(len(scalars), 0.5) if factors is None else np.array(factors, np.float64)
    return RoundRecord(round_, tuple(clients), scalars, factors, state)


def lived(header: Header) -> tuple[list[RoundRecord], list[dict[str, torch.Tensor]], dict[int, dict]]:
    """A run's records, its weights before and after each round, and snapshots by round."""
    shared = header.keys == "shared"
    plans = [
        record(0, [1, 4], [[[0.5, -1], [2, 3]]] if shared else [[[0.5, -1], [2, 3]], [[1, 1], [NAN, 4]]]),
        record(1, [], np.zeros((0, 2, 2))),
        record(2, [0, 2], np.zeros((2, 0, 0)), [0, 0]),
        record(3, [3], [[[0.25, NAN], [NAN, NAN]]], [1e-3]),
        record(4, [0, 1], [[[NAN, NAN]]] if shared else [[[NAN, NAN]]] * 2),
    ]
    weights, records, states, snapshots = copied(START), [], [copied(START)], {}
    for plan in plans:
        if plan.is_snapshot:
            weights = {name: tensor + 1 for name, tensor in weights.items()}
            snapshots[plan.round] = copied(weights)
        else:
            apply(SPACE, weights, round_updates(header, plan), header.distribution)
        records.append(replace(plan, digest=digest(weights)))
        states.append(copied(weights))
    return records, states, snapshots


def written(header: Header, records) -> bytes:
    data = trajectory_file.header_frame(header)
    for one in records:
        data += trajectory_file.round_frame(data[-16:], one)
    return data


def frames(data: bytes) -> list[int]:
    """Where each frame ends."""
    ends, at = [], 0
    while at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "little") + 16
        ends.append(at)
    return ends


def int32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def assert_same(first: Trajectory, header: Header, records) -> None:
    assert replace(first.header, initial={}) == replace(header, initial={})
    assert digest(first.header.initial) == digest(header.initial)
    assert len(first.records) == len(records)
    for a, b in zip(first.records, records, strict=True):
        assert (a.round, a.clients, a.digest, a.back_to) == (b.round, b.clients, b.digest, b.back_to)
        for got, sent in ((a.scalars, b.scalars), (a.factors, b.factors)):
            assert (got.dtype, got.shape, got.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
