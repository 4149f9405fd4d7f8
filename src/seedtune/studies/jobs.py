"""Which runs a plan comes to, given those that have ended.

`wanted` is a pure function of both: a case's learning rate, or its number of rounds, may follow from earlier runs, so
the list grows as they end; how long it is in the end, `Plan.num_runs`, is known from the outset. Nothing is run here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import Recipe, build, merged
from .measured import Run
from .plan import Plan, PlannedCase, multiple, slug

Role = Literal["cost", "rate", "result"]
"""Why a run is made: to measure what a round costs, to try a learning rate, or as a result."""


@dataclass(frozen=True)
class Job:
    """One run that is wanted; `folder` is its own, relative to the study's."""

    case: PlannedCase
    role: Role
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        role = {"cost": ", cost of a round", "rate": f", rate {self.recipe.local.learning_rate:g}", "result": ""}
        return f"{self.case.label}, seed {self.recipe.run.seed}{role[self.role]}"


def wanted(plan: Plan, ended: Mapping[str, Run]) -> list[Job]:
    """The runs that are known to be needed by now, ended ones included, in the order of the cases.

    `ended`: by the JSON of the recipe. Two jobs with one recipe are one run.
    """
    return [job for case in plan.cases for job in _wanted_of(plan, case, ended)]


def _wanted_of(plan: Plan, case: PlannedCase, ended: Mapping[str, Run]) -> Iterator[Job]:
    if plan.study.budget == "flops":
        yield cost_job(case)
    recipe = _with_rounds(plan, case, ended)
    if recipe is None:
        return
    tried = list(_tried(case, recipe))
    yield from tried
    if all(key(job.recipe) in ended for job in tried):
        yield from _others(case, recipe, chosen_rate(tried, ended))


def cost_job(case: PlannedCase) -> Job:
    """A run of one round, for what it costs."""
    recipe = _changed(case.recipe, {"federation": {"num_rounds": 1}, "run": {"seed": case.seeds[0]}})
    return Job(case, "cost", recipe, Path("runs", slug(case.label), "cost"))


def _with_rounds(plan: Plan, case: PlannedCase, ended: Mapping[str, Run]) -> Recipe | None:
    """The case's recipe with the number of rounds that its budget pays; None while that is not known."""
    if plan.study.budget == "rounds":
        return case.recipe
    reference, own = (ended.get(key(cost_job(one).recipe)) for one in (plan.cases[0], case))
    if not reference or not own:
        return None
    factor = reference.total("flops") / own.total("flops")
    rounds, every = plan.base.federation.num_rounds, plan.base.run.eval_every
    over = {"federation": {"num_rounds": multiple(rounds, factor)}, "run": {"eval_every": multiple(every, factor)}}
    return _changed(case.recipe, over)


def _tried(case: PlannedCase, recipe: Recipe) -> Iterator[Job]:
    """The first seed, at each rate of the case's grid."""
    seed = case.seeds[0]
    for rate in case.rates:
        over = {"local": {"learning_rate": rate}, "run": {"seed": seed}}
        folder = Path("runs", slug(case.label), f"rate-{slug(f'{rate:g}')}", f"seed-{seed}")
        yield Job(case, "rate", _changed(recipe, over), folder)
    if not case.rates:
        yield _result(case, _changed(recipe, {"run": {"seed": seed}}))


def chosen_rate(tried: list[Job], ended: Mapping[str, Run]) -> float:
    """The rate whose run ended with the lowest loss; divergence counts as worst, and of equals the first wins."""
    return min(tried, key=lambda job: ended[key(job.recipe)].loss).recipe.local.learning_rate


def _others(case: PlannedCase, recipe: Recipe, rate: float) -> Iterator[Job]:
    for seed in case.seeds[1:]:
        yield _result(case, _changed(recipe, {"local": {"learning_rate": rate}, "run": {"seed": seed}}))


def _result(case: PlannedCase, recipe: Recipe) -> Job:
    return Job(case, "result", recipe, Path("runs", slug(case.label), f"seed-{recipe.run.seed}"))


def _changed(recipe: Recipe, over: Mapping[str, Any]) -> Recipe:
    return build(merged(recipe.model_dump(), over), "study")


def key(recipe: Recipe) -> str:
    """What tells two runs apart."""
    return recipe.model_dump_json()
