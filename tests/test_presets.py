import pytest

from seedtune import presets
from seedtune.config import Recipe
from seedtune.errors import ConfigError

SUBJECT = {"model": {"name": "mine"}, "task": {"name": "sst2"}}
NOBODY = (
    "no recipe and no {} to run: give a recipe, as in 'seedtune run quickstart', or both --model and --task"
)  # fmt: skip


def test_every_preset_has_a_description_of_one_line():
    for kind in ("recipes", "methods"):
        for text in presets.names(kind).values():
            assert 20 < len(text) < 120 and "\n" not in text


@pytest.mark.parametrize("recipe", presets.names("recipes"))
@pytest.mark.parametrize("method", [None, *presets.names("methods")])
def test_every_method_goes_over_every_recipe(recipe, method):
    composed = presets.composed(recipe, method, SUBJECT if recipe == presets.START else {})
    assert isinstance(composed, Recipe)
    assert composed.run.method == (method or presets.read("recipes", recipe)["run"]["method"])


def test_a_method_says_how_a_round_works_and_not_what_is_run():
    for method in presets.names("methods"):
        assert not {"task", "partition", "run"} & set(presets.read("methods", method))


def test_later_settings_win():
    over = ({"local": {"num_directions": 7}}, {"local": {"num_directions": 9}, "run": {"method": "mine"}})
    composed = presets.composed("quickstart", "decomfl", *over)
    assert composed.local.num_directions == 9 and composed.run.method == "mine"
    assert composed.federation.keys == "shared" and composed.task.name == "stdlib-topics"


def test_methods_are_the_papers():
    methods = {name: presets.composed("quickstart", name) for name in presets.names("methods")}
    assert methods["fedavg"].local.order == "first" and methods["fedavg"].federation.upload == "weights"
    assert methods["fedzo"].local.estimator == "one-sided" and methods["fedzo"].federation.upload == "weights"
    assert methods["decomfl"].federation.keys == "shared"
    assert methods["fedmezo"].model.adapter == "lora" and methods["fedmezo"].federation.local_steps == 30
    alike = {name for name in methods if methods[name].federation.weighting == "equal"}
    assert alike == {"baffle", "decomfl", "fedmezo", "fedmezo-full", "fedzo", "feedsign"}
    for name in sorted({*methods} - {"fedavg", "fedspzo"}):
        assert methods[name].local.distribution == "gaussian"


def test_a_file_is_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('description = "mine"\n[run]\nseed = 3\n')
    assert presets.composed("mine.toml", None).run.seed == presets.composed("./mine.toml", "fedavg").run.seed == 3


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError) as error:
        presets.composed("quickstar", None)
    assert str(error.value) == (
        "unknown recipe 'quickstar': did you mean 'quickstart'? Known: demo, quickstart, start, study; or give a TOML "
        "file"
    )
    with pytest.raises(
        ConfigError, match=r"^unknown method 'fedmez': did you mean 'fedmezo'\? Known: baffle, decomfl, fedavg"
    ):
        presets.composed("quickstart", "fedmez")


@pytest.mark.parametrize("over, missing", [
    ({}, "model or task"), ({"model": {"name": "mine"}}, "task"), ({"task": {"name": "sst2"}}, "model"),
    ({"model": {"dtype": "float16"}}, "model or task"),
])  # fmt: skip
def test_without_a_recipe_model_and_task_are_asked_for(over, missing):
    for recipe in (None, "start"):
        with pytest.raises(ConfigError) as error:
            presets.composed(recipe, None, over)
        assert str(error.value) == NOBODY.format(missing)


def test_a_run_without_a_recipe_takes_nothing_from_another_model():
    said = []
    composed = presets.composed(None, None, SUBJECT, say=said.append)
    assert composed.local.learning_rate == composed.local.perturbation_scale == "auto"
    assert composed.partition.kind == "iid" and composed.baseline.num_steps == 0
    assert composed.model.trainable == ("behind-layers",) and composed.task.max_tokens == 0
    assert said == [f"no recipe was given, so 'start' is taken: {presets.names('recipes')['start']}"]
    assert composed == presets.composed("start", None, SUBJECT)
