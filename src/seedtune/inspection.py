"""Looking at what there is: runs, trajectories, models and this installation. Nothing here trains."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import presets, run_store
from .assembly import assemble, load_replayed
from .config import Machine
from .cores import usable_cores
from .data.forms import describe_form
from .errors import ConfigError, RunStoreError, SeedtuneError
from .installation import data, extras
from .models import gguf_adapter
from .models.export import check_free, export
from .privacy.ledger import ledger
from .privacy.plan import Plan
from .quantities import duration, operations
from .recipe_text import build
from .space import Weights, bound_weights, digest
from .summary import versions
from .zo import kernels, noise, trajectory, trajectory_file
from .zo.catching_up import CatchingUp, pace_here
from .zo.noise import Distribution
from .zo.trajectory import Header, Trajectory

COMPARED = (
    "method", "model", "task", "rounds", "loss", "accuracy", "perplexity", "bytes_up", "bytes_down", "forwards",
    "flops", "seconds", "peak_memory_bytes", "state_digest", "zero_shot_loss", "zero_shot_accuracy",
    "zero_shot_perplexity", "test_examples", "outcome",
)  # fmt: skip
SECONDS_WORTH_SAYING = 1.0
_CPU = Machine()
KNOWN_NOISE = {
    Distribution.RADEMACHER: "14ba06512066c6e59719742b5004cc32",
    Distribution.GAUSSIAN: "43e441c5f9b7f8a0521f35d9d8568bf3",
}
"""Digests of 4,096 values of noise version 1, from coordinate 2^40 + 77 on, under derive_key(0, "doctor")."""


def opened(path: Path) -> tuple[Trajectory, Callable[[int], Weights] | None]:
    """The trajectory of a run folder or a file, and where its snapshots are found."""
    if path.is_dir():
        return run_store.trajectory_of(path), lambda round_: run_store.snapshot_of(path, round_)
    return trajectory_file.read(path), None


def exported(
    path: Path,
    folder: Path | None,
    base: str | None,
    num_rounds: int | None,
    merge: bool,
    say: Callable[[str], None] = lambda note: None,
    adapter_file: Path | None = None,
) -> dict[str, Any]:
    """Replays `path` on its base and writes the tuned model to `folder`, or its LoRA adapter to `adapter_file` as GGUF,
    or both; the state that it stands at.

    `say` is told what the replay will take, before it begins, where it is worth waiting for.

    Raises:
        TrajectoryError, DigestMismatch: damaged, too short, or another base. ModelError: `folder` is not free, or
            `adapter_file` is there. ConfigError: neither is given.
    """
    if folder is None and adapter_file is None:
        raise ConfigError("nothing to write was named: give --out FOLDER, --gguf FILE or both")
    if folder is not None:
        check_free(folder)
    if adapter_file is not None:
        gguf_adapter.check_new(adapter_file)
    state, snapshot = opened(path)
    trajectory.check_rounds(state, num_rounds)
    base = base or (run_store.recipe_of(path).model.name if snapshot else None)

    def foretell(ahead: CatchingUp) -> None:
        seconds = ahead.seconds(pace_here(state.header.distribution, ahead.dtype))
        if seconds >= SECONDS_WORTH_SAYING:
            many = f"{ahead.num_directions:,} directions, {operations(ahead.num_values)} values"
            say(f"replaying {many}: about {duration(seconds)} here")

    model, space = load_replayed(state, base, num_rounds, snapshot, foretell)
    if adapter_file is not None:
        gguf_adapter.write_adapter(model, adapter_file)
    rounds = len(state.records) if num_rounds is None else num_rounds
    stands = {"rounds": rounds, "state_digest": digest(bound_weights(model.module, space)).hex()}
    about = {"base": state.header.base, "model": dict(state.header.model), "merged": merge}
    if snapshot:  # a run, whose recipe says the task; a bare trajectory does not
        about["form"] = describe_form(run_store.recipe_of(path).task, model.kind)
    if folder is not None:
        export(model, folder, merged=merge, origin=stands | about)
    return stands


def described(path: Path) -> dict[str, Any]:
    """What a run folder or a trajectory file holds, as names and values."""
    state, _ = opened(path)
    header, records = state.header, state.records
    found = {
        "base": header.base, "base_digest": header.base_digest, "space": header.space, "seed": header.seed,
        "keys": header.keys, "key_pool": header.key_pool, "distribution": str(header.distribution),
        "noise_version": header.noise_version, "inputs": dict(header.inputs), "versions": dict(header.versions),
        **_split_of(header), "rounds": len(records),
        "snapshots": sum(record.is_snapshot for record in records),
        "scalars": sum(record.scalars.size for record in records),
        "skipped_scalars": sum(int(np.isnan(record.scalars).sum()) for record in records),
        "bytes": (path / run_store.TRAJECTORY if path.is_dir() else path).stat().st_size,
        "state_digest": records[-1].digest.hex() if records else None,
    }  # fmt: skip
    if path.is_dir():
        summary = run_store.summary_of(path)
        found |= {"finished": summary is not None, **(_compared(summary) if summary else {})}
        found |= _replay_of(summary, header, found["bytes"]) if summary else {}
        plan = Plan.of(run_store.recipe_of(path))
        found |= {f"privacy_{name}": value for name, value in ledger(plan, len(records)).items()} if plan else {}
    return found


def _replay_of(summary: Mapping[str, Any], header: Header, record_bytes: int) -> dict[str, Any]:
    """What rebuilding the run's weights takes here, and the link's bytes a second from which sending them is sooner."""
    if "replay" not in summary:  # of an earlier seedtune
        return {}
    ahead = CatchingUp(**summary["replay"])
    pace = pace_here(header.distribution, ahead.dtype)
    return {
        "replay_directions": ahead.num_directions, "replay_values": ahead.num_values,
        "replay_seconds_here": float(f"{ahead.seconds(pace):.3g}"), "weight_bytes": ahead.weight_bytes,
        "weights_sooner_above_bytes_per_second": round(ahead.break_even(pace, record_bytes)) if ahead.num_values else 0,
    }  # fmt: skip


def _split_of(header: Header) -> dict[str, Any]:
    """How steps of two blocks are told; block1_tensors: how many of the tuned tensors are the first block's."""
    split = header.split
    if split is None:
        return {"split": None}
    return {
        "split": split.reading, "num_prefix": split.num_prefix, "num_suffix": split.num_suffix,
        "baseline": split.baseline, "rate_ratio": split.rate_ratio, "block1_tensors": int(split.block1, 16).bit_count(),
    }  # fmt: skip


