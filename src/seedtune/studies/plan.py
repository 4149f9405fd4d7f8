"""From a study and what the user asks for to a plan: the recipe of each case, the seeds, and the cases left out.

Which runs a plan comes to is `jobs`. Nothing here runs or writes anything.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import presets
from ..assembly import TASK_KEY
from ..config import Recipe
from ..data.partition import partition
from ..data.tasks import load_task
from ..errors import ConfigError, DataError
from ..experiment import resolved
from ..models.load import kind_of, num_layers_of
from ..recipe_text import build, merged, read_toml
from ..zo.noise import derive_key
from .study import Case, Measure, Study

RECIPE = "study"
ONE_THREAD = {"run": {"num_threads": 1}, "baseline": {"num_steps": 0}}
"""Threads of a forward pass change a loss's last bits: with one, a result does not depend on how many runs share the
machine."""


@dataclass(frozen=True)
class Request:
    """What the user asks for. `settings`: nested values laid over the study's base; `num_seeds`: None for its own;
    `subjects`: files with further models and tasks, each a partial recipe."""

    study: Study
    quick: bool = False
    model: str | None = None
    task: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_seeds: int | None = None
    subjects: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PlannedCase:
    """A case with its recipe (first seed, its own learning rate, as many rounds as the base has); `x` is its place on
    the study's axis, `rates` the learning rates to choose from, `most_rates` how many these may become, `seeds` its
    share of the plan's, `subject` the name of its model and task where the study is over several."""

    label: str
    series: str
    x: float | None
    recipe: Recipe
    rates: tuple[float, ...]
    most_rates: int
    seeds: tuple[int, ...]
    subject: str = ""
    measures: tuple[Measure, ...] = ()
    trained: bool = True


