"""Settings side by side: those that differ between runs or from their defaults, and the rest.

And the command that starts a run anew, checked by making the recipe from it again.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .. import presets
from ..config import Recipe
from ..errors import ConfigError
from ..recipe_text import assignment, fields_of
from .reading import MOST_LETTERS


@dataclass(frozen=True)
class Setting:
    """One `key` of a `section` of the recipe.

    values: each run's. varies: whether they differ from run to run. is_default: whether all are as they would be if
    nothing were said.
    """

    section: str
    key: str
    description: str
    default: str
    values: tuple[str, ...]
    varies: bool
    is_default: bool


def settings(recipes: Sequence[Recipe]) -> list[Setting]:
    """All settings: those that vary first, then those that are not the default, then the rest; else by section."""
    found = [_setting(recipes, section, key) for section, key in _keys()]
    return sorted(found, key=lambda setting: (not setting.varies, setting.is_default))


def _keys() -> Iterator[tuple[str, str]]:
    for section in Recipe.model_fields:
        for key in fields_of(section):
            yield section, key


def _setting(recipes: Sequence[Recipe], section: str, key: str) -> Setting:
    field = fields_of(section)[key]
    values = [getattr(getattr(recipe, section), key) for recipe in recipes]
    return Setting(
        section, key, field.description or "", _shown(field.default), tuple(map(_shown, values)),
        varies=any(value != values[0] for value in values),
        is_default=all(value == field.default for value in values),
    )  # fmt: skip


def _shown(value: Any) -> str:
    """A value as a recipe file has it, cut where it is long."""
    if value is None or value == () or value == {}:
        return "none"
    line = value if isinstance(value, str) else _toml(value)
    return line if len(line) <= MOST_LETTERS else line[: MOST_LETTERS - 1] + "…"


def command(recipe: Recipe, folder: str) -> str | None:
    """The shortest `seedtune run` that gives this recipe; None where none does, as for a text that TOML cannot hold.

    Cost: tries every known recipe with every known method, tens of milliseconds.
    """
    methods = {recipe.run.method} & presets.names("methods").keys()
    starts = [(start, method) for start in presets.names("recipes") for method in (None, *methods)]
    found = [line for line in (_from(recipe, *start) for start in starts) if line is not None]
    if not found:
        return None
    return " \\\n  ".join([*min(found, key=len), shlex.join(["--out", folder])])


def _from(recipe: Recipe, start: str, method: str | None) -> list[str] | None:
    """The command from a known recipe and method on, in parts; None where it gives another recipe."""
    try:
        named = {"model": {"name": recipe.model.name}, "task": {"name": recipe.task.name}}
        texts = _changes(recipe, presets.composed(start, method, named if start == presets.START else {}))
        if start == presets.START:
            texts = [f"{section}.name={_toml(keys['name'])}" for section, keys in named.items()] + texts
        texts += _changes(recipe, presets.composed(start, method, *map(assignment, texts)))  # what stayed behind
        if presets.composed(start, method, *map(assignment, texts)) != recipe:
            return None
    except (ConfigError, ValueError):
        return None
    first = shlex.join(["seedtune", "run", start, *(["--method", method] if method else [])])
    return [first, *(shlex.join(["--set", text]) for text in texts)]


def _changes(recipe: Recipe, base: Recipe) -> list[str]:
    """The settings of `recipe` that `base` has otherwise, as `--set` takes them."""
    return [
        f"{section}.{key}={_toml(getattr(getattr(recipe, section), key))}"
        for section, key in _keys()
        if getattr(getattr(recipe, section), key) != getattr(getattr(base, section), key)
    ]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