def compared(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The summaries of runs that have ended.

    Raises:
        RunStoreError: no run there, or one that has not ended.
    """
    rows = []
    for folder in folders:
        run_store.recipe_of(folder)
        summary = run_store.summary_of(folder)
        if summary is None:
            raise RunStoreError(f"run {folder}: has not ended; continue it with 'seedtune resume {folder}'")
        rows.append({"run": str(folder), **_compared(summary)})
    return rows


def _compared(summary: Mapping[str, Any]) -> dict[str, Any]:
    """None where an earlier seedtune did not count."""
    return {name: summary.get(name) for name in COMPARED}


def differing_tasks(folders: Sequence[Path]) -> list[str]:
    """Sentences that warn where runs were not tested on the same examples; none where nothing is known to differ."""
    tasks = [run_store.recipe_of(folder).task.model_dump() for folder in folders]
    names = list(dict.fromkeys(task["name"] for task in tasks))
    if len(names) > 1:
        return [f"the runs are of unlike tasks ({', '.join(names)}): their scores say nothing about each other"]
    keys = [key for key in tasks[0] if any(task[key] != tasks[0][key] for task in tasks[1:])]
    sizes = list(dict.fromkeys((run_store.summary_of(folder) or {}).get("test_examples") for folder in folders))
    if len(sizes) > 1:
        counts = ", ".join("not known" if size is None else str(size) for size in sizes)
        return [f"the runs were tested on unlike examples ({counts} of them): compare their scores with care"]
    if keys:
        settings = ", ".join(f"task.{key}" for key in keys)
        return [f"the runs differ in {settings}: they may have been tested on unlike examples"]
    return []


def compared_at(
    folders: Sequence[Path], accuracy: float | None = None, loss: float | None = None
) -> list[dict[str, Any]]:
    """For each run that has ended: the best evaluation, and what the first one at the target had cost (`to_target`).

    Raises:
        RunStoreError: no run there, or one that has not ended. ConfigError: not one target, one out of range, or an
            accuracy where the task has none.
    """
    measure, target = _one_target(accuracy, loss)
    found = []
    for row in compared(folders):
        rounds = run_store.metrics_of(Path(row["run"]))
        values = [each[measure] for each in rounds if each.get(measure) is not None]
        if measure == "accuracy" and not values:
            raise ConfigError(f"run {row['run']}: has no accuracy, its task is of texts: compare it with --to-loss")
        best = (max if measure == "accuracy" else min)(values, default=None)
        found.append({"run": row["run"], "method": row["method"], "measure": measure, "target": target, "best": best,
                      "reached": to_target(rounds, accuracy, loss)})  # fmt: skip
    return found


def to_target(
    rows: Sequence[Mapping[str, Any]], accuracy: float | None = None, loss: float | None = None
) -> dict[str, Any] | None:
    """What a run had cost at its first evaluation with test accuracy of at least `accuracy`, or test loss of at most
    `loss`; None if none was.

    `rows` are those of metrics.jsonl. rounds, flops, forwards, bytes_up and bytes_down are totals up to that round
    (flops is None where rounds were not metered); seconds are all that had passed, evaluations included. A target is
    seen at evaluations only, so costs are upper bounds, by less than `run.eval_every` rounds.

    >>> rows = [{"rounds": 0, "elapsed_seconds": 1.0, "accuracy": 0.2}]
    >>> cost = {"flops": 70, "forwards": 2, "bytes_up": 9, "bytes_down": 8}
    >>> rows += [{"rounds": n, "elapsed_seconds": 1.0 + n, **cost} for n in (1, 2)]
    >>> rows[2]["accuracy"] = 0.6
    >>> to_target(rows, accuracy=0.5)
    {'accuracy': 0.6, 'rounds': 2, 'seconds': 3.0, 'flops': 140, 'forwards': 4, 'bytes_up': 18, 'bytes_down': 16}
    >>> to_target(rows, accuracy=0.7)

    Raises:
        ConfigError: not one target, or one out of range.
    """
    measure, target = _one_target(accuracy, loss)
    for i, row in enumerate(rows):
        value = row.get(measure)
        if value is not None and (value >= target if measure == "accuracy" else value <= target):
            costs = {name: _total(rows[: i + 1], name) for name in ("flops", "forwards", "bytes_up", "bytes_down")}
            return {measure: value, "rounds": row["rounds"], "seconds": row["elapsed_seconds"], **costs}
    return None


def _one_target(accuracy: float | None, loss: float | None) -> tuple[str, float]:
    """The measure and its value."""
    if accuracy is not None and loss is None:
        if not 0 < accuracy <= 1:
            raise ConfigError(f"--to-accuracy {accuracy:g}: must be more than 0 and at most 1, such as 0.8")
        return "accuracy", accuracy
    if loss is not None and accuracy is None:
        if not 0 < loss < math.inf:
            raise ConfigError(f"--to-loss {loss:g}: must be a finite number above 0, such as 0.5")
        return "loss", loss
    found = "neither was" if accuracy is None else "both were"
    raise ConfigError(f"a target is one of --to-accuracy and --to-loss, and {found} given: give one")


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """The sum over rounds, None where one of them does not say."""
    values: list[Any] = [row.get(name) for row in rows if row["rounds"]]
    return None if None in values else sum(values)


def health() -> dict[str, Any]:
    """Versions, cores and kernels of this installation, and whether its noise is the known one."""
    found = kernels.found()
    wrong = [f"{kernel} {name}" for kernel in found for name in KNOWN_NOISE if not _is_known(kernel, name)]
    return {
        "versions": versions(), "cores": os.cpu_count(), "usable_cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None, "kernels": list(found),
        "starter": _starter(), "extras": extras(), "data": data(),
        "recipes": sorted(presets.names("recipes")), "methods": sorted(presets.names("methods")),
        "noise_version": noise.VERSION, "noise": f"differs: {', '.join(wrong)}" if wrong else "as known",
    }  # fmt: skip


def _is_known(kernel: kernels.Name, distribution: Distribution) -> bool:
    with kernels.using(kernel):
        values = noise.values(noise.derive_key(0, "doctor"), 2**40 + 77, 4096, distribution)
    return blake2b(values.numpy().tobytes(), digest_size=16).hexdigest() == KNOWN_NOISE[distribution]


def _starter() -> str:
    try:
        recipe = build({"partition": {"num_clients": 1}}, "starter")
        return f"loads, {assemble(recipe, _CPU).space.num_parameters:,} parameters"
    except SeedtuneError as error:
        return f"does not load: {error}"
