"""Named recipes and methods: TOML files beside this module, each a partial recipe with a line that describes it.

A recipe says what is run (model, task, partition, sizes); a method says how a round works and is laid over a recipe.
They are data: whatever one sets, a user's own file or `--set` can set too.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ..config import Recipe
from ..errors import ConfigError, unknown
from ..recipe_text import build, merged, read_toml

Kind = Literal["methods", "recipes"]
DEFAULT_RECIPE = "demo"


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


def composed(recipe: str | None, method: str | None, *overrides: dict[str, Any]) -> Recipe:
    """A recipe by name or file (default: the first run), with a method and then each of `overrides` laid over it.

    Raises:
        ConfigError: an unknown name or key, an unreadable file, a wrong type or range.
    """
    source = recipe or DEFAULT_RECIPE
    is_file = source.endswith(".toml") or "/" in source
    if not is_file and source not in names("recipes"):
        raise ConfigError(f"{unknown('recipe', source, names('recipes'))}; or give a TOML file")
    values = read_toml(Path(source)) if is_file else read("recipes", source)
    values.pop("description", None)
    if method:
        values = merged(merged(values, {"run": {"method": method}}), read("methods", method))
    for over in overrides:
        values = merged(values, over)
    return build(values, f"recipe {source}")


def _folder(kind: Kind) -> Path:
    return Path(str(files(__package__))) / kind
