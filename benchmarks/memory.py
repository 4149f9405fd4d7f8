"""Peak memory and time of a two-point step and of backpropagation (SGD, AdamW) over those of inference.

A model is given by its config and has random weights, so any size that fits can be measured: the shapes of the papers
by name, any causal language model by the path of its config.json. All its weights are tuned, or LoRA on `q_proj` and
`v_proj` with the rank and alpha of FedMeZO's set-up (arXiv 2402.05926). One sequence, evaluation mode, no gradient
checkpointing, language-modelling loss at the last `--scored` positions.

With `--quantisation`, LoRA over a base that is loaded from a folder as runs load it, stored in `--dtype`, 8 or 4 bits;
another process has saved the folder's bfloat16 checkpoint. Loading and steps then have peaks of their own.

Memory: each figure is the peak of a fresh process that makes two steps: resident set on a CPU (with the interpreter and
the libraries), allocated tensors on CUDA (without them). Time: the steps take turns with the forward in one process.
In every process the tuned tensors require gradients, so that only the step's own ways keep a two-point evaluation from
building an autograd graph; one that builds a graph ends the benchmark with an error. What is likely not to fit into
free memory is not started. The paper's own figures stand in a table of their own and enter none of ours.

Not here: whole rounds, which also hold a working copy of the tuned tensors; quality. Not run on CUDA so far.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks._memory_cases import DTYPES, METHODS, Case, shortage, size_of
from benchmarks._report import Spread, in_turns, options, ratio, report, spread
from benchmarks._workload import (
    RATE,
    SHAPES,
    Work,
    forward,
    loaded_base,
    random_model,
    save_base,
    shape,
    text_batch,
    two_point_step,
    work,
)
from seedtune.errors import ModelError, SeedtuneError
from seedtune.experiment import peak_memory_bytes
from seedtune.models.objective import loss
from seedtune.zo import noise
from seedtune.zo.noise import Distribution

PAPER = "paper, GPU: open_llama_3b_v2 float16, LoRA r=128, batch 1 (arXiv 2402.05926); none of it measured here"
BASES = "LoRA over a loaded base: weights, peaks of loading and of inference, MB over the libraries; over inference"
PAPER_ROWS = (("Dolly-meta", 10061, 26571, 108, 117), ("GSM8K-IID", 9733, 17771, 95, 104),
              ("Code-LDA", 9569, 15287, 120, 126))  # fmt: skip
PAPER_BASE_MIB = 8697


# What runs in processes of their own.


def built(case: Case) -> Work:
    config = shape(case.model, case.num_layers)
    adapter = case.adapter()
    model = loaded_base(adapter) if case.folder else random_model(config, DTYPES[case.dtype], adapter)
    batch = text_batch(config.get_text_config().vocab_size, case.num_tokens, case.num_scored)
    model.module.to(case.device)
    for parameter in model.parameters().values():
        parameter.requires_grad_(True)
    return work(model, batch.to(torch.device(case.device)))


def steps(work: Work, methods: Sequence[str]) -> dict[str, Callable[[], float]]:
    """The calls that are measured; each returns the loss that it saw."""
    number = count()
    calls = {
        "inference": lambda: forward(work),
        "two-point": lambda: two_point_step(work, next(number), Distribution.GAUSSIAN).loss,
    }
    if "SGD" in methods:
        calls["SGD"] = first_order(work, torch.optim.SGD)
    if "AdamW" in methods:
        # An epsilon that float16 can hold: with 0 / 0 all weights would become NaN.
        calls["AdamW"] = first_order(work, partial(torch.optim.AdamW, weight_decay=0.0, eps=1e-6))
    return {name: partial(_finite, name, calls[name]) for name in methods}


def first_order(work: Work, make: Callable[..., torch.optim.Optimizer]) -> Callable[[], float]:
    """A step as first-order clients make it (`seedtune.fed.client`), by an optimizer that keeps its state."""
    optimizer = make(work.model.parameters().values(), lr=RATE)

    def step() -> float:
        value = loss(work.model, work.batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def _finite(name: str, call: Callable[[], float]) -> float:
    value = call()
    if not math.isfinite(value):
        raise ModelError(f"{name}: the loss is {value}: such a step moves nothing and costs less; try another dtype")
    return value


def measure_peak(case: Case, method: str) -> dict[str, float]:
    """Bytes: the peak, what of it was there before the model, came with the noise kernels, and is weights.

    `loading` and `steps`: the peaks until the model was there, and after.
    """
    libraries = peak(case.device)
    if method == "two-point":
        _load_kernels(case)
    kernels = peak(case.device) - libraries
    made = built(case)
    loading = peak(case.device)
    restart_peak(case.device)
    call = steps(made, (method,))[method]
    for _ in range(2):  # the second finds what the first has left: optimizer state, caches
        call()
    running = peak(case.device)
    parts = {"libraries": libraries, "kernels": kernels, "weights": bytes_held(made.model.module)}
    return {"peak": max(loading, running), "loading": loading, "steps": running, **parts}


def bytes_held(module: torch.nn.Module) -> int:
    """Of all that the module saves, scales of packed layers too; shared storage counts once."""
    storages = (tensor.untyped_storage() for tensor in module.state_dict().values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _load_kernels(case: Case) -> None:
    for dtype in (DTYPES[case.dtype], torch.float32):  # adapters are float32
        weights = torch.zeros(1, 128, dtype=dtype, device=case.device)
        rows = torch.zeros(1, dtype=torch.int64, device=case.device)
        point = (0, 0, 1e-3, Distribution.GAUSSIAN)
        noise.perturb(weights.clone(), weights, *point)
        noise.perturb_rows(weights.clone(), weights, rows, *point)
        noise.accumulate(weights, 0, [0], [1e-3], Distribution.GAUSSIAN, 0)


def measure_seconds(case: Case, methods: Sequence[str], num_turns: int) -> dict[str, list[float]]:
    """Seconds of each method's calls, turn by turn."""
    calls = {name: partial(_synchronised, case.device, call) for name, call in steps(built(case), methods).items()}
    return in_turns(calls, num_turns, seconds=0)


