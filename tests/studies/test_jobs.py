"""Which runs are wanted: pure, from a plan and what has ended."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import STUDY, run

from seedtune.studies.jobs import chosen_rate, key, num_expected, wanted
from seedtune.studies.measured import Run
from seedtune.studies.plan import planned, slug
from seedtune.studies.study import Case


def ended(jobs, loss=lambda recipe: 1.0, flops=lambda recipe: 1000) -> dict[str, Run]:
    """All of them, with a loss and FLOPs a round that follow from the recipe."""
    runs = {}
    for job in jobs:
        made = run(3.0, loss(job.recipe))
        row = {**made.rows[1], "rounds": 1, "flops": flops(job.recipe)}
        runs[key(job.recipe)] = Run(job.folder, job.recipe, (made.rows[0], row), made.summary)
    return runs


def test_without_a_grid_all_runs_are_known_at_once(request_of):
    plan = planned(request_of(num_seeds=2))
    first = wanted(plan, {})
    assert [str(job.folder) for job in first] == ["runs/h-1/seed-7", "runs/h-2/seed-7"]
    every = wanted(plan, ended(first))
    assert [str(job.folder) for job in every] == [
        "runs/h-1/seed-7", "runs/h-1/seed-8", "runs/h-2/seed-7", "runs/h-2/seed-8",
    ]  # fmt: skip
    assert num_expected(plan, {}) == num_expected(plan, ended(first)) == len(every) == 4
    assert {job.role for job in every} == {"result"}


def test_a_rate_that_is_measured_is_so_on_every_seed(request_of):
    study = replace(STUDY, cases=(Case("a", {"local": {"learning_rate": "auto"}}), Case("b")), axis=None)
    plan = planned(request_of(study, num_seeds=3))
    every = wanted(plan, ended(wanted(plan, {})))
    assert [job.recipe.local.learning_rate for job in every[:3]] == ["auto"] * 3 and len(every) == 6


def test_a_grid_is_run_on_the_first_seed_and_the_best_on_the_others(request_of):
    study = replace(STUDY, cases=(Case("a", rates=(0.3, 1.0, 3.0)), Case("b")), axis=None)
    plan = planned(request_of(study, num_seeds=2, local={"learning_rate": 0.1}))
    first = wanted(plan, {})
    assert [job.recipe.local.learning_rate for job in first] == [0.03, 0.1, 0.3, 0.1]
    assert [str(job.folder) for job in first[:3]] == [f"runs/a/rate-{rate}/seed-7" for rate in ("0.03", "0.1", "0.3")]
    assert first[0].name == "a, seed 7, rate 0.03"
    done = ended(first, loss=lambda recipe: {0.03: 2.0, 0.1: float("inf"), 0.3: 1.0}[recipe.local.learning_rate])
    every = wanted(plan, done)
    assert every[3].recipe.local.learning_rate == 0.3 and every[3].recipe.run.seed == 8
    assert num_expected(plan, {}) == num_expected(plan, done) == 6 == len(wanted(plan, done | ended(every)))
    assert chosen_rate(plan, first[:3], done) == 0.3


def test_a_grid_goes_on_while_its_best_rate_is_at_an_edge_and_it_may(request_of):
    study = replace(STUDY, cases=(Case("a", rates=(1.0, 2.0, 4.0), most_rates=5), Case("b")), axis=None)
    plan = planned(request_of(study, local={"learning_rate": 1.0}))

    def rates_and_expected(best: float) -> tuple[list[float], int]:
        done: dict[str, Run] = {}
        while missing := [job for job in wanted(plan, done) if key(job.recipe) not in done]:
            done |= ended(missing, loss=lambda recipe: abs(recipe.local.learning_rate - best))
        tried = [job.recipe.local.learning_rate for job in wanted(plan, done) if job.role == "rate"]
        return tried, num_expected(plan, done)

    assert rates_and_expected(best=2.0) == ([1.0, 2.0, 4.0], 4)
    assert rates_and_expected(best=8.0) == ([1.0, 2.0, 4.0, 8.0, 16.0], 6)
    assert rates_and_expected(best=0.5) == ([0.25, 0.5, 1.0, 2.0, 4.0], 6)
    assert rates_and_expected(best=100.0) == ([1.0, 2.0, 4.0, 8.0, 16.0], 6)  # as many rates as it may have
    assert num_expected(plan, {}) == 4


def test_a_study_may_go_by_the_lowest_loss(request_of):
    """At the first rate the loss falls to 1 and rises to 2, at the second it ends at 1.5."""
    study = replace(STUDY, cases=(Case("a", rates=(1.0, 2.0)), Case("b")), axis=None)
    plan = planned(request_of(study))
    tried = wanted(plan, {})[:2]
    runs = [run(3.0, 1.0, 2.0), run(3.0, 2.0, 1.5)]
    done = {key(job.recipe): replace(one, recipe=job.recipe) for job, one in zip(tried, runs, strict=True)}
    rates = [job.recipe.local.learning_rate for job in tried]
    assert chosen_rate(plan, tried, done) == rates[1]
    assert chosen_rate(replace(plan, study=replace(study, judged_by="best")), tried, done) == rates[0]


def test_a_case_may_have_fewer_seeds(request_of):
    study = replace(STUDY, cases=(Case("a"), Case("b", rates=(1.0, 2.0), most_seeds=1)), axis=None)
    plan = planned(request_of(study, num_seeds=3))
    first = wanted(plan, {})
    every = wanted(plan, ended(first))
    assert [job.recipe.run.seed for job in every] == [7, 8, 9, 7, 7]
    assert num_expected(plan, {}) == num_expected(plan, ended(every)) == 5


def test_divergence_is_the_worst_and_of_equals_the_first_wins(request_of):
    study = replace(STUDY, cases=(Case("a", rates=(1.0, 2.0)), Case("b")), axis=None)
    plan = planned(request_of(study))
    tried = wanted(plan, {})[:2]
    assert chosen_rate(plan, tried, ended(tried)) == tried[0].recipe.local.learning_rate
    diverged = ended(tried, loss=lambda recipe: float("inf") if recipe == tried[0].recipe else 9.0)
    assert chosen_rate(plan, tried, diverged) == tried[1].recipe.local.learning_rate


def test_at_equal_flops_rounds_follow_from_what_a_round_costs(request_of):
    study = replace(STUDY, budget="flops")
    plan = planned(request_of(study, num_seeds=2, federation={"num_rounds": 30}, run={"eval_every": 6}))
    costs = wanted(plan, {})
    assert [(job.role, job.recipe.federation.num_rounds) for job in costs] == [("cost", 1), ("cost", 1)]
    assert str(costs[0].folder) == "runs/h-1/cost"
    done = ended(costs, flops=lambda recipe: 1000 * recipe.federation.local_steps)
    jobs = [job for job in wanted(plan, done) if job.role == "result"]
    assert [job.recipe.federation.num_rounds for job in jobs] == [30, 15]
    assert [job.recipe.run.eval_every for job in jobs] == [6, 3]
    assert len(wanted(plan, done | ended(jobs))) == num_expected(plan, {}) == num_expected(plan, done) == 6


@pytest.mark.parametrize(
    ("label", "folder"),
    [("H = 30", "h-30"), ("forward only, best rate", "forward-only-best-rate"), ("mu = 0.001", "mu-0.001"),
     ("1e-05", "1e-05"), ("../x", "x"), ("Dirichlet 0.5", "dirichlet-0.5")],
)  # fmt: skip
def test_a_label_makes_a_folder_of_plain_letters(label, folder):
    assert slug(label) == folder and Path(folder).name == folder
