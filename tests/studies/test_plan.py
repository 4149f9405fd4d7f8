"""What is asked for becomes recipes: what wins, what is refused, what is left out."""

from dataclasses import replace

import pytest
from small_studies import STUDY

from seedtune import presets
from seedtune.errors import ConfigError
from seedtune.studies import fedmezo
from seedtune.studies.catalogue import STUDIES, study_of
from seedtune.studies.plan import Request, base_of, planned, slug
from seedtune.studies.study import Case, Study


def varied(*cases: Case, **more) -> Study:
    return replace(STUDY, cases=cases, axis=None, **more)


def test_a_case_is_a_multiple_of_the_base(request_of):
    plan = planned(request_of(federation={"local_steps": 3}))
    assert [case.label for case in plan.cases] == ["H = 3", "H = 6"]
    assert [case.recipe.federation.local_steps for case in plan.cases] == [3, 6]
    assert [case.x for case in plan.cases] == [3.0, 6.0]


def test_only_what_a_case_says_differs(request_of):
    one, other = (case.recipe for case in planned(request_of()).cases)
    assert other.model_copy(update={"federation": one.federation}) == one
    assert one.run.num_threads == 1 and one.baseline.num_steps == 0


def test_seeds_follow_each_other(request_of):
    assert planned(request_of(num_seeds=3)).seeds == (7, 8, 9)
    assert planned(request_of(num_seeds=None)).seeds == (7, 8, 9) and STUDY.num_seeds == 3
    assert planned(request_of(num_seeds=None, quick=True)).seeds == (7,)


def test_quick_keeps_a_part_of_the_rounds_and_what_the_user_sets_wins():
    full, quick = base_of(Request(STUDY)), base_of(Request(STUDY, quick=True))
    assert quick.federation.num_rounds == round(full.federation.num_rounds * STUDY.quick)
    assert quick.run.eval_every == max(1, round(full.run.eval_every * STUDY.quick))
    chosen = base_of(Request(STUDY, quick=True, settings={"federation": {"num_rounds": 99}}))
    assert chosen.federation.num_rounds == 99


def test_another_model_or_task_takes_the_place_of_all_settings_of_the_studys(tmp_path):
    other = base_of(Request(STUDY, model="some/model", task="sst2", settings={"task": {"path": "data"}}))
    assert (other.model.name, other.model.adapter, other.model.trainable) == ("some/model", "lora", ())
    assert (other.task.name, other.task.path, other.task.max_tokens) == ("sst2", "data", 0)


def test_a_learning_rate_of_another_model_is_noted(request_of, tiny_model):
    request = replace(request_of(), model=str(tiny_model))
    assert planned(request).notes == ()
    bare = {**request.settings, "local": {}}
    assert planned(replace(request, settings=bare)).notes == (
        f"the learning rate {base_of(Request(STUDY)).local.learning_rate:g} was chosen for the study's own model: give "
        f"one for {tiny_model} with --set local.learning_rate=...",
    )
    own = varied(*(Case(f"rate {rate}", {"local": {"learning_rate": rate}}) for rate in (1e-3, "auto")))
    assert planned(replace(request, study=own, settings=bare)).notes == ()


@pytest.mark.parametrize("name", ["loss-surge", "zo-family"])
def test_a_rate_that_is_measured_has_no_multiples(name):
    told = f"study {name}: tries multiples of local.learning_rate: give it a number, not 'auto'"
    with pytest.raises(ConfigError, match=told):
        planned(Request(study_of(name), settings={"local": {"learning_rate": "auto"}}))


def test_a_method_is_laid_under_a_case(request_of):
    cases = Case("fedavg", method="fedavg"), Case("fedzo", {"federation": {"weighting": "equal"}}, method="fedzo")
    first, second = planned(request_of(varied(*cases))).cases
    assert first.recipe.local.order == "first" and first.recipe.run.method == "fedavg"
    assert second.recipe.local.estimator == "one-sided" and second.recipe.federation.weighting == "equal"


def test_a_method_leaves_the_studys_model_as_it_is(request_of):
    """FedMeZO's preset is of LoRA: a study compares methods on the same tensors."""
    plan = planned(request_of(varied(Case("fedmezo", method="fedmezo"), Case("other"))))
    assert [case.recipe.model for case in plan.cases] == [plan.base.model] * 2
    assert plan.cases[0].recipe.federation.local_steps == 30


def test_multiples_that_come_to_one_value_are_one_case(request_of):
    thirds = varied(*(Case("H = {x}", times={"federation.local_steps": factor}) for factor in (1 / 3, 1, 3)))
    study = replace(thirds, axis=STUDY.axis)
    assert [case.label for case in planned(request_of(study)).cases] == ["H = 1", "H = 3"]


