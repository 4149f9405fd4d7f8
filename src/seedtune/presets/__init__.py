"""Named recipes and methods: TOML files beside this module, each a partial recipe with a line that describes it.

A recipe says what is run (model, task, partition, sizes); a method says how a round works and is laid over a recipe.
They are data: whatever one sets, a user's own file or `--set` can set too. What a recipe does not hand on to another
model or task is `inheriting`'s.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ..config import Recipe
from ..errors import ConfigError, unknown
from ..recipe_text import build, merged, read_toml
from .inheriting import inherit

Kind = Literal["methods", "recipes"]
START = "start"
"""The recipe of a run that names none."""


def names(kind: Kind) -> dict[str, str]:
    """Every preset of a kind with its description, sorted by name."""
    paths = sorted(path for path in _folder(kind).iterdir() if path.suffix == ".toml")
    return {path.stem: str(read_toml(path).get("description", "")) for path in paths}


def read(kind: Kind, name: str) -> dict[str, Any]:
    """The values of a preset.

    Raises:
        ConfigError: no such preset, with the nearest known one.
    """
    known = names(kind)
    if name not in known:
        raise ConfigError(unknown(kind.removesuffix("s"), name, known))
    values = read_toml(_folder(kind) / f"{name}.toml")
    values.pop("description", None)
    return values


def composed(
    recipe: str | None, method: str | None, *overrides: dict[str, Any], say: Callable[[str], None] = lambda note: None
) -> Recipe:
    """Compose a recipe by name or file with a method and then each of `overrides`; without a name, `start`.

    `say` is called with a line for what was taken without a recipe, and one for what stayed behind because another
    model or task was named.

    Raises:
        ConfigError: neither a recipe nor both a model and a task; an unknown name or key, an unreadable file, a wrong
            type or range.
    """
    source, over = recipe or START, dict[str, Any]()
    for each in overrides:
        over = merged(over, each)
    values = _read_recipe(source)
    if source == START:
        _check_subject(over)
    laid = merged({"run": {"method": method}}, read("methods", method)) if method else {}
    values, note = inherit(values, laid, over, source == START)
    built = build(values, f"recipe {source}")
    if recipe is None:
        say(f"no recipe was given, so {START!r} is taken: {names('recipes')[START]}")
    if note:
        say(note)
    return built


def _read_recipe(source: str) -> dict[str, Any]:
    """The values of a known recipe or of a file."""
    if source.endswith(".toml") or "/" in source:
        values = read_toml(Path(source))
        values.pop("description", None)
        return values
    if source not in names("recipes"):
        raise ConfigError(f"{unknown('recipe', source, names('recipes'))}; or give a TOML file")
    return read("recipes", source)


def _check_subject(over: dict[str, Any]) -> None:
    """
    Raises:
        ConfigError: no model or no task for `start`, which has none of its own.
    """
    missing = [section for section in ("model", "task") if "name" not in over.get(section, {})]
    if missing:
        raise ConfigError(
            f"no recipe and no {' or '.join(missing)} to run: give a recipe, as in 'seedtune run quickstart', or both "
            "--model and --task"
        )


def _folder(kind: Kind) -> Path:
    return Path(str(files(__package__))) / kind
