"""Time of a two-point step over its own two forwards, and its peak memory over that of inference.

OPT-125m shape with random weights, one sequence, language-modelling loss at its last 16 positions (as a classification
task has) or at all of them; all weights tuned, or LoRA of rank 8 on `q_proj` and `v_proj`. Points one by one
(`benchmarks.batched` has those that share a forward). Beside it the textbook MeZO step on all weights: draw z, move the
weights in place, and back, three times over (Malladi et al. 2023, Algorithm 1), with `torch.normal_`.
Memory: resident-set peaks of fresh processes, one that runs forwards and one that runs steps.
"""

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks._report import arguments, has_bfloat16, in_turns, ratio, report, spread
from seedtune.analysis.one_step import MU, RATE, forward, text_batch, two_point_step, work
from seedtune.experiment import peak_memory_bytes
from seedtune.models.random_models import random_model, shape
from seedtune.sections import ModelConfig
from seedtune.zo.noise import Distribution

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ANSWERS, MOST_SECONDS = 16, 20
LORA = ModelConfig(name="random", adapter="lora", lora_rank=8, lora_targets=("q_proj", "v_proj"))


@dataclass(frozen=True)
class Case:
    dtype: str
    num_tokens: int
    is_lora: bool = False
    scores_all: bool = False
    has_mezo: bool = False


CASES = (
    Case("float32", 128, has_mezo=True), Case("float32", 512), Case("float32", 512, scores_all=True),
    Case("float32", 1024),
    *(Case("float32", num_tokens, is_lora=True) for num_tokens in (128, 512, 1024)),
    *(Case("bfloat16", num_tokens) for num_tokens in (128, 512, 1024)),
)  # fmt: skip
SLOW_WITHOUT_BFLOAT16 = 256  # tokens: with more, a processor without such instructions takes minutes a turn


class Steps:
    """The calls that are timed, all on one model and one batch."""

    def __init__(self, case: Case):
        config = shape("opt-125m")
        scored = case.num_tokens - 1 if case.scores_all else ANSWERS
        model = random_model(config, DTYPES[case.dtype], LORA if case.is_lora else None)
        self.work = work(model, text_batch(config.vocab_size, case.num_tokens, scored))
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
    return [_times(case, num_turns=1 if quick else 7) for case in (CASES[:1] if quick else CASES) if _is_fast(case)]


def _is_fast(case: Case) -> bool:
    return case.dtype == "float32" or case.num_tokens <= SLOW_WITHOUT_BFLOAT16 or has_bfloat16()


def _times(case: Case, num_turns: int) -> dict[str, Any]:
    steps = Steps(case)
    calls = {
        "two forwards": lambda: (steps.forward(), steps.forward()),
        **{str(name): partial(steps.seedtune, name) for name in Distribution},
        **({"mezo": steps.mezo} if case.has_mezo else {}),
    }
    found = in_turns(calls, num_turns, seconds=0, most_seconds=MOST_SECONDS)
    ratios = {name: ratio(found[name], found["two forwards"]) for name in calls if name != "two forwards"}
    return {
        "dtype": case.dtype, "tuned": "LoRA" if case.is_lora else "all", "tokens": case.num_tokens,
        "scored": "all" if case.scores_all else str(ANSWERS), "turns": len(found["two forwards"]),
        "two forwards, ms": spread([t * 1e3 for t in found["two forwards"]]), "mezo": "", **ratios,
    }  # fmt: skip


def memory(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for dtype in DTYPES:
        for num_tokens in (512, 1024):
            if not _is_fast(Case(dtype, num_tokens)) or (quick and num_tokens > 512):
                continue
            peaks = {what: _peak(what, dtype, num_tokens) for what in ("forward", *map(str, Distribution))}
            row = {f"{name} / inference": round(peaks[name] / peaks["forward"], 3) for name in map(str, Distribution)}
            rows.append({"dtype": dtype, "tokens": num_tokens, "inference, MB": round(peaks["forward"] / 1e6), **row})
    return rows


def _peak(what: str, dtype: str, num_tokens: int) -> int:
    """Peak resident bytes of a fresh process that makes two calls."""
    call = f"from benchmarks.step import measure; measure({what!r}, {dtype!r}, {num_tokens})"
    return int(subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True).stdout)


def measure(what: str, dtype: str, num_tokens: int) -> None:
    """Run in a process of its own by `_peak`."""
    steps = Steps(Case(dtype, num_tokens))
    for _ in range(2):
        steps.forward() if what == "forward" else steps.seedtune(Distribution(what))
    print(peak_memory_bytes())


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    report({"step": times(options.quick), "memory": memory(options.quick)}, options.json)


if __name__ == "__main__":
    main()
