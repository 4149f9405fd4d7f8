"""Peak memory and time of a two-point step and of backpropagation (SGD, AdamW) over those of inference.

A model is given by its config and has random weights, so any size that fits can be measured: the shapes of the papers
by name, any causal language model by the path of its config.json. All its weights are tuned, or LoRA on `q_proj` and
`v_proj` with the rank and alpha of FedMeZO's set-up (arXiv 2402.05926). One sequence, evaluation mode, no gradient
checkpointing, language-modelling loss at the last `--scored` positions.

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
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import torch

from benchmarks._report import Spread, in_turns, options, ratio, report, spread
from benchmarks._workload import (
    RATE,
    SHAPES,
    Work,
    forward,
    on_device,
    random_model,
    shape,
    skeleton,
    text_batch,
    two_point_step,
    work,
)
from seedtune.config import ModelConfig
from seedtune.errors import ModelError, SeedtuneError
from seedtune.experiment import peak_memory_bytes
from seedtune.models import lora
from seedtune.models.objective import loss
from seedtune.zo import noise
from seedtune.zo.noise import Distribution

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
METHODS = ("inference", "two-point", "SGD", "AdamW")
# Copies of the tuned tensors beside the weights: gradients; AdamW's two moments.
EXTRA_COPIES = {"inference": 0, "two-point": 0, "SGD": 1, "AdamW": 3}
LIBRARIES_BYTES = 700e6  # resident before a model is made, kernels included: measured 450 to 560 MB
PAPER = "paper, GPU: open_llama_3b_v2 float16, LoRA r=128, batch 1 (arXiv 2402.05926); none of it measured here"
PAPER_ROWS = (("Dolly-meta", 10061, 26571, 108, 117), ("GSM8K-IID", 9733, 17771, 95, 104),
              ("Code-LDA", 9569, 15287, 120, 126))  # fmt: skip
PAPER_BASE_MIB = 8697


@dataclass(frozen=True)
class Case:
    """One row of the tables. `num_layers` 0: as many as the config has."""

    model: str
    dtype: str
    tuned: str
    num_tokens: int
    num_scored: int
    num_layers: int
    targets: tuple[str, ...]
    lora_rank: int
    device: str

    def row(self) -> dict[str, Any]:
        name = f"{self.model}, {self.num_layers} layers" if self.num_layers else self.model
        tuned = f"LoRA r={self.lora_rank}" if self.tuned == "lora" else "all weights"
        return {"model": name, "dtype": self.dtype, "tuned": tuned, "tokens": self.num_tokens}

    def adapter(self) -> ModelConfig | None:
        if self.tuned != "lora":
            return None
        alpha = 2.0 * self.lora_rank
        return ModelConfig(adapter="lora", lora_rank=self.lora_rank, lora_alpha=alpha, lora_targets=tuple(self.targets))


# What runs in processes of their own.


def built(case: Case) -> Work:
    config = shape(case.model, case.num_layers)
    model = random_model(config, DTYPES[case.dtype], case.adapter())
    batch = text_batch(config.get_text_config().vocab_size, case.num_tokens, case.num_scored)
    model.module.to(case.device)
    for parameter in model.parameters().values():
        parameter.requires_grad_(True)
    return work(model, on_device(batch, case.device))


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
    """Bytes: the peak, what of it was there before the model, came with the noise kernels, and is weights."""
    libraries = peak(case.device)
    if method == "two-point":
        _load_kernels(case)
    kernels = peak(case.device) - libraries  # Numba and LLVM
    made = built(case)
    call = steps(made, (method,))[method]
    for _ in range(2):  # the second finds what the first has left: optimizer state, caches
        call()
    weights = sum(p.numel() * p.element_size() for p in made.model.module.parameters())
    return {"peak": peak(case.device), "libraries": libraries, "kernels": kernels, "weights": weights}


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


# What decides, and what is shown.


@dataclass(frozen=True)
class Size:
    """Elements: of the model, of its adapters, of its largest tensor, and of all linear layers' inputs and outputs."""

    model: int
    adapters: int
    largest: int
    per_token: int
    vocabulary: int
    num_layers: int