def _synchronised(device: str, call: Callable[[], float]) -> None:
    call()
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory_bytes()


def restart_peak(device: str) -> None:
    """From here on `peak` is about what follows; where a system has no way to, it stays about the whole process."""
    if device == "cuda":
        return torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def save_checkpoint(case: Case, folder: str) -> None:
    save_base(shape(case.model, case.num_layers), folder)


def in_fresh_process(function: Callable, case: Case, *arguments: Any) -> dict[str, Any]:
    """What `function(case, *arguments)` gives in a new interpreter.

    Raises:
        ModelError: it failed there; says which case and repeats the last line.
    """
    what = ", ".join(map(str, case.row().values()))
    print(f"{what}: {function.__name__} {arguments[0]}", file=sys.stderr)  # a large model takes minutes
    call = f"memory.{function.__name__}(memory.Case(**{asdict(case)!r}), *{arguments!r})"
    code = f"import json; from benchmarks import memory; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise ModelError(f"{what}: {function.__name__} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


# What is shown.


def tables(cases: Sequence[Case], num_turns: int, methods: Sequence[str] = METHODS) -> dict[str, list[dict[str, Any]]]:
    """The tables by title; `methods` begin with inference, which the others are compared with."""
    memory, bases, parts, times, skipped = [], [], [], [], []
    for case in cases:
        short = {method: shortage(case, method) for method in methods}
        fitting = [method for method in methods if not short[method]]
        skipped += [row for row in short.values() if row]
        if "inference" not in fitting:
            continue
        found = {method: in_fresh_process(measure_peak, case, method) for method in fitting}
        if case.folder:
            bases.append({**case.row(), **_base_cells(found, methods[1:])})
        else:
            memory.append({**case.row(), **_peak_cells(found, methods[1:])})
        parts += [{**case.row(), "method": method, **_parts(found[method])} for method in fitting]
        if num_turns:
            seconds = in_fresh_process(measure_seconds, case, fitting, num_turns)
            times.append({**case.row(), **_time_cells(seconds, methods[1:])})
    shown = {
        "peak memory over inference": memory,
        BASES: _over_bfloat16(bases),
        "what each peak is made of, MB": parts,
        "seconds of a step over one forward": times,
        "not started: too large for free memory": skipped,
        PAPER: _paper(),
    }
    return {title: rows for title, rows in shown.items() if rows}


def _peak_cells(found: dict[str, dict[str, float]], methods: Sequence[str]) -> dict[str, Any]:
    base = found["inference"]["peak"]
    over = {m: round(found[m]["peak"] / base, 2) if m in found else "skipped" for m in methods}
    return {"inference, MB": round(base / 1e6), **over}


def _base_cells(found: dict[str, dict[str, float]], methods: Sequence[str]) -> dict[str, Any]:
    base = found["inference"]
    before = base["libraries"] + base["kernels"]
    over = {m: round(found[m]["steps"] / base["steps"], 2) if m in found else "skipped" for m in methods}
    stages = {"loading": base["loading"] - before, "inference": base["steps"] - before}
    return {"weights": round(base["weights"] / 1e6), **{name: round(b / 1e6) for name, b in stages.items()}, **over}


