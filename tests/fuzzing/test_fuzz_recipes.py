"""Whatever is written in a recipe becomes a recipe that keeps every rule, or one line that says why not."""

import json

import pytest
import tiny_runs
from fuzzed import WILD, fuzzed, json_junk, no_foreign_error, spoiled, torn, wild_json
from hypothesis import given
from hypothesis import strategies as st

from seedtune import presets
from seedtune.config import Recipe
from seedtune.errors import ConfigError
from seedtune.foreign_text import MOST_MESSAGE
from seedtune.recipe_text import assignment, build, build_json, merged, read_toml

WHOLE = Recipe().model_dump(mode="json")
TABLES = {section: {key: value for key, value in keys.items() if value is not None} for section, keys in WHOLE.items()}
PRESETS = [presets.read(kind, name) for kind in ("methods", "recipes") for name in presets.names(kind)]


def tried(values) -> Recipe | None:
    try:
        return build(values, "mine.toml")
    except ConfigError as error:
        assert str(error).startswith("mine.toml: ")
        assert len(str(error)) <= MOST_MESSAGE and str(error).isprintable()
        return None


def keeps_its_rules(recipe: Recipe) -> None:
    """It survives being written and read, and so does every rule about what goes together."""
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert build(json.loads(recipe.model_dump_json())) == recipe
    cohort = recipe.federation.cohort_size or recipe.partition.num_clients
    assert recipe.federation.min_replies <= cohort <= recipe.partition.num_clients
    assert recipe.federation.aggregation == "mean" or recipe.federation.keys == "shared"
    rate = recipe.local.learning_rate
    assert recipe.num_scalars >= 1 and (rate == "auto" or 0 < rate < float("inf"))


@fuzzed(200)
@given(spoiled(WHOLE, json_junk) | json_junk)
def test_values_that_are_nearly_a_recipe(values):
    if recipe := tried(values):
        keeps_its_rules(recipe)


@fuzzed(60)
@given(st.sampled_from(PRESETS), spoiled(WHOLE, json_junk, most=1))
def test_presets_laid_over_anything(preset, values):
    over = {name: keys for name, keys in preset.items() if name in WHOLE}
    if isinstance(values, dict) and (recipe := tried(merged(values, over))):
        keeps_its_rules(recipe)


def wild_toml() -> st.SearchStrategy[bytes]:
    """A setting whose value is hard to read, or a whole recipe that is torn."""
    names = st.sampled_from([(section, key) for section, keys in WHOLE.items() for key in keys])
    setting = st.tuples(names, st.sampled_from(WILD)).map(lambda at: f"[{at[0][0]}]\n{at[0][1]} = {at[1]}".encode())
    return setting | torn(tiny_runs.toml(TABLES).encode())


@fuzzed(100)
@given(wild_json(WHOLE) | torn(json.dumps(WHOLE).encode()))
def test_json_of_any_bytes(data):
    with no_foreign_error("JSON"):
        keeps_its_rules(build_json(data.decode(errors="surrogateescape"), "the server's recipe"))


@fuzzed(100)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace")) | wild_toml())
def test_files_of_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with no_foreign_error("TOML"):
        build(read_toml(path), "mine.toml")


@fuzzed(100)
@given(
    st.sampled_from([f"{section}.{key}" for section, keys in WHOLE.items() for key in keys]) | st.text(max_size=12),
    st.text(max_size=16),
)
def test_assignments_of_any_text(name, value):
    try:
        values = assignment(f"{name}={value}")
    except ConfigError as error:
        assert str(error).startswith("--set ")
    else:
        tried(values)


def test_what_is_spoiled_is_a_recipe_otherwise():
    assert build(WHOLE) == Recipe()
    with pytest.raises(ConfigError):
        build(WHOLE | {"run": []})
