"""Which runs and measurements a plan comes to, given the runs that have ended.

`wanted` is a pure function of both: a case's learning rate, or its number of rounds, may follow from earlier runs, so
the list grows as they end; `num_expected` says how long it will be, if no grid of rates goes on. Nothing is run here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import Recipe
from ..recipe_text import build, merged
from ..sections import AutoConfig
from .measured import Run
from .measuring import Asked
from .plan import Plan, PlannedCase, multiple, slug
from .study import Measure

Role = Literal["cost", "rate", "result", "measure"]
"""Why a run is made: to measure what a round costs, to try a learning rate, or as a result. "measure": no run."""
Rate = float | Literal["auto"]


@dataclass(frozen=True)
class Job:
    """One run that is wanted, or one measurement; `folder` is its own (a measurement's: its file), relative to the
    study's. `measure`: what is measured, of the run with this recipe or of the recipe itself."""

    case: PlannedCase
    role: Role
    recipe: Recipe
    folder: Path
    measure: Measure | None = None

    @property
    def asked(self) -> Asked | None:
        one = self.measure
        return Asked(one.what, one.at, one.options, None if one.at == "apart" else self.recipe) if one else None

    @property
    def key(self) -> str:
        """What tells two jobs apart that are not the same work."""
        return self.asked.key if self.asked else key(self.recipe)

    @property
    def name(self) -> str:
        if self.measure and self.measure.at == "apart":
            return f"{self.case.label}, {self.measure.name}"
        role = {
            "cost": ", cost of a round", "rate": f", rate {self.recipe.local.learning_rate}", "result": "",
            "measure": f", {self.measure.name}" if self.measure else "",
        }  # fmt: skip
        return f"{self.case.label}, seed {self.recipe.run.seed}{role[self.role]}"


def wanted(plan: Plan, ended: Mapping[str, Run]) -> list[Job]:
    """The runs and measurements that are known to be needed by now, those that are done included, in the order of the
    cases.

    `ended`: runs by the JSON of the recipe. Two jobs with one key are one piece of work.
    """
    return [job for case in plan.cases for job in (*_runs_of(plan, case, ended), *_measures_of(plan, case, ended))]


def num_expected(plan: Plan, ended: Mapping[str, Run]) -> int:
    """How many runs and measurements the plan comes to, as far as is known: more only where a grid of rates goes on."""
    return sum(_num_expected_of(plan, case, ended) for case in plan.cases)


def _num_expected_of(plan: Plan, case: PlannedCase, ended: Mapping[str, Run]) -> int:
    num_measures = len(case.measures) * len(case.seeds)
    if not case.trained:
        return num_measures
    known = [job.role for job in _runs_of(plan, case, ended)]
    num_costs, num_rates = known.count("cost"), max(known.count("rate"), len(case.rates))
    return num_costs + num_rates + len(case.seeds) - (1 if num_rates else 0) + num_measures


def results_of(plan: Plan, case: PlannedCase, ended: Mapping[str, Run]) -> list[Job]:
    """The jobs whose runs are the case's results, a seed each, as far as they are known: of a grid, those at the chosen
    rate."""
    jobs = list(_runs_of(plan, case, ended))
    tried = [job for job in jobs if job.role == "rate"]
    if not tried:
        return [job for job in jobs if job.role == "result"]
    if not all(job.key in ended for job in tried):
        return []
    rate = chosen_rate(plan, tried, ended)
    chosen = [job for job in tried if job.recipe.local.learning_rate == rate]
    return [*chosen, *(job for job in jobs if job.role == "result")]


def _measures_of(plan: Plan, case: PlannedCase, ended: Mapping[str, Run]) -> Iterator[Job]:
    for one in case.measures:
        if one.at == "end":
            done = [job.recipe for job in results_of(plan, case, ended) if job.key in ended]
        else:
            done = [_changed(case.recipe, {"run": {"seed": seed}}) for seed in case.seeds]
        for recipe in done:
            file = Path("measures", slug(case.label), slug(one.name), f"seed-{recipe.run.seed}.json")
            yield Job(case, "measure", recipe, file, one)


def _runs_of(plan: Plan, case: PlannedCase, ended: Mapping[str, Run]) -> Iterator[Job]:
    if not case.trained:
        return
    if plan.study.budget == "flops":
        yield cost_job(case)
    recipe = _with_rounds(plan, case, ended)
    if recipe is None:
        return
    tried = _tried(plan, case, recipe, ended)
    yield from tried
    if all(key(job.recipe) in ended for job in tried):
        yield from _others(case, recipe, chosen_rate(plan, tried, ended))


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


def _tried(plan: Plan, case: PlannedCase, recipe: Recipe, ended: Mapping[str, Run]) -> list[Job]:
    """The first seed, at each rate of the case's grid and of its continuation."""
    first = _changed(recipe, {"run": {"seed": case.seeds[0]}})
    if not case.rates:
        return [_result(case, first)]
    rates = case.rates
    while True:
        jobs = [_at_rate(case, first, rate) for rate in rates]
        beyond = _beyond(plan, jobs, ended) if len(rates) < case.most_rates else None
        if beyond is None:
            return jobs
        rates = tuple(sorted((*rates, beyond)))


def _at_rate(case: PlannedCase, recipe: Recipe, rate: float) -> Job:
    folder = Path("runs", slug(case.label), f"rate-{slug(f'{rate:g}')}", f"seed-{recipe.run.seed}")
    return Job(case, "rate", _changed(recipe, {"local": {"learning_rate": rate}}), folder)


def _beyond(plan: Plan, tried: list[Job], ended: Mapping[str, Run]) -> float | None:
    """The next rate of a grid whose best lies at an edge; None where it does not, or is not known yet."""
    if not all(key(job.recipe) in ended for job in tried):
        return None
    rates, best = [job.recipe.first_rate for job in tried], chosen_rate(plan, tried, ended)
    for edge, inner in ((rates[0], rates[1]), (rates[-1], rates[-2])):
        if best == edge:
            return multiple(edge, edge / inner)
    return None


def chosen_rate(plan: Plan, tried: list[Job], ended: Mapping[str, Run]) -> Rate:
    """The rate of the run with the lowest loss; divergence counts as worst, and of equals the first wins."""
    by = plan.study.judged_by
    return min(tried, key=lambda job: ended[key(job.recipe)].judged(by)).recipe.local.learning_rate


def _others(case: PlannedCase, recipe: Recipe, rate: Rate) -> Iterator[Job]:
    for seed in case.seeds[1:]:
        yield _result(case, _changed(recipe, {"local": {"learning_rate": rate}, "run": {"seed": seed}}))


def _result(case: PlannedCase, recipe: Recipe) -> Job:
    return Job(case, "result", recipe, Path("runs", slug(case.label), f"seed-{recipe.run.seed}"))


def _changed(recipe: Recipe, over: Mapping[str, Any]) -> Recipe:
    return build(merged(recipe.model_dump(), over), "study")


def key(recipe: Recipe) -> str:
    """What tells two runs apart: their recipes as they were asked for, without what a run measured itself."""
    is_auto = "auto" in (recipe.local.learning_rate, recipe.local.perturbation_scale)
    measured = dict.fromkeys(("learning_rate", "rate_ratio", "perturbation_scale"), 0.0)
    auto = recipe.auto.model_copy(update=measured) if is_auto else AutoConfig()
    return recipe.model_copy(update={"auto": auto}).model_dump_json()
