"""What a probe found, as data: for people as tables (`seedtune.terminal`), for programs as JSON.

A number that is not finite becomes None: JSON has no other word for it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import Interval

Tell = Callable[[str, int, int | None], None]
"""Is told how far a probe is: what is being measured, how many of its parts are done, of how many (None: unknown)."""


def in_silence(stage: str, done: int, total: int | None) -> None:
    """A `Tell` that hears nothing."""


@dataclass
class Cost:
    """What a probe took, in passes over all its examples.

    hessian_products: products of the Hessian with a vector. That of a block counts as one of the whole, though it takes
    less.
    """

    forwards: float = 0
    gradients: float = 0
    hessian_products: float = 0


@dataclass(frozen=True)
class Finding:
    """One probe's answer.

    about: what was probed, and with which settings. values: single numbers and intervals. tables: rows, which share
    their columns within a table. notes: how to read them, and what they do not say.
    """

    probe: str
    about: Mapping[str, Any]
    values: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    cost: Mapping[str, float]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return plain(vars(self))


def plain(value: Any) -> Any:
    """Nested values in JSON's types; an interval as [value, low, high].

    >>> plain({"trace": Interval(2.0, 1.5), "loss": float("nan"), "top": (np.float32(0.5),)})
    {'trace': [2.0, 1.5, None], 'loss': None, 'top': [0.5]}
    """
    if isinstance(value, Interval):
        return [plain(part) for part in (value.value, value.low, value.high)]
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
