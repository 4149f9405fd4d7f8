"""Time of a two-point step over its own two forwards, and its peak memory over that of inference.

Full-parameter, OPT-125m shape with random weights, one sequence of 512 or 1,024 tokens, language-modelling loss at 16
answer positions (as a classification task has) and at all of them. Beside it the textbook MeZO step: draw z, move the
weights in place, and back, three times over (Malladi et al. 2023, Algorithm 1), with `torch.normal_`.
Memory: resident-set peaks of fresh processes, one that runs forwards and one that runs steps.
"""

import subprocess
import sys
from functools import partial
from typing import Any

import torch

from benchmarks._report import arguments, in_turns, ratio, report, spread
from benchmarks._workload import MU, RATE, forward, random_model, shape, text_batch, two_point_step, work
from seedtune.experiment import peak_memory_bytes
from seedtune.zo.noise import Distribution

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ANSWERS = 16


class Steps:
    """The calls that are timed, all on one model and one batch."""

    def __init__(self, dtype: str, num_tokens: int, all_positions: bool):
        config = shape("opt-125m")
        scored = num_tokens - 1 if all_positions else ANSWERS
        self.work = work(random_model(config, DTYPES[dtype]), text_batch(config.vocab_size, num_tokens, scored))
        self.count = 0

    def forward(self) -> float:
        return forward(self.work)

    def seedtune(self, distribution: Distribution) -> None:
        self.count += 1
        two_point_step(self.work, self.count, distribution)

    @torch.no_grad()
    def mezo(self) -> None:
        """The published loop: each pass draws z again from the same seed."""
        self.count += 1
        self._move(MU)
        above = self.forward()
        self._move(-2 * MU)
        below = self.forward()
        self._move(MU)
        self._move(-RATE * (above - below) / (2 * MU))

    def _move(self, scale: float) -> None:
        torch.manual_seed(self.count)
        for parameter in self.work.model.module.parameters():
            z = torch.normal(mean=0, std=1, size=parameter.size(), dtype=parameter.dtype)
            parameter.add_(z, alpha=scale)


def times(quick: bool) -> list[dict[str, Any]]:
    cases = [(512, False)] if quick else [(512, False), (1024, False), (1024, True)]
    return [_times(dtype, *case, num_turns=1 if quick else 5) for dtype in DTYPES for case in cases]


def _times(dtype: str, num_tokens: int, all_positions: bool, num_turns: int) -> dict[str, Any]:
    steps = Steps(dtype, num_tokens, all_positions)
    calls = {
        "two forwards": lambda: (steps.forward(), steps.forward()),
        **{str(name): partial(steps.seedtune, name) for name in Distribution},
        "mezo": steps.mezo,
    }
    found = in_turns(calls, num_turns, seconds=0)
    ratios = {name: ratio(found[name], found["two forwards"]) for name in calls if name != "two forwards"}
    scored = "all" if all_positions else str(ANSWERS)
    milliseconds = spread([t * 1e3 for t in found["two forwards"]])
    return {"dtype": dtype, "tokens": num_tokens, "scored": scored, "two forwards, ms": milliseconds, **ratios}


def memory(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for dtype in DTYPES:
        for num_tokens in (512,) if quick else (512, 1024):
            peaks = {what: _peak(what, dtype, num_tokens) for what in ("forward", *map(str, Distribution))}
            row = {f"{name} / inference": round(peaks[name] / peaks["forward"], 3) for name in map(str, Distribution)}
            rows.append({"dtype": dtype, "tokens": num_tokens, "inference, MB": round(peaks["forward"] / 1e6), **row})
    return rows


def _peak(what: str, dtype: str, num_tokens: int) -> int:
    """Peak resident bytes of a fresh process that makes three calls."""
    call = f"from benchmarks.step import measure; measure({what!r}, {dtype!r}, {num_tokens})"
    return int(subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True).stdout)


def measure(what: str, dtype: str, num_tokens: int) -> None:
    """Run in a process of its own by `_peak`."""
    steps = Steps(dtype, num_tokens, all_positions=False)
    for _ in range(3):
        steps.forward() if what == "forward" else steps.seedtune(Distribution(what))
    print(peak_memory_bytes())


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    report({"step": times(options.quick), "memory": memory(options.quick)}, options.json)


if __name__ == "__main__":
    main()
