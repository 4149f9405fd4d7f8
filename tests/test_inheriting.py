"""Rates, lists of tensors, baselines never go to another model; templates, columns, answers never to another task."""

import pytest

from seedtune import presets
from seedtune.config import Recipe

OTHER = {"model": {"name": "another"}}
FILE = """
[model]
name = "{model}"
trainable = ["*.mlp.*"]
label_descriptions = ["bad", "good"]
[task]
name = "custom"
path = "rows.csv"
test_path = "test.csv"
template = "{{text}} It was"
label_column = "label"
group_column = "who"
answers = {{ a = " one", b = " two" }}
max_tokens = 20
max_train = 50
[partition]
kind = "natural"
[split]
cut = 3
rate_ratio = 8.0
[local]
learning_rate = 7.0
perturbation_scale = 0.25
[baseline]
num_steps = 9
learning_rate = 0.5
[run]
seed = 4
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(FILE.format(model="small"))
    return "mine.toml"


def compose(recipe, method=None, *over) -> tuple[Recipe, list[str]]:
    said = []
    return presets.composed(recipe, method, *over, say=said.append), said


def assert_found_for_no_other_model(recipe: Recipe):
    assert recipe.local.learning_rate in ("auto", 1e-4) and recipe.local.perturbation_scale in ("auto", 1e-3)
    assert recipe.model.trainable in ((), ("behind-layers",)) and recipe.model.lora_targets == ()
    assert recipe.baseline.num_steps == recipe.split.cut == 0 and recipe.split.rate_ratio == 1.0


def test_another_model_gets_no_rate_scale_tensors_or_baseline(mine):
    recipe, said = compose(mine, None, OTHER)
    assert_found_for_no_other_model(recipe)
    assert recipe.local.learning_rate == recipe.local.perturbation_scale == "auto"
    assert recipe.run.seed == 4 and recipe.task.template == "{text} It was" and recipe.partition.kind == "natural"
    assert said == [
        "not carried over to another model or task: baseline.learning_rate = 0.5 (now 0.001), baseline.num_steps = 9 "
        '(now 0), local.learning_rate = 7.0 (now "auto"), local.perturbation_scale = 0.25 (now "auto"), '
        'model.trainable = ["*.mlp.*"] (now ["behind-layers"]), split.cut = 3 (now 0), split.rate_ratio = 8.0 (now 1.0)'
    ]


@pytest.mark.parametrize("recipe", ["quickstart", "study", "mine.toml"])
@pytest.mark.parametrize("method", presets.names("methods"))
def test_no_method_brings_them_back(mine, recipe, method):
    assert_found_for_no_other_model(compose(recipe, method, OTHER)[0])


@pytest.mark.parametrize("method", presets.names("methods"))
def test_a_methods_rate_and_scale_are_for_the_model_that_its_recipe_names(method):
    started, _ = compose(None, method, OTHER | {"task": {"name": "sst2"}})
    assert_found_for_no_other_model(started)
    own = presets.read("methods", method).get("local", {}).get("perturbation_scale")
    assert compose("quickstart", method)[0].local.perturbation_scale == (own or 1e-2)


def test_what_the_same_command_sets_is_taken(mine):
    over = {
        "model": {"name": "another", "trainable": ["lm_head.*"]},
        "local": {"learning_rate": 0.5, "perturbation_scale": 1e-2},
        "baseline": {"num_steps": 2},
    }
    recipe, said = compose(mine, "decomfl", over)
    assert (recipe.local.learning_rate, recipe.local.perturbation_scale) == (0.5, 1e-2)
    assert recipe.model.trainable == ("lm_head.*",) and recipe.baseline.num_steps == 2
    assert "local." not in said[0] and "model." not in said[0]


def test_the_same_model_by_another_path_keeps_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "mine.toml").write_text(FILE.format(model="model"))
    recipe, said = compose("mine.toml", None, {"model": {"name": str(tmp_path / "model")}})
    assert recipe.local.learning_rate == 7.0 and not said


def test_a_recipe_that_names_no_model_is_of_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "any.toml").write_text("[local]\nlearning_rate = 7.0\n")
    assert compose("any.toml", None, OTHER)[0].local.learning_rate == 7.0


def test_another_task_gets_no_template_columns_answers_paths_or_groups(mine):
    recipe, said = compose(mine, None, {"task": {"name": "sst2", "path": "here"}})
    assert recipe.task.model_dump(exclude_defaults=True) == {"name": "sst2", "path": "here", "max_train": 50}
    assert recipe.partition.kind == "iid" and recipe.model.label_descriptions == ()
    assert recipe.local.learning_rate == 7.0 and recipe.model.trainable == ("*.mlp.*",)
    assert len(said) == 1 and 'partition.kind = "natural" (now "iid")' in said[0]
    assert 'task.answers = {"a": " one", "b": " two"} (now {})' in said[0] and "task.path" not in said[0]


def test_a_method_that_tunes_other_tensors_does_not_keep_the_recipes_rate():
    recipe, said = compose("quickstart", "fedmezo")
    assert recipe.local.learning_rate == "auto" and recipe.baseline.num_steps == 0
    assert recipe.local.perturbation_scale == 1e-3 and "local.learning_rate = 15.0" in said[0]
    assert compose("quickstart", "decomfl")[0].local.learning_rate == 15.0


@pytest.mark.parametrize("over", [
    {"local": {"order": "first"}, "federation": {"upload": "weights"}},
    {"privacy": {"unit": "client", "noise_multiplier": 1.0}}, {"secure_sum": {"enabled": True}},
])  # fmt: skip
def test_where_nothing_may_be_measured_the_defaults_are_taken(over):
    recipe, said = compose(None, None, OTHER | {"task": {"name": "sst2"}}, over)
    assert (recipe.local.learning_rate, recipe.local.perturbation_scale) == (1e-4, 1e-3)
    assert 'local.learning_rate = "auto" (now 0.0001)' in said[1]


def test_adapters_take_the_place_of_a_recipes_tensors(mine):
    for recipe in (mine, None):
        over = {"model": {"name": "another", "adapter": "lora"}, "task": {"name": "sst2"}}
        assert compose(recipe, None, over)[0].model.trainable == ()


def test_what_every_model_understands_goes_to_every_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('[model]\nname = "small"\ntrainable = ["behind-layers"]\n')
    assert compose("mine.toml", None, OTHER) == (compose("mine.toml", None)[0].model_copy(update={
        "model": compose("mine.toml", None)[0].model.model_copy(update={"name": "another"})}), [])  # fmt: skip
