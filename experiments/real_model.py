"""Every method preset on a real language model, at equal forward passes: accuracy, bytes and seconds over paired seeds.

    python -m experiments.real_model --task snippets --out docs/results/snippets.jsonl
    python -m experiments.real_model --task snippets --out docs/results/snippets.jsonl --table

A forward pass is one loss of a batch of 16 examples; a step of backpropagation counts as three. All methods tune the
gains of the last norm and keep what the frozen layers gave, but for fedspzo, which tunes two blocks. What is run stands
in `real_model.toml`. SST-2 and AG News are read from the folder that SEEDTUNE_SHARED_DATA names.
"""

import argparse
import math
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.jobs import GRID, Job, Plan, Results, Row
from experiments.tables import markdown
from seedtune import experiment, presets, run_store
from seedtune.assembly import initial_values
from seedtune.config import Machine, Recipe
from seedtune.keeping import OFTEN, num_drawn, shared_activations
from seedtune.models.export import export
from seedtune.models.load import load
from seedtune.models.packaged import NAME as PACKAGED
from seedtune.recipe_text import build, merged
from seedtune.sections import ModelConfig
from seedtune.zo.meter import BACKPROPAGATION_FORWARDS

SETTINGS = Path(__file__).with_suffix(".toml")
FROZEN = "frozen layers"
"""The job of a run that fills the store of kept activations, so that no other run counts their operations."""
ALONE = "backpropagation in one place"
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """What is compared. base: what all recipes share; tasks, methods: what `real_model.toml` says of each by name."""

    base: Values
    tasks: Mapping[str, Values]
    methods: Mapping[str, Values]

    def recipe(self, job: Job) -> Recipe:
        """Return the recipe of a job: base, task, preset, the study's settings, then rate, seed and rounds.

        Raises:
            ConfigError: settings that do not go together.
        """
        method = self.methods[job.method]
        laid = presets.read("methods", method["preset"]) if "preset" in method else {}
        laid.pop("model", None)  # all methods tune what the base says
        values = merged(merged(self.base, self.tasks[job.task]), merged(laid, method.get("settings", {})))
        over = {"run": {"seed": job.seed, "method": job.method}}
        if job.method == ALONE:
            over |= {"federation": {"num_rounds": 0}, "baseline": _steps(job)}
        else:
            over |= {"local": {"learning_rate": "auto" if job.rate is None else job.rate}}
        recipe = build(merged(values, over), f"{job.method} on {job.task}")
        return recipe if job.method == ALONE else _with_rounds(recipe, job.budget // forwards_per_round(recipe))

    def groups(self) -> Iterator[list[str]]:
        """The methods that tune the same tensors, and so share kept activations."""
        names = groupby(self.methods, lambda name: self.methods[name].get("settings", {}).get("model"))
        return (list(group) for _, group in names)

    @property
    def measurable(self) -> frozenset[str]:
        """Methods of forward passes, which can measure their rates."""
        return frozenset(name for name, method in self.methods.items() if not method.get("is_backpropagation"))


def _steps(job: Job) -> dict[str, Any]:
    return {"num_steps": job.budget // BACKPROPAGATION_FORWARDS, "learning_rate": job.rate}


def _with_rounds(recipe: Recipe, num_rounds: int) -> Recipe:
    rounds = max(1, num_rounds)
    return recipe.model_copy(
        update={
            "federation": recipe.federation.model_copy(update={"num_rounds": rounds}),
            "run": recipe.run.model_copy(update={"eval_every": rounds}),
        }
    )


def forwards_per_round(recipe: Recipe) -> int:
    """Return the forward passes of one round, those that measure rates apart."""
    if recipe.local.order == "first":
        each = BACKPROPAGATION_FORWARDS
    else:
        each = recipe.num_scalars + 1 if recipe.is_one_sided else 2 * recipe.num_scalars
    return recipe.partition.num_clients * recipe.federation.local_steps * each


def read_study(path: Path = SETTINGS) -> Study:
    """Return the study that a file describes, paths of tasks taken from the folder of shared data."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    data = Path(os.environ.get("SEEDTUNE_SHARED_DATA", "../shared/data"))
    for task in values["tasks"].values():
        if "path" in task["task"]:
            task["task"]["path"] = str(data / task["task"]["path"])
    return Study(values["base"], values["tasks"], values["methods"])


# Running


def run_job(study: Study, job: Job) -> Row:
    """Run a job in a temporary folder; return what its summary says of quality and cost."""
    return run_recipe(study.recipe(job))


def run_recipe(recipe: Recipe) -> Row:
    """Run a recipe in a temporary folder; return what its summary says of quality and cost."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        summary = experiment.run(_unpacked(recipe), Machine(), folder, lambda *heard: None)
        rate = recipe.baseline.learning_rate if recipe.baseline.num_steps else run_store.recipe_of(folder).first_rate
    return {"first_rate": rate, **_costs(recipe, summary), **_quality(summary)}


def _quality(summary: Values) -> Row:
    prefix = "backprop_" if summary["backprop_steps"] else ""
    return {
        "accuracy": summary[f"{prefix}accuracy"], "loss": _finite(summary[f"{prefix}loss"]),
        "zero_shot_accuracy": summary["zero_shot_accuracy"], "zero_shot_loss": summary["zero_shot_loss"],
        "stopped_by": summary["stopped_by"], "test_examples": summary["test_examples"],
    }  # fmt: skip


def _costs(recipe: Recipe, summary: Values) -> Row:
    kept, steps = summary["kept_activations"] or {}, recipe.baseline.num_steps
    return {
        "is_forward_only": recipe.local.order == "zeroth" and not steps, "rounds": summary["rounds"],
        "tuned_parameters": summary["tuned_parameters"],
        "forwards": summary["forwards"] or steps * BACKPROPAGATION_FORWARDS,
        "flops": summary["flops"], "frozen_flops": kept.get("flops", 0), "sequences": kept.get("sequences", 0),
        "bytes_kept": kept.get("bytes_in_memory", 0) + kept.get("bytes_on_disk", 0),
        "bytes_up": summary["bytes_up"], "bytes_down": summary["bytes_down"],
        "trajectory_bytes": summary["trajectory_bytes"],
        "round_seconds": summary["round_seconds"], "seconds": summary["seconds"],
        "state_digest": summary["state_digest"],
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _unpacked(recipe: Recipe) -> Recipe:
    """The recipe with a packaged model as a folder of the same weights, which loads in a second in place of eight."""
    if recipe.model.name != PACKAGED:
        return recipe
    folder = Path(_unpack(PACKAGED).name) / "model"
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(folder)})})


