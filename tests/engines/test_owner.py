"""What a node's owner insists on, whatever the server's recipe says: its files, and its privacy."""

import pytest

from seedtune.config import Recipe
from seedtune.engines.bench import Options, _here
from seedtune.errors import ConfigError
from seedtune.privacy import accounting
from seedtune.privacy.plan import Plan
from seedtune.recipe_text import build, merged


def recipe(**over) -> Recipe:
    return build(merged({"task": {"name": "sst2"}}, over))


@pytest.mark.parametrize(
    ("over", "option", "named"),
    [
        ({"model": {"name": "/home/me/model"}}, "--model", "/home/me/model"),
        ({"model": {"name": "~/model"}}, "--model", "~/model"),
        ({"model": {"name": "../model"}}, "--model", "../model"),
        ({"model": {"base": "/home/me/base"}}, "--model", "/home/me/base"),
        ({"task": {"path": "/home/me/letters"}}, "--data", "/home/me/letters"),
        ({"task": {"test_path": "/home/me/letters.csv"}}, "--data", "/home/me/letters.csv"),
    ],
)
def test_a_recipe_that_names_files_here_is_refused_unless_the_owner_lets_it(over, option, named):
    with pytest.raises(ConfigError, match=f"names {named} on this machine, .* give {option}, or let it with"):
        _here(recipe(**over), Options())
    assert _here(recipe(**over), Options(recipe_paths=True)) == recipe(**over)


def test_a_name_that_happens_to_be_a_folder_here_is_one_too(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert _here(recipe(model={"name": "org/model"}), Options()).model.name == "org/model"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="names org/model on this machine"):
        _here(recipe(model={"name": "org/model"}), Options())


def test_the_owners_own_places_take_the_place_of_the_recipes():
    given = recipe(model={"name": "/theirs"}, task={"path": "/theirs", "test_path": "/theirs.csv"})
    here = _here(given, Options(model="/ours", data="/ours.csv"))
    assert (here.model.name, here.task.path, here.task.test_path) == ("/ours", "/ours.csv", None)
    assert _here(recipe(), Options()) == recipe()


LOCAL = {
    "privacy": {"unit": "client", "noise": "local", "noise_multiplier": 4.0},
    "federation": {"num_rounds": 3, "keys": "shared", "weighting": "equal"},
}


def test_a_node_may_insist_on_local_noise_and_on_what_it_is_worth():
    worth = accounting.epsilon(Plan.of(recipe(**LOCAL)), 3)
    assert _here(recipe(**LOCAL), Options(max_epsilon=1.01 * worth)) == recipe(**LOCAL)
    with pytest.raises(ConfigError, match=r"3 rounds are worth epsilon .*, this node takes part up to"):
        _here(recipe(**LOCAL), Options(max_epsilon=0.99 * worth))
    longer = merged(LOCAL, {"federation": {"num_rounds": 300}})
    with pytest.raises(ConfigError, match="300 rounds are worth"):
        _here(recipe(**longer), Options(max_epsilon=1.01 * worth))


@pytest.mark.parametrize("over", [{}, merged(LOCAL, {"privacy": {"noise": "central"}})])
def test_who_insists_on_it_takes_part_in_no_other_run(over):
    with pytest.raises(ConfigError, match="takes part only in runs with local noise"):
        _here(recipe(**over), Options(max_epsilon=8.0))
    assert _here(recipe(**over), Options()) == recipe(**over)
