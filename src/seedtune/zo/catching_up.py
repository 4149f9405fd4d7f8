"""What it costs to rebuild weights from scalars, foretold, against being sent the weights.

Replay generates every direction again for every coordinate that it moves, and reads and writes the weights once for a
block of rounds; 16-bit weights are also rounded once an update. So its time is two counts times two paces, which this
machine shows in a fraction of a second. Nothing here replays or decides; who is sent what, `fed.seed_scalar` says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from ..space import Space
from . import noise
from .expansion import updates_of
from .noise import Distribution
from .trajectory import Header, RoundRecord

_COUNT, _MANY, _FEW, _TURNS = 2**18, 64, 4, 5


@dataclass(frozen=True)
class CatchingUp:
    """What lies between two states of the shared weights.

    num_directions: generated. num_values: coordinates of all of them. num_rounded: coordinates of all updates.
    weight_bytes: of the tuned tensors, what would be sent instead. dtype: of the largest of them ("float32").
    """

    num_directions: int
    num_values: int
    num_rounded: int
    weight_bytes: int
    dtype: str

    def seconds(self, pace: "Pace") -> float:
        return self.num_values * pace.value + self.num_rounded * pace.rounding

    def break_even(self, pace: "Pace", record_bytes: int) -> float:
        """Bytes a second of a link over which the weights arrive as soon as they are rebuilt from records of so many
        bytes; infinite where nothing is to be rebuilt."""
        seconds, saved = self.seconds(pace), max(0, self.weight_bytes - record_bytes)
        return saved / seconds if seconds else float("inf")


@dataclass(frozen=True)
class Pace:
    """Seconds a value of a direction that is added, and a coordinate that is rounded to storage (0 for float32)."""

    value: float
    rounding: float


def catching_up(space: Space, header: Header, records: Iterable[RoundRecord]) -> CatchingUp:
    """What replaying `records` takes, none of which is a snapshot or was taken back. No key is derived."""
    directions = values = rounded = 0
    for record in records:
        if not record.scalars.size:
            continue
        for update in updates_of(header.split, tuple(range(record.scalars.size)), record.scalars, 0):
            kept = int(np.count_nonzero(~np.isnan(update.coefficients)))
            size = space.part(update.tensors).num_parameters
            directions, values, rounded = directions + kept, values + kept * size, rounded + bool(kept) * size
    dtype = max(space.tensors, key=lambda spec: spec.num_elements).dtype
    return CatchingUp(directions, values, rounded, space.num_bytes, dtype)


def pace_here(distribution: Distribution, dtype: str) -> Pace:
    """Measured on this machine's processor, with torch's threads: some 0.1 s. The least of a few turns.

    From what many keys in one update take, and few keys in an update each.
    """
    weights = torch.full((_COUNT,), 0.01, dtype=getattr(torch, dtype))
    many, few = list(range(_MANY)), list(range(_FEW))
    cases = (many, [_MANY], [0]), (few, [k + 1 for k in few], few)
    least = [float("inf")] * 2
    for _ in range(_TURNS):
        for i, (keys, ends, rounding_keys) in enumerate(cases):
            started = perf_counter()
            noise.accumulate_updates(weights, 0, keys, [1e-6] * len(keys), ends, rounding_keys, distribution)
            least[i] = min(least[i], (perf_counter() - started) / _COUNT)
    if dtype == "float32":
        return Pace(least[0] / _MANY, 0.0)
    value = max(least[0] - least[1] / _FEW, 0.0) / (_MANY - 1)
    return Pace(value, max(least[1] / _FEW - value, 0.0))
