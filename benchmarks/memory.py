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
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks._report import Spread, in_turns, options, ratio, report, spread
from seedtune.analysis.memory import built, in_fresh_process, measure_peak, save_checkpoint, steps
from seedtune.analysis.memory_cases import DTYPES, METHODS, Case, shortage, size_of
from seedtune.errors import ModelError, SeedtuneError
from seedtune.models.random_models import SHAPES

PAPER = "paper, GPU: open_llama_3b_v2 float16, LoRA r=128, batch 1 (arXiv 2402.05926); none of it measured here"
BASES = "LoRA over a loaded base: weights, peaks of loading and of inference, MB over the libraries; over inference"
PAPER_ROWS = (("Dolly-meta", 10061, 26571, 108, 117), ("GSM8K-IID", 9733, 17771, 95, 104),
              ("Code-LDA", 9569, 15287, 120, 126))  # fmt: skip
PAPER_BASE_MIB = 8697


def measure_seconds(case: Case, methods: Sequence[str], num_turns: int) -> dict[str, list[float]]:
    """Seconds of each method's calls, turn by turn."""
    calls = {name: partial(_synchronised, case.device, call) for name, call in steps(built(case), methods).items()}
    return in_turns(calls, num_turns, seconds=0)


def _synchronised(device: str, call: Callable[[], float]) -> None:
    call()
    if device == "cuda":
        torch.cuda.synchronize()


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
        found = {method: _told(measure_peak, case, method) for method in fitting}
        if case.folder:
            bases.append({**case.row(), **_base_cells(found, methods[1:])})
        else:
            memory.append({**case.row(), **_peak_cells(found, methods[1:])})
        parts += [{**case.row(), "method": method, **_parts(found[method])} for method in fitting]
        if num_turns:
            seconds = _told(measure_seconds, case, fitting, num_turns)
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


def _told(function: Callable, case: Case, *arguments: Any) -> dict[str, Any]:
    print(f"{', '.join(map(str, case.row().values()))}: {function.__name__} {arguments[0]}", file=sys.stderr)
    return in_fresh_process(function, case, *arguments)  # a large model takes minutes


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
        _told(save_checkpoint, next(case for case in cases if case.model == model), path)
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
