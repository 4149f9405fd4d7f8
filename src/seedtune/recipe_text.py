"""Recipes as they are written: TOML with one table a section, laid over one another, and `section.key=value`.

`build` turns nested values into a checked `Recipe`, and what is wrong with them into one line. Also what machines and
clients are called where people write them.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .config import Machine, Recipe
from .errors import ConfigError, unknown
from .foreign_text import parse_json, quote, sanitize


def build(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A checked recipe from nested values (as TOML gives them); `source` names them in errors.

    Raises:
        ConfigError: an unknown section or key (with the nearest known one), a wrong type or range.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explained(error)}") from None


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(sanitize(part) for part in first["loc"][:2])
    if first["loc"][2:] == (NUMBER,):
        return f"{where} = {quote(first['input'])}: {_number_or_auto(*map(str, first['loc'][:2]))}"
    if first["type"] == "extra_forbidden":
        *sections, key = [str(part) for part in first["loc"]]
        fields = fields_of(sections[0]) if sections else Recipe.model_fields
        return unknown("key" if sections else "section", key, fields) + (f" (in [{sections[0]}])" if sections else "")
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return f"{where} = {quote(first['input'])}: {reason}" if len(first["loc"]) > 1 else reason
    rule = _RULES.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
    return f"{where} = {quote(first['input'])}: {rule}"


def _number_or_auto(section: str, key: str) -> str:
    """What a setting takes, in place of two errors: the one bound that is broken, and that it is not the word."""
    number, _ = get_args(fields_of(section)[key].annotation)
    above, most = FieldInfo.from_annotation(number).metadata
    return f"give a number greater than {above.gt:g} and at most {most.le:g}, or 'auto'"


def fields_of(section: str) -> Mapping[str, FieldInfo]:
    """The settings of a section of recipes, by name."""
    kind: Any = Recipe.model_fields[section].annotation
    return kind.model_fields


NUMBER = "constrained-float"
"""What pydantic calls the number where a setting takes one or a word."""

_RULES = {
    "int_type": "must be a whole number, without quotes",
    "float_type": "must be a number, without quotes",
    "bool_type": "must be true or false",
    "model_type": "must be a table of settings",
    "tuple_type": "must be a list, such as ['first', 'second']",
    "dict_type": "must be a table, such as {first = 'one', second = 'two'}",
}
"""What TOML calls the types whose names pydantic takes from Python."""


def machine_of(kernel: str, device: str, keep_activations: str = "auto", activation_memory: int = 1024) -> Machine:
    """What the command line says of the machine; `activation_memory` in MiB.

    Raises:
        ConfigError: no such kernel or way to keep activations, or no name of a device.
    """
    if keep_activations not in ("auto", "memory", "none"):
        raise ConfigError(f"--keep-activations {keep_activations!r}: must be auto, memory or none")
    if kernel not in ("auto", "compiled", "torch"):
        raise ConfigError(f"--kernel {kernel!r}: must be auto, compiled or torch")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device):
        raise ConfigError(f"--device {device!r}: must be cpu, cuda or, for one of several GPUs, cuda:N")
    values = {"kernel": kernel, "device": device, "keep_activations": keep_activations}
    return Machine.model_validate({**values, "activation_memory": activation_memory * 2**20})


def clients_of(text: str) -> tuple[int, ...]:
    """The clients of `0-32,40`, ascending, each once.

    >>> clients_of("0-2, 5")
    (0, 1, 2, 5)

    Raises:
        ConfigError: not numbers and ranges of them, or larger numbers than clients have.
    """
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if last < first:
            raise ConfigError(f"clients {text!r}: expected numbers below a million and ranges, for example 0-32,40")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def read_toml(path: Path) -> dict[str, Any]:
    """The nested values of a recipe file.

    Raises:
        ConfigError: no such file, or not TOML; says the line.
    """
    try:
        return _parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a path with a nul byte, too
        raise ConfigError(f"recipe {path}: is not valid TOML: {sanitize(error)}") from None


def _parse_toml(text: str) -> dict[str, Any]:
    """
    Raises:
        ValueError: not TOML, nested too deeply, or an integer of too many digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` laid on top, section by section.

    >>> merged({"run": {"seed": 1, "eval_every": 5}}, {"run": {"seed": 2}})
    {'run': {'seed': 2, 'eval_every': 5}}
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and key != "answers":
            value = merged(below, value)
        result[key] = value
    return result


def assignment(text: str) -> dict[str, Any]:
    """The nested values of one `section.key=value`; the value is read as TOML, else as a plain string.

    >>> assignment("local.learning_rate=3e-4"), assignment("model.name=gpt2")
    ({'local': {'learning_rate': 0.0003}}, {'model': {'name': 'gpt2'}})

    Raises:
        ConfigError: no '=', no dot, or a line break.
    """
    name, equals, raw = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(
            f"--set {quote(text)}: expected section.key=value, for example --set local.learning_rate=3e-4"
        )
    if len(text.splitlines()) > 1:
        raise ConfigError(
            f"--set {quote(text)}: is one setting on one line: give --set once for each, and a line break within a "
            'text as \\n between quotes, such as task.template="first\\nsecond"'
        )
    try:
        value = _parse_toml(f"value = {raw}")["value"]
    except ValueError:
        value = raw.strip()
    return {section: {key: value}}


def build_json(text: str, source: str) -> Recipe:
    """A checked recipe from JSON, as a run keeps it and a server sends it.

    Raises:
        ConfigError: not JSON, or as `build` says.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: is not a table of sections")
    return build(values, source)
