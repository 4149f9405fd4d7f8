"""Peak memory of a step, measured in a process of its own, of a model of a given shape with random weights.

One sequence, evaluation mode, no gradient checkpointing, language-modelling loss at its last positions. The peak is of
a fresh process that makes two steps: resident set on a CPU (with the interpreter and the libraries), allocated tensors
on CUDA (without them). The tuned tensors require gradients, so that only the step's own ways keep a two-point
evaluation from building an autograd graph. Whole rounds, which hold a working copy of the tuned tensors, are not
measured.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from ..models.objective import loss
from ..models.random_models import loaded_base, random_model, save_base, shape
from ..parent import end_with_standard_input
from ..summary import peak_memory_bytes
from ..zo import noise
from ..zo.noise import Distribution
from .memory_cases import DTYPES, Case
from .one_step import RATE, Work, forward, text_batch, two_point_step, work


def built(case: Case) -> Work:
    config = shape(case.model, case.num_layers)
    adapter = case.adapter()
    model = loaded_base(adapter) if adapter and case.folder else random_model(config, DTYPES[case.dtype], adapter)
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
    """What `function(case, *arguments)` gives in a new interpreter, which ends where this one does.

    Raises:
        ModelError: it failed there; says which case and repeats the last line.
    """
    what = ", ".join(map(str, case.row().values()))
    call = f"{function.__name__}(Case(**{asdict(case)!r}), *{arguments!r})"
    main: Any = sys.modules["__main__"]
    home = function.__module__ if function.__module__ != "__main__" else main.__spec__.name
    imports = f"from {home} import {function.__name__}; from {Case.__module__} import Case"
    begin = f"from {end_with_standard_input.__module__} import end_with_standard_input; end_with_standard_input()"
    code = f"{begin}; import json; {imports}; print(json.dumps({call}))"
    theirs, ours = os.pipe()
    with open(theirs), open(ours, "w"):
        done = subprocess.run([sys.executable, "-c", code], stdin=theirs, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise ModelError(f"{what}: {function.__name__} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])
