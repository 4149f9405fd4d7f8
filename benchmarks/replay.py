"""Rebuilding weights from scalars, over the least that it could take: one pass over the weights a direction.

125 M coordinates, the OPT-125m shape. The floor of a direction is the time in which the weights are read and written
once (`torch.Tensor.mul_` in place), in the same turn. "One round" brings all directions in one update, "rounds of one"
one each, as a run with one shared direction a round records them: of 16 bits every round is rounded. "Alone" is the
second without fusing: a call a round. What `seedtune.zo.catching_up` foretells stands beside what it took.

The last column is the link from which on sending the weights would have been as fast, in megabits a second.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks._report import arguments, in_turns, ratio, report, spread
from seedtune.models.random_models import random_model, shape
from seedtune.space import bound_weights, space_of
from seedtune.zo.catching_up import CatchingUp, pace_here
from seedtune.zo.noise import Distribution
from seedtune.zo.update import Update, apply

NUM_DIRECTIONS = {
    (torch.float32, Distribution.RADEMACHER): 400, (torch.float32, Distribution.GAUSSIAN): 20,
    (torch.bfloat16, Distribution.RADEMACHER): 80, (torch.bfloat16, Distribution.GAUSSIAN): 10,
}  # fmt: skip
RECORD_BYTES = 400  # of a round with one scalar, in a trajectory


class Weights:
    """The tuned tensors of a model, and what is done to them."""

    def __init__(self, dtype: torch.dtype, num_layers: int):
        model = random_model(shape("opt-125m", num_layers), dtype)
        self.space = space_of(model.module, model.trainable)
        self.tensors = bound_weights(model.module, self.space)
        self.dtype = str(dtype).removeprefix("torch.")

    def one_pass(self) -> None:
        for tensor in self.tensors.values():
            tensor.mul_(1.0)

    def replayed(self, distribution: Distribution, num: int, rounds: int, is_fused: bool) -> None:
        each = num // rounds
        updates = [
            Update(tuple(range(first, first + each)), np.full(each, 1e-9, np.float32), first)
            for first in range(0, num, each)
        ]
        for part in [updates] if is_fused else [[update] for update in updates]:
            apply(self.space, self.tensors, part, distribution)

    def ahead(self, num: int, rounds: int) -> CatchingUp:
        size = self.space.num_parameters
        return CatchingUp(num, num * size, rounds * size, self.space.num_bytes, self.dtype)


def figures(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        weights = Weights(dtype, num_layers=1 if quick else 0)
        for distribution in Distribution:
            num = 20 if quick else NUM_DIRECTIONS[dtype, distribution]
            rows += [_row(weights, distribution, *case, 1 if quick else 3) for case in _cases(num)]
    return rows


def _cases(num: int) -> list[tuple[str, int, int, bool]]:
    """Name, directions, rounds, whether they are applied in one call; without fusing, a tenth of them is enough."""
    return [("one round", num, 1, True), ("rounds of one", num, num, True), ("alone", num // 10, num // 10, False)]


def _row(weights: Weights, distribution, name: str, num: int, rounds: int, is_fused: bool, num_turns: int) -> dict:
    calls: dict[str, Callable[[], object]] = {
        "pass": weights.one_pass,
        "replay": lambda: weights.replayed(distribution, num, rounds, is_fused),
    }
    ahead, paces = weights.ahead(num, rounds), []

    def foretold() -> None:
        paces.append(pace_here(distribution, weights.dtype))

    found = in_turns({**calls, "pace": foretold}, num_turns, seconds=0)
    told = [ahead.seconds(pace) for pace in paces[-num_turns:]]
    links = [ahead.break_even(pace, rounds * RECORD_BYTES) * 8e-6 for pace in paces[-num_turns:]]
    return {
        "dtype": weights.dtype, "directions": str(distribution), "number": num, "as": name,
        "seconds": spread(found["replay"]),
        "a direction / one pass": ratio([t / num for t in found["replay"]], found["pass"]),
        "taken / foretold": ratio(found["replay"], told) if is_fused else "",
        "weights sooner above, Mbit/s": round(float(np.median(links))) if is_fused else "",
    }  # fmt: skip


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    report({"replay": figures(options.quick)}, options.json)


if __name__ == "__main__":
    main()
