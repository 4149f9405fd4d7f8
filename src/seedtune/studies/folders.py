"""A study's folder, and what the run folders in it hold: nothing yet, this run, or another.

    study.json          the question, the cases, seeds and settings
    runs/CASE/...       the raw runs (`run_store`)
    measures/CASE/...   what was measured beside them (`measuring`)
    results.csv, curves.csv, measures.csv, figure.svg, finding.txt    once all is done (`outcomes`)

Guarantees: a run is known by its resolved recipe, wherever under `runs/` it lies; a folder that holds another run is
never written to. Nothing here runs anything.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import run_store
from ..config import Recipe
from ..errors import RunStoreError, SeedtuneError
from ..run_files import parse_object
from ..run_folder import LOCK, claimed, replace_text
from . import measuring
from .jobs import Job, key
from .measured import Run
from .measuring import Kept
from .plan import Plan

STUDY, RUNS, MEASURES = "study.json", "runs", "measures"
OUTCOMES = ("results.csv", "curves.csv", "measures.csv", "figure.svg", "finding.txt")
MOST_DIFFERENCES = 3


@contextmanager
def claimed_for(plan: Plan, folder: Path) -> Iterator[None]:
    """The study's folder, made where it is missing, held by this process alone, and described.

    Raises:
        RunStoreError: it holds something else, is in use, or cannot be written.
    """
    _check_ours(plan.study.name, folder)
    with claimed(folder, lambda: (folder / STUDY).exists()):
        _check_ours(plan.study.name, folder)
        replace_text(folder / STUDY, json.dumps(_described(plan), indent=2) + "\n")
        yield


def _check_ours(name: str, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunStoreError(f"study folder {folder}: is a file; choose another with --out")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {
        STUDY,
        RUNS,
        MEASURES,
        LOCK,
        *OUTCOMES,
        *(Path(own).with_suffix(".part").name for own in (STUDY, *OUTCOMES)),
    }
    if names - ours:
        raise RunStoreError(
            f"study folder {folder}: holds other files than a study's, such as {min(names - ours)}; choose an empty "
            f"one with --out"
        )
    found = _name_of(folder)
    if found not in (name, None):
        raise RunStoreError(f"study folder {folder}: holds the study {found}, not {name}; choose another with --out")


def _name_of(folder: Path) -> str | None:
    try:
        name = parse_object((folder / STUDY).read_bytes()).get("name")
    except (OSError, ValueError):
        return None
    return name if isinstance(name, str) else None


def _described(plan: Plan) -> dict[str, Any]:
    study = plan.study
    return {
        "name": study.name, "question": study.question, "source": study.source, "seeds": plan.seeds,
        "cases": [{"label": case.label, "x": case.x, "rates": case.rates} for case in plan.cases],
        "left_out": plan.left_out, "notes": plan.notes, "base": plan.base.model_dump(mode="json"),
    }  # fmt: skip


def held(folder: Path) -> dict[str, Path]:
    """Every run and measurement under a study's folder, by its key; what cannot be read is passed over."""
    found: dict[str, Path] = {}
    runs = ((path.parent, lambda at: key(run_store.recipe_of(at))) for path in (folder / RUNS).rglob(run_store.RECIPE))
    kept = ((path, lambda at: measuring.kept(at).key) for path in (folder / MEASURES).rglob("*.json"))
    for path, key_of in sorted((*runs, *kept), key=lambda each: each[0]):
        try:
            found.setdefault(key_of(path), path)
        except SeedtuneError:
            continue
    return found


def ended(place: Path) -> Run | Kept | None:
    """The run in this folder; None while it has not ended. One that could not go on, since nothing that its clients
    sent was finite, comes without a summary: its last weights are no result. Of a file, the measurement in it.

    Raises:
        RunStoreError: no run there, or a damaged one.
    """
    if place.suffix == ".json":
        return measuring.kept(place)
    summary = run_store.summary_of(place)
    if summary is None:
        return None
    result = None if summary["stopped_by"] == "divergence" else summary
    return Run(place, run_store.recipe_of(place), tuple(run_store.metrics_of(place)), result)


def check_free(folder: Path, job: Job) -> None:
    """
    Raises:
        RunStoreError: the folder of a run that is wanted holds one with another recipe; says what differs. Or the file
            of a measurement holds another.
    """
    if job.asked and folder.exists():
        raise RunStoreError(
            f"measurement {folder}: is of something else, or damaged: choose another folder with --out, or delete it"
        )
    if run_store.is_run(folder) and (found := run_store.recipe_of(folder)) != job.recipe:
        raise RunStoreError(
            f"run {folder}: was made with other settings ({differences(found, job.recipe)}): choose another folder "
            f"with --out, put them back, or delete the run"
        )


def differences(found: Recipe, asked: Recipe) -> str:
    """The first settings in which two recipes differ, in words."""
    old, new = flat(found), flat(asked)
    told = [f"{name} was {old[name]!r}, is now {new[name]!r}" for name in new if old[name] != new[name]]
    more = f", and {len(told) - MOST_DIFFERENCES} more" if len(told) > MOST_DIFFERENCES else ""
    return "; ".join(told[:MOST_DIFFERENCES]) + more


def flat(recipe: Recipe) -> dict[str, Any]:
    """
    >>> flat(Recipe())["run.seed"]
    0
    """
    return {f"{section}.{name}": value for section, keys in recipe.model_dump().items() for name, value in keys.items()}


def remove_outcomes(folder: Path) -> None:
    """A figure is there only when it shows all runs."""
    for name in OUTCOMES:
        (folder / name).unlink(missing_ok=True)
