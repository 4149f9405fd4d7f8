"""Runs, trajectories and this installation as people read them: sentences first, then tables."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from . import run_store, verdict
from .config import Recipe
from .console import pairs, table
from .errors import install_hint
from .inspection import differing_tasks
from .installation import MODEL, SNIPPETS
from .quantities import amount, duration, operations
from .results import sent

Part = Table | str


def describe(path: Path, found: Mapping[str, Any]) -> Iterator[Part]:
    """A run folder or a trajectory file: what it is, how it went, its numbers, what to do next.

    `found`: what `inspection.described` gives for `path`.
    """
    yield from _run(path, found) if path.is_dir() else _trajectory(path, found)


def _trajectory(path: Path, found: Mapping[str, Any]) -> Iterator[Part]:
    yield (
        f"{path}: a trajectory of {found['rounds']} rounds ({amount(found['bytes'])}). With its base, "
        f"{found['base']}, it is the tuned model."
    )
    yield pairs(_record(found))
    yield f"To rebuild the model: seedtune replay {_quoted(path)} --out tuned"


def _record(found: Mapping[str, Any]) -> dict[str, str]:
    """What a trajectory holds, in words."""
    snapshots = f", {found['snapshots']} of them as whole weights" if found["snapshots"] else ""
    skipped = f", {found['skipped_scalars']:,} of them skipped" if found["skipped_scalars"] else ""
    rows = {
        "base": found["base"], "base digest": found["base_digest"], "rounds": f"{found['rounds']}{snapshots}",
        "scalars": f"{found['scalars']:,}{skipped}",
        "directions": f"{found['distribution']}, {_keys(found)}, noise version {found['noise_version']}",
    }  # fmt: skip
    if found["split"]:
        rows["local steps"] = f"of two blocks ({found['split']}), {found['block1_tensors']} tensors in the first"
    rows |= {"trajectory": amount(found["bytes"]), "state digest": found["state_digest"] or "that of the base"}
    return rows


def _keys(found: Mapping[str, Any]) -> str:
    keys = {"own": "each client has its own", "shared": "the same for all clients"}.get(found["keys"], found["keys"])
    return f"{keys}, from a pool of {found['key_pool']}" if found["key_pool"] else keys


def _run(folder: Path, found: Mapping[str, Any]) -> Iterator[Part]:
    recipe, rows = run_store.recipe_of(folder), run_store.metrics_of(folder)
    summary = run_store.summary_of(folder)
    yield f"{folder}: {_about(recipe, found, summary)}"
    yield from verdict.sentences(summary) if summary else [verdict.so_far(rows)]
    yield pairs(_facts(recipe, rows, summary) | _record(found) | _privacy(found) | _replay(found))
    yield "Next:"
    yield pairs(_next(folder, summary is not None))


def _about(recipe: Recipe, found: Mapping[str, Any], summary: Mapping[str, Any] | None) -> str:
    planned, done = recipe.federation.num_rounds, found["rounds"]
    state = "a run that has ended" if summary else "a run that goes on or was interrupted"
    return (
        f"{state}, {done} of {planned} rounds. Model {found['base']} on task {recipe.task.name}, "
        f"{recipe.partition.num_clients} clients, by {verdict.way(recipe.run.method, recipe.local.order)}."
    )


def _facts(recipe: Recipe, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> dict[str, str]:
    if not rows:
        return {}
    total = {name: sum(row.get(name) or 0 for row in rows) for name in ("bytes_up", "bytes_down", "flops")}
    taken = rows[-1]["elapsed_seconds"]
    facts = {"time": "withheld" if taken is None else duration(taken)}
    if not recipe.is_private:
        facts["sent"] = f"{amount(total['bytes_up'])} up, {amount(total['bytes_down'])} down"
        facts["computed"] = f"{operations(total['flops'])} floating-point operations"
    if summary:
        facts = {"tuned": f"{summary['tuned_parameters']:,} numbers", **facts}
        facts["peak memory"] = amount(summary["peak_memory_bytes"])
    return facts


def _privacy(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        name.replace("_", " "): str(value)
        for name, value in found.items()
        if name.startswith("privacy_") and value is not None
    }


def _replay(found: Mapping[str, Any]) -> dict[str, str]:
    if "replay_seconds_here" not in found:
        return {}
    return {"replaying it here": f"about {duration(found['replay_seconds_here'])}"}


def _next(folder: Path, has_ended: bool) -> dict[str, str]:
    """Commands, by what they are for."""
    run = _quoted(folder)
    if not has_ended:
        return {"to resume it": f"seedtune resume {run}", "to see it go on": f"seedtune watch {run}"}
    return {
        "class by class": f"seedtune evaluate {run}", "as a page": f"seedtune report {run}",
        "the tuned model": f"seedtune replay {run} --out tuned",
    }  # fmt: skip


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def compare(rows: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """Runs that have ended, one a row, from zero-shot to tuned; warns where they were not tested alike."""
    columns = {
        "run": [row["run"] for row in rows], "task": [row["task"] for row in rows],
        "model": [row["model"] for row in rows], "method": [verdict.method_name(row["method"]) for row in rows],
        "rounds": [str(row["rounds"]) for row in rows],
        "test accuracy": [_change(row, "accuracy", ".1%") for row in rows],
        "perplexity": [_change(row, "perplexity", ".4g") for row in rows],
        "test loss": [_change(row, "loss", ".4f") for row in rows],
        "outcome": [verdict.MARKS.get(row["outcome"], "") for row in rows],
        "up": [sent(row["bytes_up"]) for row in rows], "down": [sent(row["bytes_down"]) for row in rows],
        "forwards": [_forwards(row["forwards"]) for row in rows], "FLOPs": [_counted(row["flops"]) for row in rows],
        "seconds": [_seconds(row["seconds"]) for row in rows],
    }  # fmt: skip
    columns = {name: values for name, values in columns.items() if any(values)}
    shown = table(*columns)
    for values in zip(*columns.values(), strict=True):
        shown.add_row(*values)
    yield shown
    yield from (f"WARNING: {text}" for text in differing_tasks([Path(row["run"]) for row in rows]))


def _change(row: Mapping[str, Any], name: str, form: str) -> str:
    """From zero-shot to tuned; "" where the task has no such score."""
    before, after = row.get(f"zero_shot_{name}"), row[name]
    if before is None and after is None and name != "loss":
        return ""
    shown = ("not finite" if value is None else format(value, form) for value in (before, after))
    return " -> ".join(shown)


def at_target(rows: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """Runs compared by what they needed to one target, one a row; those that never reached it by their best."""
    measure, target = rows[0]["measure"], rows[0]["target"]
    bound, form = {"accuracy": (">=", ".1%"), "loss": ("<=", ".4f")}[measure]
    shown = table("run", "method", f"{measure} {bound} {target:g}", "rounds", "FLOPs", "forwards", "seconds", "up",
                   "down")  # fmt: skip
    for row in rows:
        if (needed := row["reached"]) is None:
            best = "not finite" if row["best"] is None else format(row["best"], form)
            shown.add_row(row["run"], verdict.method_name(row["method"]), f"not reached, best {best}")
            continue
        both = (sent(needed["bytes_up"]), sent(needed["bytes_down"]))
        reached, flops = format(needed[measure], form), _counted(needed["flops"])
        shown.add_row(row["run"], verdict.method_name(row["method"]), reached, str(needed["rounds"]), flops,
                      _forwards(needed["forwards"]), _seconds(needed["seconds"]), *both)  # fmt: skip
    yield shown
    yield from (f"WARNING: {text}" for text in differing_tasks([Path(row["run"]) for row in rows]))


def _seconds(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.1f}"


def _forwards(count: int | None) -> str:
    return "withheld" if count is None else str(count)


def _counted(flops: int | None) -> str:
    return "not counted" if flops is None else operations(flops)


def health(found: Mapping[str, Any]) -> Iterator[Part]:
    """This installation: what runs, what is missing and how to get it."""
    yield _verdict(found)
    yield pairs(
        {
            "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
            "processor": f"{found['cores']} cores, torch uses {found['torch_threads']} threads",
            "GPU": f"CUDA {found['cuda']}" if found["cuda"] else "none that torch can use",
            "kernels": ", ".join(found["kernels"]), "starter model": found["starter"],
        }
    )  # fmt: skip
    yield "\nExtras:"
    extras = table("", "", "")
    extras.show_header = False
    for name, extra in found["extras"].items():
        missing = f"missing: {install_hint(name)}" if extra["missing"] else "installed"
        extras.add_row(name, missing, extra["for"])
    yield extras
    yield "\nPackaged model and data:"
    what = {MODEL: "SmolLM2-135M-Instruct", SNIPPETS: "rated snippets"}
    yield pairs({what[name]: "here" if is_here else f"not here ({name})" for name, is_here in found["data"].items()})
    yield f"\nRecipes: {', '.join(found['recipes'])}\nMethods: {', '.join(found['methods'])}"


def _verdict(found: Mapping[str, Any]) -> str:
    if found["noise"] != "as known":
        return f"NOT well: the directions made here {found['noise']} from the known ones."
    slow = "" if "compiled" in found["kernels"] else (
        " The compiled kernel is missing, so directions are made slowly: install seedtune again with a C compiler."
    )  # fmt: skip
    return f"This installation is sound: {len(found['kernels'])} kernels give the known answers.{slow}"