def size_of(case: Case) -> Size:
    config = shape(case.model, case.num_layers)
    module = skeleton(config, DTYPES[case.dtype])
    linear = {name: module.get_submodule(name).weight for name in lora.linear_names(module)}
    adapted = [w for name, w in linear.items() if case.tuned == "lora" and name.rpartition(".")[2] in case.targets]
    text = config.get_text_config()
    return Size(
        model=sum(p.numel() for p in module.parameters()),
        adapters=case.lora_rank * sum(sum(w.shape) for w in adapted),
        largest=max(p.numel() for p in module.parameters()),
        per_token=sum(sum(w.shape) for w in linear.values()),
        vocabulary=text.vocab_size,
        num_layers=text.num_hidden_layers,
    )


def bytes_needed(case: Case, method: str) -> int:
    """An estimate from above: weights, gradients and optimizer state, activations, libraries."""
    size, width = size_of(case), DTYPES[case.dtype].itemsize
    tuned = 4 * size.adapters if case.tuned == "lora" else width * size.model
    weights = width * size.model + 4 * size.adapters + EXTRA_COPIES[method] * tuned
    activations = 2 * width * case.num_tokens * size.per_token
    if method in ("inference", "two-point"):
        activations = 4 * activations // size.num_layers
    elif case.tuned == "full":
        weights += 2 * width * size.largest  # gradients are summed and moments combined tensor by tensor
    logits = 16 * case.num_scored * size.vocabulary
    libraries = 0 if case.device == "cuda" else LIBRARIES_BYTES
    return int(weights + activations + logits + libraries)


def bytes_free(device: str) -> int:
    """What can be allocated now; where the system does not tell, all memory that there is."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shortage(case: Case, method: str) -> dict[str, Any] | None:
    """A row that says what is needed and what is free, unless that leaves a tenth to spare."""
    needed, free = bytes_needed(case, method), bytes_free(case.device)
    if 1.1 * needed <= free:
        return None
    return {**case.row(), "skipped": method, "needs, MB": round(needed / 1e6), "free, MB": round(free / 1e6)}


def tables(cases: Sequence[Case], num_turns: int) -> dict[str, list[dict[str, Any]]]:
    memory, parts, times, skipped = [], [], [], []
    for case in cases:
        short = {method: shortage(case, method) for method in METHODS}
        fitting = [method for method in METHODS if not short[method]]
        skipped += [row for row in short.values() if row]
        if "inference" not in fitting:
            continue
        found = {method: in_fresh_process(measure_peak, case, method) for method in fitting}
        memory.append({**case.row(), **_peak_cells(found)})
        parts += [{**case.row(), "method": method, **_parts(found[method])} for method in fitting]
        if num_turns:
            times.append({**case.row(), **_time_cells(in_fresh_process(measure_seconds, case, fitting, num_turns))})
    shown = {
        "peak memory over inference": memory,
        "what each peak is made of, MB": parts,
        "seconds of a step over one forward": times,
        "not started: too large for free memory": skipped,
        PAPER: _paper(),
    }
    return {title: rows for title, rows in shown.items() if rows}


def _peak_cells(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    base = found["inference"]["peak"]
    over = {m: round(found[m]["peak"] / base, 2) if m in found else "skipped" for m in METHODS[1:]}
    return {"inference, MB": round(base / 1e6), **over}


def _parts(found: dict[str, float]) -> dict[str, Any]:
    names = ("libraries", "kernels", "weights")
    cells = {name: round(found[name] / 1e6) for name in names}
    rest = found["peak"] - sum(found[name] for name in names)
    share = f"{100 * found['weights'] / found['peak']:.0f} %"
    return {**cells, "rest": round(rest / 1e6), "peak": round(found["peak"] / 1e6), "share of weights": share}


def _time_cells(found: dict[str, list[float]]) -> dict[str, Spread | str]:
    milliseconds = spread([1e3 * seconds for seconds in found["inference"]])
    over = {m: ratio(found[m], found["inference"]) if m in found else "skipped" for m in METHODS[1:]}
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
        ModelError: a model that is neither a known shape nor a config, or no causal language model.
    """
    layers, tokens = (2, 64) if given.quick else (0, given.tokens)
    chosen = product(given.model, given.dtype, given.tuned)
    cases = [
        Case(*case, tokens, min(given.scored, tokens - 1), layers, tuple(given.lora_targets), given.lora_rank,
             given.device)
        for case in chosen
    ]  # fmt: skip
    for case in cases:
        size_of(case)
    return cases


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
        found = tables(cases_of(given), num_turns=1 if given.quick else given.turns)
    except SeedtuneError as error:
        arguments.exit(2, f"{error}\n")
    report(found, given.json)


if __name__ == "__main__":
    main()
