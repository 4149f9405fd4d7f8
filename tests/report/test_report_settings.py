"""Settings side by side, and the command that gives them again."""

import shlex

import pytest

from seedtune import presets
from seedtune.config import Recipe
from seedtune.recipe_text import assignment, build
from seedtune.report.settings import command, settings


def test_what_differs_from_the_defaults_comes_first():
    found = settings([build({"run": {"seed": 3}, "local": {"clip": 1.0}})])
    assert [f"{s.section}.{s.key}" for s in found if not s.is_default] == ["local.clip", "run.seed"]
    assert [s.is_default for s in found] == sorted(s.is_default for s in found)
    assert len(found) == sum(len(field.annotation.model_fields) for field in Recipe.model_fields.values())
    assert (found[0].values, found[0].default, found[0].varies) == (("1.0",), "0.0", False)
    assert found[0].description.startswith("largest projected gradient")


def test_what_differs_between_runs_comes_before_it():
    runs = [build({"local": {"clip": 1.0}, "run": {"seed": seed}}) for seed in (0, 4)]
    found = settings(runs)
    assert (found[0].key, found[0].values, found[0].varies) == ("seed", ("0", "4"), True)
    assert (found[1].key, found[1].values, found[1].varies) == ("clip", ("1.0", "1.0"), False)


def test_long_values_are_cut():
    (found,) = (s for s in settings([build({"task": {"template": "x" * 9_999}})]) if s.key == "template")
    assert len(found.values[0]) == 500 and found.values[0].endswith("…")


def again(line: str) -> Recipe:
    """The recipe of a printed command, as the command line reads it."""
    words = shlex.split(line.replace("\\\n", " "))
    assert words[:2] == ["seedtune", "run"] and words[-2] == "--out"
    method = words[words.index("--method") + 1] if "--method" in words else None
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    return presets.composed(words[2], method, *map(assignment, changes))


RECIPES = {
    "quickstart": presets.composed("quickstart", None),
    "a method": presets.composed("quickstart", "decomfl", {"federation": {"num_rounds": 9}}),
    "texts": build({"task": {"template": 'it\'s "{x}" \\ $HOME `x`\nü', "answers": {"a b": " 'c'"}}}),
    "lists": build({"model": {"trainable": ["*.mlp.*", "a'b"]}, "run": {"method": "<b> \x1b[31m"}}),
    "numbers": build({"local": {"learning_rate": 1e-7, "clip": 0.1}, "partition": {"alpha": 1000000.0}}),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_command_gives_the_recipe_again(recipe):
    assert again(command(recipe, "runs/it's again")) == recipe


def test_the_command_is_short_where_the_recipe_is_known():
    assert (
        command(RECIPES["quickstart"], "runs/quickstart-again")
        == "seedtune run quickstart \\\n  --out runs/quickstart-again"
    )
    assert "--method decomfl" in command(RECIPES["a method"], "x")


def test_a_recipe_that_no_command_line_holds_has_no_command():
    assert command(build({"task": {"template": "\x7f"}}), "x") is None