def test_a_setting_that_every_case_sets_is_refused():
    study = varied(*(Case(kind, {"partition": {"kind": kind}}) for kind in ("iid", "natural")))
    for setting in ("partition.kind", "run.num_threads"):
        section, key = setting.split(".")
        with pytest.raises(ConfigError) as error:
            planned(Request(study, settings={section: {key: 1}}))
        assert str(error.value) == f"study steps: sets {setting} itself; leave it out of --set"


def test_a_partition_that_the_data_do_not_allow_is_left_out_and_said(request_of):
    kinds = varied(Case("IID"), Case("many", {"partition": {"num_clients": 2}}), Case("natural", {"partition": {
        "kind": "natural"}}))  # fmt: skip
    plan = planned(request_of(kinds))
    assert [case.label for case in plan.cases] == ["IID", "many"]
    assert plan.left_out == {
        "natural": "the training examples have no natural groups, so they cannot be dealt by group: set "
        "partition.kind = 'iid', or task.group_column where the data have such a column"
    }


def test_one_case_is_no_study(request_of):
    study = varied(Case("IID"), Case("many", {"partition": {"num_clients": 500}}))
    with pytest.raises(ConfigError) as error:
        planned(request_of(study))
    assert str(error.value) == (
        "study steps: needs two cases to compare, and this task allows 1: many: 46 training examples cannot give each "
        "of 500 clients 1: lower partition.num_clients or partition.min_examples"
    )


def test_a_value_that_no_recipe_takes_names_the_study(request_of):
    with pytest.raises(ConfigError, match=r"^study steps: federation\.batch_size = -1: input should be greater"):
        planned(request_of(federation={"batch_size": -1}))


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"^unknown study .local-step.: did you mean .local-steps.\? Known: auto-rate, batch"
    ):
        study_of("local-step")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned_on_the_starter(name):
    plan = planned(Request(STUDIES[name]))
    folders = [slug(case.label) for case in plan.cases]
    assert len(set(folders)) == len(folders) >= (1 if plan.cases[0].measures else 2) and not plan.left_out
    assert name == slug(name) and plan.study.question.endswith("?") and len(plan.study.question) < 100
    assert planned(Request(STUDIES[name], quick=True)).seeds == (0,)


def test_the_papers_values_are_the_papers():
    mu = planned(Request(fedmezo.PERTURBATION_SCALE)).cases
    assert {2e-4, 1e-3, 5e-3} <= {case.recipe.local.perturbation_scale for case in mu}
    clients = planned(Request(fedmezo.CLIENTS)).cases
    assert [case.recipe.partition.num_clients for case in clients] == [3, 8, 20, 40]
    surge = planned(Request(fedmezo.LOSS_SURGE)).cases
    rates = [case.recipe.local.learning_rate / surge[0].recipe.local.learning_rate for case in surge]
    assert rates == pytest.approx([1, 3, 5, 10])
    steps = planned(Request(fedmezo.LOCAL_STEPS, settings={"federation": {"local_steps": 30}})).cases
    assert [case.recipe.federation.local_steps for case in steps] == [10, 30, 50]
    ranks = planned(Request(fedmezo.LORA_RANK)).cases
    assert {case.recipe.model.lora_alpha / case.recipe.model.lora_rank for case in ranks} == {2.0}


def test_first_and_zeroth_order_differ_in_the_gradient_only():
    plan = planned(Request(fedmezo.SINGLE_CLIENT))
    zeroth, first = (case.recipe for case in plan.cases)
    assert first.model_copy(update={name: getattr(zeroth, name) for name in ("local", "federation", "run")}) == zeroth
    assert first.local.learning_rate == zeroth.local.learning_rate and first.federation.upload == "weights"


def test_the_recipe_of_studies_stands_in_the_presets():
    assert presets.composed("study", None).federation.keys == "own"


def test_a_cut_behind_the_last_layer_is_no_case_of_the_sweep_and_left_out_elsewhere():
    """The starter has four layers."""
    placed = planned(Request(STUDIES["split-placement"]))
    assert [case.x for case in placed.cases[1:]] == [1, 2, 3] and not placed.left_out
    family = planned(Request(STUDIES["zo-family"], settings={"split": {"cut": 4}}))
    assert set(family.left_out) == {"FedSPZO, as set", "FedSPZO, central, P2 = 4"}
    assert set(family.left_out.values()) == {"split.cut = 4: the model has 4 layers"}