@dataclass(frozen=True)
class Plan:
    """What is run. `left_out`: cases that cannot be made with this task, and why."""

    study: Study
    base: Recipe
    cases: tuple[PlannedCase, ...]
    seeds: tuple[int, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()


def planned(request: Request) -> Plan:
    """The recipes of a study's cases on the model and task that are asked for.

    Cost: reads the task's data; loads no weights.

    Raises:
        ConfigError: a setting that the study varies itself, values that no recipe takes, or fewer than two cases that
            the task allows; a subject's file that cannot be read. ModelError, DataError: a model or a task that is not
            found.
    """
    study = request.study
    _check_free(request)
    bases = _bases(request)
    base = next(iter(bases.values()))
    num_seeds = request.num_seeds or (1 if request.quick or study.is_apart else study.num_seeds)
    seeds = tuple(base.run.seed + k for k in range(num_seeds))
    chosen = [case for case in study.cases if case.in_quick or not request.quick]
    every = _distinct([_planned_case(study, case, one, seeds, name) for name, one in bases.items() for case in chosen])
    cases, left_out = _possible([case for case in every if not _is_behind(study, case)])
    if len(cases) < (1 if any(case.measures for case in study.cases) else 2):
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise ConfigError(
            f"study {study.name}: needs two cases to compare, and this task allows {len(cases)}: {reasons}"
        )
    return Plan(study, base, cases, seeds, left_out, tuple(_notes(request, base)))


def _bases(request: Request) -> dict[str, Recipe]:
    """What all cases of a subject share, by its name; without further subjects, the study's own without a name."""
    if not request.study.over_subjects:
        return {"": base_of(request)}
    own = base_of(request)
    bases = {Path(own.model.name).name: own}
    for path in request.subjects:
        if path.stem in bases:
            raise ConfigError(f"--also {path}: there is a subject {path.stem!r} already; give the file another name")
        bases[path.stem] = base_of(request, _subject(path))
    return bases


def _subject(path: Path) -> dict[str, Any]:
    """
    Raises:
        ConfigError: a file that cannot be read, that names neither model nor task, or that no recipe takes.
    """
    values = read_toml(path)
    own: dict[str, Any] = {section: values[section] for section in ("model", "task") if section in values}
    if not own:
        raise ConfigError(f"--also {path}: names neither a model nor a task: give it a section [model] or [task]")
    build(own, f"--also {path}")
    return values


def base_of(request: Request, subject: Mapping[str, Any] | None = None) -> Recipe:
    """What all cases share: the recipe `study`, the study's base, fewer rounds if quick, what the user sets, and what
    the study fixes.

    Another model takes the place of all settings of the starter's, and is tuned through LoRA; another task, of all
    settings of the recipe's task. A `subject`'s sections [model] and [task] take the place of the recipe's likewise,
    and its other values are laid over the study's base.
    """
    study = request.study
    values = merged(presets.read("recipes", RECIPE), study.base)
    if subject:
        own = {section: subject[section] for section in ("model", "task") if section in subject}
        values = merged(values, {section: keys for section, keys in subject.items() if section not in own}) | own
    if request.quick:
        values = merged(values, _shortened(values, study.quick))
    if request.model and not subject:
        values = values | {"model": {"name": request.model, "adapter": "lora"}}
    if request.task and not subject:
        values = values | {"task": {"name": request.task}}
    for over in (request.settings, study.fixed, ONE_THREAD):
        values = merged(values, over)
    return resolved(build(values, f"study {study.name}"))


def _shortened(values: Mapping[str, Any], share: float) -> dict[str, Any]:
    """A share of the rounds, evaluated about as often in all."""
    rounds, every = values["federation"]["num_rounds"], values["run"]["eval_every"]
    return {
        "federation": {"num_rounds": max(1, round(rounds * share))},
        "run": {"eval_every": max(1, round(every * share))},
    }


def _check_free(request: Request) -> None:
    """A user's value that the study or every case would overwrite, or that it has no use for, is a mistake."""
    study = request.study
    if request.subjects and not study.over_subjects:
        raise ConfigError(f"study {study.name}: is of one model and task: leave out --also")
    if study.is_apart and (request.model or request.task or request.settings or request.num_seeds):
        raise ConfigError(
            f"study {study.name}: measures models of given shapes, without runs: leave out --model, --task, --set and "
            "--seeds"
        )
    own = set.intersection(*(_names(case.over) for case in study.cases)) | _names(study.fixed) | _names(ONE_THREAD)
    if given := _names(request.settings) & own:
        raise ConfigError(f"study {study.name}: sets {min(given)} itself; leave it out of --set")


def _names(values: Mapping[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, keys in values.items() for key in keys}


def _planned_case(study: Study, case: Case, base: Recipe, seeds: tuple[int, ...], subject: str) -> PlannedCase:
    values = base.model_dump()
    if case.method:
        method = {name: keys for name, keys in presets.read("methods", case.method).items() if name != "model"}
        values = merged(merged(values, method), {"run": {"method": case.method}})
    values = merged(values, case.over)
    for name, factor in case.times.items():
        values = merged(values, nested(name, _multiple_of(study, base, name, factor)))
    recipe = build(merged(values, ONE_THREAD), f"study {study.name}, case {case.label!r}")
    x = setting(recipe, study.axis.setting) if study.axis else None
    rates = tuple(_multiple_of(study, recipe, "local.learning_rate", factor) for factor in case.rates)
    label = ", ".join(part for part in (subject, case.label.format(x="" if x is None else f"{x:g}")) if part)
    own_seeds = seeds[: case.most_seeds]
    return PlannedCase(
        label, case.series, None if x is None else float(x), recipe, rates, case.most_rates, own_seeds, subject,
        case.measures, case.trained,
    )  # fmt: skip


def _multiple_of(study: Study, recipe: Recipe, name: str, factor: float) -> float:
    value = setting(recipe, name)
    if isinstance(value, str):
        raise ConfigError(f"study {study.name}: tries multiples of {name}: give it a number, not {value!r}")
    return multiple(value, factor)


def multiple(value: float, factor: float) -> float:
    """A float is rounded to nine digits, so that 0.1 times 3 is written as 0.3."""
    return max(1, round(value * factor)) if isinstance(value, int) else float(f"{value * factor:.9g}")


def setting(recipe: Recipe, name: str) -> Any:
    """
    >>> setting(Recipe(), "federation.batch_size")
    16
    """
    section, key = name.split(".")
    return getattr(getattr(recipe, section), key)


def nested(name: str, value: Any) -> dict[str, Any]:
    """
    >>> nested("run.seed", 3)
    {'run': {'seed': 3}}
    """
    section, key = name.split(".")
    return {section: {key: value}}


def _distinct(cases: list[PlannedCase]) -> list[PlannedCase]:
    """Where two multiples of a base come to one value, one case is enough."""
    return list({slug(case.label): case for case in reversed(cases)}.values())[::-1]


def _possible(cases: list[PlannedCase]) -> tuple[tuple[PlannedCase, ...], dict[str, str]]:
    """The cases whose partition the task's data allow, and why the others are not."""
    tasks, left_out = {}, {}
    for case in cases:
        if not case.trained and all(one.at == "apart" for one in case.measures):
            continue
        recipe, kind = case.recipe, kind_of(case.recipe.model)
        if reason := _uncuttable(recipe):
            left_out[case.label] = reason
            continue
        at = (recipe.task.model_dump_json(), kind)
        if at not in tasks:
            tasks[at] = load_task(recipe.task, TASK_KEY, kind)
        try:
            partition(tasks[at].train, recipe.partition, derive_key(recipe.run.seed, "partition"))
        except DataError as error:
            left_out[case.label] = str(error)
    return tuple(case for case in cases if case.label not in left_out), left_out


def _is_behind(study: Study, case: PlannedCase) -> bool:
    """Whether a case of a sweep over the layers is of a layer that the model does not have."""
    return study.axis is not None and study.axis.setting == "split.cut" and _uncuttable(case.recipe) is not None


def _uncuttable(recipe: Recipe) -> str | None:
    """Why a model cannot be cut where the recipe says, as far as its configuration tells."""
    depth = num_layers_of(recipe.model) if recipe.is_split else None
    if depth is None or recipe.split.cut < depth:
        return None
    return f"split.cut = {recipe.split.cut}: the model has {depth} layers"


def _notes(request: Request, base: Recipe) -> Iterator[str]:
    """What the user should know before it runs."""
    given = request.settings.get("local", {})
    other = request.model or request.task
    is_own = all("learning_rate" in case.over.get("local", {}) for case in request.study.cases)
    if other and "learning_rate" not in given and not is_own:
        kind = "model" if request.model else "task"
        yield (
            f"the learning rate {base.local.learning_rate:g} was chosen for the study's own {kind}: give one for "
            f"{other} with --set local.learning_rate=..."
        )


def slug(label: str) -> str:
    """A label as a folder's name.

    >>> slug("H = 30"), slug("1.5e-05"), slug("Dirichlet 0.1")
    ('h-30', '1.5e-05', 'dirichlet-0.1')
    """
    return re.sub(r"-?[^a-z0-9.-]+-?", "-", label.lower()).strip("-.")
