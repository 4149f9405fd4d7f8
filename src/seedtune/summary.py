"""The summary of a run that has ended: plain data, as `summary.json` holds it.

What a person reads of it is `results`; what the model answered is `predictions`.
"""

import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import run_store
from .assembly import Experiment
from .baseline import backpropagation
from .config import Recipe
from .fed.rounds import Server
from .keeping import describe_savings
from .metrics import History, Row, scores_of
from .models.evaluation import Evaluation
from .pinned_inputs import library_versions
from .privacy.ledger import ledger
from .progress import phase
from .run_store import RunStore
from .zo.catching_up import catching_up
from .zo.trajectory import path, since_last_snapshot


def summarize(experiment: Experiment, store: RunStore, history: History, server: Server) -> dict[str, Any]:
    """Return the numbers of a run that has ended, with the comparison that its recipe asks for.

    Cost: what `baseline.num_steps` steps of backpropagation take.
    """
    recipe, rows, peak = experiment.recipe, run_store.metrics_of(store.folder), peak_memory_bytes()
    zero_shot = {f"zero_shot_{name}": rows[0][name] for name in ("loss", "accuracy", "perplexity")}
    blocks = ("flops_prefix", "flops_suffix") if recipe.is_split else ()
    hides_cohort = server.plan is not None and server.plan.hides_cohort
    counted = ("bytes_up", "bytes_down", "forwards", "flops", *blocks, "skipped_steps")
    times = {
        "round_seconds": None if hides_cohort else round(sum(row.get("seconds", 0) for row in rows), 2),
        "seconds": rows[-1]["elapsed_seconds"],
    }
    return {
        "method": recipe.run.method, "model": experiment.model.base_id, "task": recipe.task.name,
        "rounds": rows[-1]["rounds"], "clients": recipe.partition.num_clients,
        "tuned_parameters": experiment.space.num_parameters, "exchange": recipe.federation.upload,
        **zero_shot, **{name: rows[-1][name] for name in ("loss", "accuracy", "perplexity")},
        "heldout_loss": rows[-1].get("heldout_loss"), "heldout_accuracy": rows[-1].get("heldout_accuracy"),
        "best_rounds": history.best_rounds, "best_loss": history.best_loss, "best_accuracy": history.best_accuracy,
        "evaluations": experiment.site.evaluations.note, "stopped_by": _stopped_by(server, history),
        "surges": {str(row["rounds"]): row["surge"] for row in rows if row.get("surge")},
        "backprop_steps": recipe.baseline.num_steps,
        **scores_of(_backpropagation(experiment), "backprop_"),
        **_known_before(recipe), **{name: _total(rows, name) for name in counted}, **_sent_each(rows),
        "failed_replies": None if hides_cohort else sum(len(row.get("failed", ())) for row in rows),
        "replay": asdict(catching_up(experiment.space, experiment.header, since_last_snapshot(path(server.log)))),
        "trajectory_bytes": (store.folder / run_store.TRAJECTORY).stat().st_size,
        **times, "kept_activations": None if server.plan else describe_savings(experiment.kept),
        "peak_memory_bytes": peak, "state_digest": experiment.site.replica.digest.hex(),
        "truncated_examples": (0 if server.plan else experiment.train.num_truncated) + experiment.test.num_truncated,
        "privacy": ledger(server.plan, server.round) if server.plan else None, "versions": versions(recipe),
    }  # fmt: skip


def _backpropagation(experiment: Experiment) -> Evaluation | None:
    """The comparison that the recipe may ask for."""
    if not (steps := experiment.recipe.baseline.num_steps):
        return None
    with phase("steps of backpropagation, to compare", steps) as told:
        return backpropagation(experiment, told.advance)


def _known_before(recipe: Recipe) -> dict[str, Any]:
    """What backpropagation of all tensors reached, where the recipe says so."""
    baseline = recipe.baseline
    if not baseline.whole_model_accuracy:
        return {}
    return {
        "backprop_all_accuracy": baseline.whole_model_accuracy,
        "backprop_all_command": baseline.whole_model_command,
    }


def _sent_each(rows: Sequence[Row]) -> dict[str, float | None]:
    """Bytes of one message in the mean: a reply that counted, up; an order to a client asked, down. None: no such."""
    sent = {"bytes_up": _total(rows, "replied"), "bytes_down": _total(rows, "cohort")}
    totals = {name: _total(rows, name) for name in sent}
    return {
        f"{name}_per_client_round": round(total / count, 1) if (count := sent[name]) and total is not None else None
        for name, total in totals.items()
    }


def _total(rows: Sequence[Row], name: str) -> int | None:
    """The sum over rounds; None where it is withheld."""
    values = [row.get(name, 0) for row in rows]
    return None if None in values else sum(values)


def _stopped_by(server: Server, history: History) -> str | None:
    """What ended the run before its last round ("patience", "surge", "privacy"), or with it too ("divergence"); None:
    nothing."""
    if server.guard.has_diverged:
        return "divergence"
    if server.round == server.recipe.federation.num_rounds:
        return None
    if server.is_budget_spent:
        return "privacy"
    return "patience" if history.is_out_of_patience else "surge"


def peak_memory_bytes() -> int:
    """The most memory that this process has held (resident set).

    On Linux from /proc: `getrusage` also counts what a parent held when it started this process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    if peaks:
        return peaks[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions(recipe: Recipe | None = None) -> dict[str, str]:
    """Versions of what a result depends on, Python's too."""
    return {"python": platform.python_version(), **library_versions(recipe)}