@cache
def _unpack(name: str) -> tempfile.TemporaryDirectory:
    """A folder that is deleted when the process ends, with the model in it."""
    folder = tempfile.TemporaryDirectory()
    export(load(ModelConfig(name=name), None, initial_values(0)), Path(folder.name) / "model")
    return folder


@dataclass
class Runner:
    """Run jobs that `results` lacks, behind frozen layers that are computed before the first of them.

    Args:
        first: a method that tunes the same tensors as those of all jobs.
    """

    study: Study
    results: Results
    first: str
    is_filled: bool = False

    def __call__(self, job: Job) -> Row:
        if found := self.results.find(job):
            return found
        if not self.is_filled:
            self._fill(job)
        found = self.results.add(job, run_job(self.study, job))
        print(_describe(job, found), flush=True)
        return found

    def _fill(self, job: Job) -> None:
        """Compute and keep the frozen layers of all examples, by a run just long enough to do so."""
        self.is_filled = True
        recipe = self.study.recipe(replace(job, method=self.first, rates=GRID, rate=1e-6, seed=0))
        per_round = num_drawn(_with_rounds(recipe, 1))
        found = run_recipe(_with_rounds(recipe, math.ceil(OFTEN * recipe.task.max_train / per_round)))
        known = replace(job, method=FROZEN, rates=self.first, rate=None, seed=0, budget=0)
        if not self.results.find(known):
            self.results.add(known, found)


def _describe(job: Job, row: Row) -> str:
    quality = f"loss {row['loss']}, accuracy {row['accuracy']}"
    return f"{job.task}, {job.method}, {job.rates}, rate {row['first_rate']:g}, seed {job.seed}: {quality}"


def run_task(study: Study, task: str, budget: int, num_seeds: int, results: Results) -> None:
    """Run what `results` lacks of a task; methods that tune the same tensors share kept activations.

    Cost: the frozen layers of all examples once for each choice of tensors, then the forward passes of each run.
    """
    for methods in study.groups():
        grids = {name: study.methods[name]["rates"] for name in methods}
        with shared_activations():
            Plan(task, budget, num_seeds, grids, study.measurable, Runner(study, results, methods[0])).run()


def main(arguments: list[str] | None = None, study: Study | None = None) -> None:
    """Run a task of the study, or print the table of what is known of it."""
    study = study or read_study()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", required=True, choices=list(study.tasks))
    parser.add_argument("--budget", type=int, default=6_400, help="forward passes of a run")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines; continued where it exists")
    parser.add_argument("--methods", nargs="+", choices=list(study.methods), default=list(study.methods))
    parser.add_argument("--table", action="store_true", help="run nothing; print the file as a table")
    given = parser.parse_args(arguments)
    results = Results(given.out)
    if given.table:
        print(markdown(results.rows, given.task, given.budget))
    else:
        chosen = {name: study.methods[name] for name in given.methods}
        run_task(replace(study, methods=chosen), given.task, given.budget, given.seeds, results)


if __name__ == "__main__":
    main()
