"""Run folders as a run leaves them, without running anything: rounds, clients, surges and failures as a test wants."""

import json
import math
from pathlib import Path
from typing import Any

import whole_files

from seedtune import run_files
from seedtune.recipe_text import build, merged

DIGEST = "ab" * 16
SURGE = "the training loss rose from 1.100 to 3.300: the learning rate is too large"
VERSIONS = {"python": "3.11.7", "seedtune": "0.1.0", "torch": "2.13.0"}


def row(rounds: int, clients: list[int], **over: Any) -> dict[str, Any]:
    """The row of a round in which each of `clients` answered; evaluated where `over` has a loss."""
    losses = {str(client): 1 + 2 / rounds + 0.1 * math.sin(client + rounds) for client in clients}
    return {
        "rounds": rounds, "elapsed_seconds": 1.0 + 0.5 * rounds, "train_loss": sum(losses.values()) / len(losses),
        "bytes_up": 30 * len(clients), "bytes_down": 80 * len(clients), "forwards": 2 * len(clients),
        "flops": 10**9 * len(clients), "seconds": 0.4, "replied": len(clients), "cohort": len(clients), "dropped": [],
        "failed": {}, "losses": losses, "signals": {}, "scalar_rms": 2.0, "learning_rate": 1e-3, "skipped_steps": 0,
        "state_digest": DIGEST,
    } | over  # fmt: skip


def score(rounds: int) -> dict[str, float | None]:
    return {"loss": 1 + 2 / (1 + rounds), "accuracy": 1 - 0.7 / (1 + 0.1 * rounds), "perplexity": None}


def rows(num_rounds: int, num_clients: int, eval_every: int = 2) -> list[dict[str, Any]]:
    """Of a run in which everyone answers."""
    first = {"rounds": 0, "elapsed_seconds": 1.0, **score(0)}
    clients = list(range(num_clients))
    return [first, *(row(n, clients, **(score(n) if n % eval_every == 0 else {})) for n in range(1, num_rounds + 1))]


def save(
    folder: Path, num_rounds: int = 6, num_clients: int = 4, ended: dict | None = None, lines: list | None = None,
    **over: dict,
) -> Path:  # fmt: skip
    """Writes a run folder. ended: values of its summary, none of it where the run goes on; lines: its rows; `over`:
    its settings by section."""
    folder.mkdir(parents=True)
    base = {"federation": {"num_rounds": num_rounds}, "partition": {"num_clients": num_clients}}
    (folder / "recipe.json").write_text(build(merged(base, over)).model_dump_json())
    found = rows(num_rounds, num_clients) if lines is None else lines
    data = "".join(json.dumps(each) + "\n" for each in found).encode()
    (folder / "metrics.jsonl").write_bytes(data)
    counts = {"num_rounds": num_rounds, "trajectory_bytes": 0, "metrics_bytes": len(data), "format": run_files.FORMAT}
    counts["metrics_digest"] = whole_files.chain(data)
    (folder / "manifest.json").write_text(json.dumps(counts))
    if ended is not None:
        summary = {"model": "starter", "versions": VERSIONS, "trajectory_bytes": 1234, "peak_memory_bytes": 5e8}
        (folder / "summary.json").write_text(json.dumps(summary | ended))
    return folder


LABELS = ("negative", "positive")


def answered(rounds: int, confusion: list[list[int]], **names: str) -> dict[str, Any]:
    """What a run keeps of its test examples, after no round ("predicted") or at its end ("before", "after")."""
    texts = ("a film of rare beauty", "two hours of my life that nobody gives back")
    samples = [{"text": text, "truth": LABELS[1 - i], **names} for i, text in enumerate(texts)]
    return {"test_examples": sum(map(sum, confusion)), "labels": list(LABELS), "confusion": confusion,
            "samples": samples}  # fmt: skip


def of_two_classes() -> dict[str, Any]:
    """Options of `save` for a run whose answers were kept, and which got better."""
    lines = rows(6, 4)
    lines[0] |= answered(0, [[40, 60], [50, 50]], predicted="positive")
    scores = {"zero_shot_loss": 3.0, "zero_shot_accuracy": 0.45, "loss": 1.3, "accuracy": 0.9, "rounds": 6,
              "best_rounds": 6, "best_loss": 1.3}  # fmt: skip
    return {"lines": lines, "ended": scores | answered(6, [[95, 5], [15, 85]], before="positive", after="negative")}


def eventful() -> list[dict[str, Any]]:
    """Rows of 12 rounds of 4 clients: failures in 3 and 4, skipped steps in 5, a surge in 8 that leads back to 6."""
    found = rows(12, 4)
    for n in (3, 4):
        found[n]["failed"] = {"2": "TimeoutError: no answer"}
    found[5]["skipped_steps"] = 3
    found[8] |= {"surge": SURGE, "back_to": 6, "train_loss": 30.0}
    return found


def findings() -> dict[str, dict[str, Any]]:
    """What probes of a run find, by their name, in the form in which they keep it."""
    about = {"model": "/models/tiny", "dtype": "float32", "task": "topics", "seed": 0, "state_digest": DIGEST}
    blocks = ["before the layers", "layer 0", "layer 1", "behind the layers"]
    layers = [
        {"block": block, "parameters": 64 + i, "trace": [2.0 + i, 1.0 + i / 2, 3.5 + i], "largest eigenvalue": 1.5 - i,
         "residual": 0.1, "effective rank": [1.4, 0.9, 2.1] if i < 3 else None} for i, block in enumerate(blocks)
    ]  # fmt: skip
    scales = [
        {"mu": mu, "error": mu**2 + 1e-7 / mu, "truncation": mu**2, "rounding": 1e-7 / mu, "bias": [mu, -mu, 3 * mu]}
        for mu in (1e-4, 1e-3, 1e-2)
    ]
    signals = ("loss", "update distance", "gradient distance")
    ranked = [{"alpha": alpha, **{name: [0.4, -0.1, 0.8] for name in signals}} for alpha in (0.1, 1.0, 10.0)]
    cost = {"forwards": 99, "gradients": 1, "hessian_products": 49, "seconds": 3.25}
    probes = {
        "effective-rank": ({"trace": [0.28, 0.23, 0.33], "operator norm": [0.04, None, None], "at scale": 0.01},
                           {"by layer": layers}),
        "perturbation-scale": ({"best scale, float32": 0.001, "error at most 10%, float32": "0.0001 to 0.01",
                                "best scale, float16": None}, {"float32": scales, "float16": scales[1:]}),
        "heterogeneity": ({"loss and alpha": [-0.4, -0.6, -0.1]},
                          {"rank correlation with the distance of labels": ranked}),
        "rate-bound": ({"bound of the rate": 0.42, "the recipe's rate": 15}, {"by rank": []}),
    }  # fmt: skip
    return {
        name: {"probe": name, "about": about | {"examples": 8}, "values": values, "tables": tables, "cost": cost,
               "notes": ["intervals: 90 %", f"a note of {name}"]} for name, (values, tables) in probes.items()
    }  # fmt: skip


def keep(folder: Path, found: dict[str, Any]) -> Path:
    """The run folder, with findings in it by the name of their file."""
    (folder / "probes").mkdir(exist_ok=True)
    for name, each in found.items():
        (folder / "probes" / f"{name}.json").write_text(json.dumps(each))
    return folder
