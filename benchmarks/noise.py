"""How fast the noise is made, against `torch.Tensor.normal_` filling a float32 buffer of the same size.

Billions of values a second; for `accumulate` with many keys every key counts its values. `overhead` times a call for a
tensor so small that the call itself is what costs.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks._report import arguments, in_turns, ratio, report, spread
from seedtune.zo.kernels import using
from seedtune.zo.noise import Distribution, accumulate, derive_key, perturb, perturb_rows

CACHED, LARGE, TINY = 2**18, 2**24, 2_000
KEY = derive_key(0, "benchmark")
NUM_KEYS = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def warmed(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Memory that the system has already handed out."""
    return torch.full((count,), 0.01, dtype=dtype)


def cases(sizes: tuple[int, ...]) -> Iterator[tuple[str, str, str, int, int, Callable[[], object]]]:
    """Kernel, operation, dtype, number of values in the tensor, number of directions, the call."""
    for size in sizes:
        for dtype, kind in DTYPES.items():
            for distribution in Distribution:
                weights, out = warmed(size, kind), warmed(size, kind)
                call = partial(perturb, out, weights, KEY, 0, 1e-3, distribution)
                yield "compiled", f"perturb {distribution}", dtype, size, 1, call
                for num in (1, NUM_KEYS):
                    keys = [derive_key(0, "benchmark", direction=k) for k in range(num)]
                    call = partial(accumulate, weights, 0, keys, [1e-6] * num, distribution, KEY)
                    yield "compiled", f"accumulate {distribution}", dtype, size, num, call
    for distribution in Distribution:
        call = partial(perturb, warmed(CACHED), warmed(CACHED), KEY, 0, 1e-3, distribution)
        yield "torch", f"perturb {distribution}", "float32", CACHED, 1, partial(with_torch, call)


def with_torch(call: Callable[[], object]) -> None:
    with using("torch"):
        call()


def throughput(quick: bool) -> list[dict]:
    rows = []
    for kernel, operation, dtype, size, num_keys, call in cases((CACHED,) if quick else (CACHED, LARGE)):
        buffer = warmed(size)
        times = in_turns({"normal": buffer.normal_, "noise": call}, num_turns=3 if quick else 9, most_seconds=5)
        rows.append(
            {
                "kernel": kernel,
                "operation": operation,
                "dtype": dtype,
                "values": size,
                "directions": num_keys,
                "G values/s": spread([size * num_keys / t / 1e9 for t in times["noise"]]),
                "normal_ G values/s": spread([size / t / 1e9 for t in times["normal"]]),
                "times normal_": ratio([t * num_keys for t in times["normal"]], times["noise"]),
            }
        )
    return rows


def overhead(quick: bool) -> list[dict]:
    table, rows = warmed(50_000 * 256).view(-1, 256), torch.arange(0, 50_000, 100)
    calls = {}
    for dtype, kind in DTYPES.items():
        call = partial(perturb, warmed(TINY, kind), warmed(TINY, kind), KEY, 0, 1e-3, Distribution.RADEMACHER)
        calls[f"perturb {TINY} values, {dtype}"] = call
    for distribution in Distribution:
        out = torch.empty(len(rows), 256)
        calls[f"perturb_rows {len(rows)} rows of 256, {distribution}"] = partial(
            perturb_rows, out, table, rows, KEY, 0, 1e-3, distribution
        )
    times = in_turns(calls, num_turns=3 if quick else 9, most_seconds=5)
    return [{"call": name, "microseconds": spread([t * 1e6 for t in times[name]])} for name in calls]


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    report({"noise": throughput(options.quick), "small calls": overhead(options.quick)}, options.json)


if __name__ == "__main__":
    main()
