"""Settings that stay behind where a command names another model or task than its recipe.

A learning rate, a perturbation scale, a list of tensors and a baseline were found for one model; a template, columns,
answers and files belong to one task. They never go to another: the recipe `start`'s value or the setting's default is
taken, unless the same command sets them. A method's rate and scale were found for other models too, and count only on
the model of a recipe that says one. A method that tunes other tensors than its recipe does not keep that one's rates.

Values here are nested as TOML gives them; nothing is read, checked or printed.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..recipe_text import fields_of, merged

Values = Mapping[str, Any]
Name = tuple[str, str]
"""Of a setting: section and key."""

BEHIND_LAYERS = "behind-layers"
"""A pattern of `model.trainable` that every model understands."""

_MEASURABLE = (("local", "learning_rate"), ("local", "perturbation_scale"))
_RATES = (
    *_MEASURABLE, ("split", "rate_ratio"), ("auto", "learning_rate"), ("auto", "rate_ratio"),
    ("auto", "perturbation_scale"), ("baseline", "num_steps"), ("baseline", "optimizer"), ("baseline", "learning_rate"),
    ("baseline", "whole_model_accuracy"), ("baseline", "whole_model_command"),
)  # fmt: skip
_OF_MODEL = (*_RATES, ("model", "trainable"), ("model", "lora_targets"), ("split", "cut"))
_NOT_OF_TASK = ("name", "training", "max_train", "max_eval")


def inherit(recipe: Values, method: Values, over: Values, is_start: bool = False) -> tuple[dict[str, Any], str]:
    """Lay a method and then a command's settings over a recipe; return the values and a note on what stayed behind.

    is_start: the recipe is `start`, which belongs to no model. The note is empty where everything was taken.
    """
    below, final = merged(recipe, method), merged(merged(recipe, method), over)
    left = _left_behind(recipe, method, over, is_start) - _names(over)
    left |= _impossible(below, final) - _names(over)
    taken = {name: _instead(name, final) for name in left}
    changed = {name: value for name, value in taken.items() if _at(below, name) != value}
    for (section, key), value in changed.items():
        final = merged(final, {section: {key: value}})
    return final, _note(below, changed)


def _left_behind(recipe: Values, method: Values, over: Values, is_start: bool) -> set[Name]:
    """The settings of recipe and method that belong to another model or task."""
    below, left = merged(recipe, method), set[Name]()
    if is_start or _names_another("model", recipe, over):
        left |= {name for name in _OF_MODEL if name in _names(recipe) - _names(method)}
        left |= {name for name in _MEASURABLE if name in _names(method)}
    elif _tuned(below) != _tuned(recipe):
        left |= {name for name in _RATES if name in _names(recipe) - _names(method)}
    if _names_another("task", recipe, over):
        left |= {name for name in _names(recipe) if name[0] == "task" and name[1] not in _NOT_OF_TASK}
        left |= {("model", "label_descriptions")} & _names(recipe)
        left |= {("partition", "kind")} if _at(recipe, ("partition", "kind")) == "natural" else set()
    return {name for name in left if _at(below, name) != [BEHIND_LAYERS]}


def _impossible(below: Values, final: Values) -> set[Name]:
    """What cannot stand beside the rest: a measured number where nothing may be measured, tensors beside LoRA."""
    is_lora = _at(final, ("model", "adapter")) == "lora"
    left = {("model", "trainable")} if is_lora and _at(below, ("model", "trainable")) else set()
    return left | {name for name in _MEASURABLE if _at(below, name) == "auto" and not _can_measure(final)}


def _names_another(section: str, recipe: Values, over: Values) -> bool:
    """Whether a command names another model or task than its recipe names."""
    before, after = _at(recipe, (section, "name")), _at(over, (section, "name"))
    if before is None or after is None or before == after:
        return False
    return section == "task" or _place(str(before)) != _place(str(after))


def _place(model: str) -> str:
    """A folder's whole path; a name of something else as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _tuned(values: Values) -> tuple[Any, Any]:
    return _at(values, ("model", "adapter")) or "none", _at(values, ("model", "trainable")) or []


def _instead(name: Name, final: Values) -> Any:
    """What is taken in place of a setting that stays behind."""
    if name in _MEASURABLE and _can_measure(final):
        return "auto"
    if name == ("model", "trainable") and _at(final, ("model", "adapter")) != "lora":
        return [BEHIND_LAYERS]
    default = fields_of(name[0])[name[1]].default
    return list(default) if isinstance(default, tuple) else default


def _can_measure(values: Values) -> bool:
    """Whether 'auto' is allowed: forward passes only, and losses that may be told."""
    is_first, unit = _at(values, ("local", "order")) == "first", _at(values, ("privacy", "unit")) or "none"
    return not is_first and unit == "none" and not _at(values, ("secure_sum", "enabled"))


def _names(values: Values) -> set[Name]:
    return {(section, key) for section, keys in values.items() if isinstance(keys, Mapping) for key in keys}


def _at(values: Values, name: Name) -> Any:
    section = values.get(name[0])
    return section.get(name[1]) if isinstance(section, Mapping) else None


def _note(below: Values, changed: Mapping[Name, Any]) -> str:
    """A line, empty where nothing changed."""
    parts = list(_parts(below, changed))
    return f"not carried over to another model or task: {', '.join(parts)}" if parts else ""


def _parts(below: Values, changed: Mapping[Name, Any]) -> Iterator[str]:
    for section, key in sorted(changed):
        before, after = _shown(_at(below, (section, key))), _shown(changed[section, key])
        yield f"{section}.{key} = {before} (now {after})"


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:39] + "…"