def _over_bfloat16(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with weights and inference over those of the model's own bfloat16 base, where that was measured."""
    plain = {row["model"]: row for row in rows if (row["dtype"], row["base"]) == ("bfloat16", "none")}

    def over(row: dict[str, Any], column: str) -> float | str:
        return round(row[column] / plain[row["model"]][column], 2) if row["model"] in plain else "not measured"

    return [{**row, **{f"{c} / bfloat16": over(row, c) for c in ("weights", "inference")}} for row in rows]


def _parts(found: dict[str, float]) -> dict[str, Any]:
    names = ("libraries", "kernels", "weights")
    cells = {name: round(found[name] / 1e6) for name in names}
    rest = found["peak"] - sum(found[name] for name in names)
    share = f"{100 * found['weights'] / found['peak']:.0f} %"
    return {**cells, "rest": round(rest / 1e6), "peak": round(found["peak"] / 1e6), "share of weights": share}


def _time_cells(found: dict[str, list[float]], methods: Sequence[str]) -> dict[str, Spread | str]:
    milliseconds = spread([1e3 * seconds for seconds in found["inference"]])
    over = {m: ratio(found[m], found["inference"]) if m in found else "skipped" for m in methods}
    return {"forward, ms": milliseconds, **over}


def _paper() -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "base alone, MiB": PAPER_BASE_MIB,
            "FedMeZO, MiB": ours,
            "backprop, MiB": theirs,
            "FedMeZO / base": round(ours / PAPER_BASE_MIB, 2),
            "backprop / base": round(theirs / PAPER_BASE_MIB, 2),
            "10 rounds, s: FedMeZO": fast,
            "backprop": slow,
        }
        for task, ours, theirs, fast, slow in PAPER_ROWS
    ]


def cases_of(given: argparse.Namespace) -> list[Case]:
    """Every combination asked for; `--quick` cuts models to two layers and sequences to 64 tokens.

    Raises:
        ModelError: a model that is neither a known shape nor a config, or no causal language model; `--quantisation`
            on a GPU.
    """
    if given.quantisation and given.device != "cpu":
        raise ModelError("--quantisation was given with --device cuda: bases are packed on a CPU; add --device cpu")
    layers, tokens = (2, 64) if given.quick else (0, given.tokens)
    tuned, bases = (["lora"], given.quantisation) if given.quantisation else (given.tuned, [""])
    cases = [
        Case(*case, tokens, min(given.scored, tokens - 1), layers, tuple(given.lora_targets), given.lora_rank,
             given.device, base)
        for *case, base in product(given.model, given.dtype, tuned, bases)
    ]  # fmt: skip
    for case in cases:
        size_of(case)
    return cases


def with_checkpoints(cases: Sequence[Case], folder: str) -> list[Case]:
    """The cases, those that are loaded with a folder to load from, which one process a model has written."""
    paths = {case.model: str(Path(folder, str(i))) for i, case in enumerate(cases) if case.quantisation}
    for model, path in paths.items():
        in_fresh_process(save_checkpoint, next(case for case in cases if case.model == model), path)
    return [replace(case, folder=paths.get(case.model, "")) for case in cases]


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} was given: must be at least {least}")
        return int(text)

    return number


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__.splitlines()[0])
    known = ", ".join(SHAPES)
    parser.add_argument("--model", nargs="+", default=["opt-125m"], help=f"{known}, or the path of a config.json")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES, help="of the model's weights")
    parser.add_argument("--tuned", nargs="+", default=["full", "lora"], choices=("full", "lora"))
    parser.add_argument("--quantisation", nargs="+", default=[], choices=("none", "8bit", "4bit"),
                        help="LoRA alone, over a base that is loaded and stored so")  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=METHODS[1:], choices=METHODS[1:], help="beside inference")
    parser.add_argument("--tokens", type=at_least(2), default=256, help="length of the one sequence")
    parser.add_argument("--scored", type=at_least(1), default=16, help="tokens, at its end, that the loss is about")
    parser.add_argument("--turns", type=at_least(0), default=5, help="times that each step is timed; 0: never")
    parser.add_argument("--lora-rank", type=at_least(1), default=128, help="alpha is twice the rank")
    parser.add_argument("--lora-targets", nargs="+", default=["q_proj", "v_proj"], help="names of linear modules")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found, choices=("cpu", "cuda"), help=f"here: {found}")
    return parser


def main() -> None:
    arguments = parser()
    given = arguments.parse_args()
    try:
        with TemporaryDirectory() as folder:
            cases = with_checkpoints(cases_of(given), folder)
            found = tables(cases, 1 if given.quick else given.turns, ("inference", *given.methods))
    except SeedtuneError as error:
        arguments.exit(2, f"{error}\n")
    report(found, given.json)


if __name__ == "__main__":
    main()
