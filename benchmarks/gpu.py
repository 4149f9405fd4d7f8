"""On a GPU: a two-point step over its own two forwards, directions in bytes a second, replay over passes.

Full-parameter steps, OPT-1.3B shape with random weights in bfloat16, one sequence of 1,024 tokens, 16 scored positions.
Chunks of perturbed weights are 64 MiB (`scratch_bytes`): small ones leave a GPU idle. Directions: gigabytes a second
read and written, beside a copy of the same tensor. Replay: directions applied in one call, over as many passes over
the weights. Times are between CUDA events. Without a GPU nothing is measured.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks._report import Clock, arguments, in_turns, ratio, report, spread
from seedtune.analysis.one_step import Work, forward, text_batch, two_point_step, work
from seedtune.models.random_models import random_model, shape
from seedtune.zo.kernels import kernel_for
from seedtune.zo.noise import Distribution, accumulate, derive_key, perturb, perturb_both
from seedtune.zo.perturb import Perturber

TOKENS, ANSWERS, SCRATCH_BYTES = 1024, 16, 2**26
COUNT, NUM_DIRECTIONS, CALLS = 2**28, 256, 10
KEY = derive_key(0, "benchmark")


def cuda_clock() -> Clock:
    """Seconds between CUDA events, of which each waits for all work before it."""
    origin = torch.cuda.Event(enable_timing=True)
    origin.record()

    def seconds() -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return origin.elapsed_time(now) / 1e3

    return seconds


def steps(device: str, clock: Clock, quick: bool) -> list[dict[str, Any]]:
    here = _work(device, num_layers=1 if quick else 0)
    numbers = iter(range(1, 10**9))
    calls = {"two forwards": lambda: (forward(here), forward(here))}
    for distribution in Distribution:
        calls[str(distribution)] = lambda chosen=distribution: two_point_step(here, next(numbers), chosen)
    found = in_turns(calls, 3 if quick else 20, seconds=0, clock=clock)
    milliseconds = spread([t * 1e3 for t in found["two forwards"]])
    ratios = {str(name): ratio(found[str(name)], found["two forwards"]) for name in Distribution}
    return [{"dtype": "bfloat16", "tokens": TOKENS, "two forwards, ms": milliseconds, **ratios}]


def _work(device: str, num_layers: int) -> Work:
    config = shape("opt-1.3b", num_layers)
    model = random_model(config, torch.bfloat16)
    model.module.to(device)
    made = work(model, text_batch(config.vocab_size, TOKENS, ANSWERS).to(torch.device(device)))
    return replace(made, perturber=Perturber(model.module, made.space, SCRATCH_BYTES))


def directions(device: str, clock: Clock, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights, above, below = (torch.zeros(2**20 if quick else COUNT, dtype=dtype, device=device) for _ in range(3))
        for distribution in Distribution:
            calls = {
                "copy_": (2, partial(above.copy_, weights)),
                "perturb": (2, partial(perturb, above, weights, KEY, 0, 1e-3, distribution)),
                "perturb_both": (3, partial(perturb_both, above, below, weights, KEY, 0, 1e-3, distribution)),
                "accumulate": (2, partial(accumulate, weights, 0, [KEY], [1e-6], distribution, KEY)),
            }
            found = in_turns(
                {name: partial(_often, call) for name, (_, call) in calls.items()},
                3 if quick else 20, seconds=0, clock=clock,
            )  # fmt: skip
            paces = {
                f"{name}, GB/s": spread([num * CALLS * weights.nbytes / t / 1e9 for t in found[name]])
                for name, (num, _) in calls.items()
            }
            rows.append({"dtype": str(dtype).removeprefix("torch."), "distribution": str(distribution), **paces})
    return rows


def _often(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()


def replay(device: str, clock: Clock, quick: bool) -> list[dict[str, Any]]:
    rows, num = [], 4 if quick else NUM_DIRECTIONS
    keys = [derive_key(0, "benchmark", direction=k) for k in range(num)]
    for dtype in (torch.float32, torch.bfloat16):
        weights = torch.zeros(2**20 if quick else COUNT, dtype=dtype, device=device)
        for distribution in Distribution:
            calls = {
                "pass": partial(_often, partial(weights.mul_, 1.0)),
                "replay": partial(accumulate, weights, 0, keys, [1e-9] * num, distribution, KEY),
            }
            found = in_turns(calls, 3 if quick else 10, seconds=0, clock=clock)
            floor = [t * num / CALLS for t in found["pass"]]
            row = {"dtype": str(dtype).removeprefix("torch."), "distribution": str(distribution), "directions": num}
            rows.append({**row, "replay / passes": ratio(found["replay"], floor)})
    return rows


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    if not torch.cuda.is_available():
        print("no GPU: nothing measured")
        return
    properties = torch.cuda.get_device_properties(0)
    kernel = kernel_for(torch.empty(1, device="cuda")).__name__.rpartition(".")[2]
    device = {"GPU": properties.name, "GB": round(properties.total_memory / 1e9), "CUDA": torch.version.cuda}
    clock = cuda_clock()
    tables = {made.__name__: made("cuda", clock, options.quick) for made in (steps, directions, replay)}
    report({"device": [device | {"torch": torch.__version__, "kernel": kernel}], **tables}, options.json)


if __name__ == "__main__":
    main()
