"""Time of a two-point step over its own forwards, its points one by one and all in one forward.

OPT-125m shape with random weights, one sequence, language-modelling loss at its last 16 tokens, Rademacher, float32;
LoRA of rank 8 on `q_proj` and `v_proj`, or all weights tuned; one direction, or four. A step is as a client makes it,
with the move of the weights; beside it what is floor for one by one, as many forwards as it has points, at theta. The
limits in `seedtune.fed.evaluations` come from here.

Processor seconds of one thread: what a clock shows where no other process has the core. Memory: resident-set peaks of
fresh processes over that of one that runs forwards.
"""

import subprocess
import sys
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch

from benchmarks._report import arguments, in_turns, ratio, report, spread
from seedtune.analysis.one_step import MU, RATE, forward, text_batch, work
from seedtune.config import Recipe
from seedtune.experiment import peak_memory_bytes
from seedtune.fed.evaluations import Evaluations, evaluations_of
from seedtune.fed.whole_steps import WholeLosses
from seedtune.models.objective import loss
from seedtune.models.random_models import random_model, shape
from seedtune.sections import LocalConfig, ModelConfig
from seedtune.zo.estimators import two_point
from seedtune.zo.meter import Meter, Tally, shape_of
from seedtune.zo.noise import Distribution, derive_key
from seedtune.zo.update import Update, apply

SCORED = 16
LORA = ModelConfig(name="random", adapter="lora", lora_rank=8, lora_targets=("q_proj", "v_proj"))
TURNS = {32: 9, 128: 7, 256: 5, 512: 5}
DIRECTIONS = {1: (32, 128, 256, 512), 4: (32,)}  # and the tokens of their batches
MOST_SECONDS = 10


class Steps:
    """The calls that are timed, all on one model and one batch."""

    def __init__(self, is_lora: bool, num_tokens: int, num_directions: int):
        config = shape("opt-125m")
        model = random_model(config, torch.float32, LORA if is_lora else None)
        self.work = work(model, text_batch(config.vocab_size, num_tokens, SCORED))
        self._num, self._meter, self._count = num_directions, Meter(), 0

    def forwards(self) -> list[float]:
        return [forward(self.work) for _ in range(2 * self._num)]

    def decided(self, way: str) -> Evaluations:
        recipe = Recipe(local=LocalConfig(num_directions=self._num, evaluations=way))
        return evaluations_of(recipe, self.work.model.module, None, self.work.perturber)

    def step(self, evaluations: Evaluations) -> np.ndarray:
        """As a client makes it."""
        self._count += 1
        bound, most = self.work, evaluations.most(shape_of(self.work.batch))
        keys = [derive_key(0, "direction", round=self._count, direction=p) for p in range(self._num)]
        tally = Tally(self._meter, shape_of(bound.batch))
        whole = partial(loss, bound.model, bound.batch)
        losses_at = WholeLosses(bound.perturber, whole, tally, evaluations.batched, most)
        probe = two_point(losses_at, keys, MU, Distribution.RADEMACHER)
        update = Update(tuple(keys), -RATE / self._num * probe.scalars, derive_key(0, "rounding"))
        apply(bound.space, bound.weights, [update], Distribution.RADEMACHER)
        return probe.scalars


def times(quick: bool) -> list[dict[str, Any]]:
    tokens = {num: (32,) if quick else sizes for num, sizes in DIRECTIONS.items()}
    cases = [(lora, num, size) for lora in (True, False) for num in DIRECTIONS for size in tokens[num]]
    return [_times(*case, 1 if quick else TURNS[case[2]]) for case in cases]


def _times(is_lora: bool, num_directions: int, num_tokens: int, num_turns: int) -> dict[str, Any]:
    steps = Steps(is_lora, num_tokens, num_directions)
    calls = {way: partial(steps.step, steps.decided(way)) for way in ("one-by-one", "batched")}
    found = in_turns({"forwards": steps.forwards, **calls}, num_turns, 0, process_time, MOST_SECONDS)
    most = steps.decided("auto").most(shape_of(steps.work.batch))
    return {
        "tuned": "LoRA" if is_lora else "all", "directions": num_directions, "tokens": num_tokens,
        "forwards, ms": spread([t * 1e3 for t in found["forwards"]]),
        "one by one / forwards": ratio(found["one-by-one"], found["forwards"]),
        "batched / forwards": ratio(found["batched"], found["forwards"]),
        "batched / one by one": ratio(found["batched"], found["one-by-one"]),
        "auto": "one-by-one" if most == 1 else "batched",
    }  # fmt: skip


def memory(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for is_lora in (True, False):
        for num_tokens in (128,) if quick else (128, 512):
            peaks = {way: _peak(way, is_lora, num_tokens) for way in ("forwards", "one-by-one", "batched")}
            row = {f"{way} / forwards": round(peaks[way] / peaks["forwards"], 3) for way in ("one-by-one", "batched")}
            inference = {"forwards, MB": round(peaks["forwards"] / 1e6)}
            rows.append({"tuned": "LoRA" if is_lora else "all", "tokens": num_tokens, **inference, **row})
    return rows


def _peak(way: str, is_lora: bool, num_tokens: int) -> int:
    """Peak resident bytes of a fresh process that makes three calls, of one direction."""
    call = f"from benchmarks.batched import measure; measure({way!r}, {is_lora}, {num_tokens})"
    return int(subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True).stdout)


def measure(way: str, is_lora: bool, num_tokens: int) -> None:
    """Run in a process of its own by `_peak`."""
    torch.set_num_threads(1)
    steps = Steps(is_lora, num_tokens, 1)
    call = steps.forwards if way == "forwards" else partial(steps.step, steps.decided(way))
    for _ in range(3):
        call()
    print(peak_memory_bytes())


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    report({"batched": times(options.quick), "memory": memory(options.quick)}, options.json)


if __name__ == "__main__":
    main()
