"""A hello is checked before any of it is kept, at bounded cost; a node with a spoiled state starts again (c5)."""

import json

import pytest
from doubles import Asked, encoded, told_of
from small_federation import recipe

from seedtune.engines import worker
from seedtune.engines.node_state import HELLO, STATUS
from seedtune.errors import MessageError
from seedtune.fed.recipe_limits import bounded_recipe

GOOD = json.loads(recipe().model_dump_json())


def with_name(name: str) -> str:
    return json.dumps(GOOD | {"model": {"name": name}})


RECIPES = {
    "deep JSON": ("[" * 200_000, "is nested 200000 deep: at most 8"),
    "deep and closed": ('{"run": ' + "[" * 500 + "]" * 500 + "}", "is nested 501 deep"),
    "brackets in a text": ('{"run": {"method": "[[[[[[[[[[[["}', "cannot be read: not JSON: "),
    "half a surrogate pair": ('{"run": {"method": "\\ud800"}}', "a character that no text has"),
    "NUL in a name": (with_name("a\0b"), "a character that no text has"),
    "a long model name": (with_name("a" * 5_000), "model.name has 5000 characters: at most 1000"),
    "a long path": (json.dumps(GOOD | {"task": {"path": "a" * 5_000}}), "task.path has 5000 characters: at most 1000"),
    "a long text": (json.dumps(GOOD | {"task": {"template": "a" * 30_000}}), "a text of 30000 characters"),
    "a long recipe": (" " * 2**18 + "{}", "characters"),
    "a number of 5,000 digits": ('{"run": {"seed": ' + "9" * 5_000 + "}}", "an integer in it has too many digits"),
    "no table": ("[1]", "is not a table of sections"),
    "an unknown section": ('{"rum": {}}', "unknown section 'rum'"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_from_elsewhere_is_refused_by_name(kind, tmp_path):
    text, rule = RECIPES[kind]
    asked = Asked(told_of("scalars, local"), "node", tmp_path)
    before = (tmp_path / HELLO).read_bytes()
    try:
        told = asked.greet(run=bytes(16), recipe=text)
    except UnicodeEncodeError:
        told = "a character that no text has"
    assert rule in told and "\n" not in told and len(told) <= 2_000
    assert (tmp_path / HELLO).read_bytes() == before, "nothing of it was kept"
    assert isinstance(asked.answer(encoded(asked.order(0))), bytes), "the run goes on"


def test_a_recipe_within_all_bounds_is_the_one_that_was_sent():
    assert bounded_recipe(recipe().model_dump_json(), "it") == recipe()
    with pytest.raises(MessageError, match="it has 262145 characters: at most 262144"):
        bounded_recipe(" " * (2**18 + 1), "it")


@pytest.mark.parametrize("name", [HELLO, STATUS, "records", "runs", "replies"])
@pytest.mark.parametrize("spoiled", [b"", b"\xff" * 100, b"[" * 100_000, b'{"stands_at": 1, "digest": 2}'])
def test_a_node_with_a_spoiled_state_starts_and_is_greeted_again(name, spoiled, tmp_path):
    asked = Asked(told_of("scalars, none"), "node", tmp_path)
    asked.answer(encoded(asked.order(0)))
    target = tmp_path / name
    for path in target.iterdir() if target.is_dir() else [target]:
        path.write_bytes(spoiled)
    again, said = Asked.__new__(Asked), []
    again.__dict__.update(asked.__dict__)
    again.node = type(asked.node)(asked.node.state, asked.node.options, asked.node.benches)
    worker._wake(again.node, said.append)
    told = again.greet()
    assert told == "" or "another recipe" in told
    if name != "runs":
        assert isinstance(again.answer(encoded(again.order(0))), bytes)
