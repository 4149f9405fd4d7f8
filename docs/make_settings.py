"""Writes docs/settings.md from the recipe's own fields: `python docs/make_settings.py`."""

from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from seedtune.config import Recipe

SIGNS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
INTRODUCTION = """# Settings

Every setting of a recipe, by section. Write them in a TOML file (`[section]`, then `key = value`), or give them on the
command line as `--set section.key=value`. This page is made by `python docs/make_settings.py`.
"""


def allowed(field: FieldInfo) -> str:
    """What a field takes: its choices, or its type and range."""
    if Literal["auto"] in get_args(field.annotation):
        return ", or ".join(allowed(FieldInfo.from_annotation(one)) for one in get_args(field.annotation))
    if type(None) in get_args(field.annotation):
        return " or ".join(part.__name__ for part in _parts(field.annotation)).replace("NoneType", "none")
    choices = [repr(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return ", ".join(choices)
    taken = bare(field.annotation)
    name = getattr(taken, "__name__", str(taken)).replace("NoneType", "none")
    limits = [f"{sign} {getattr(m, attribute):g}" for m in field.metadata for kind, attribute, sign in SIGNS
              if isinstance(m, kind)]  # fmt: skip
    return " ".join([str(taken) if "[" in str(taken) else name, *limits])


def bare(annotation: Any) -> Any:
    """Return a type, or a union of types, without what `Annotated` says of them."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) is Union:
        return reduce(or_, map(bare, get_args(annotation)))
    return annotation


def _parts(annotation: object) -> list[type]:
    """The types of a union, without what they are annotated with."""
    return [getattr(part, "__origin__", part) for part in get_args(annotation)]


def page() -> str:
    parts = [INTRODUCTION]
    for section, field in Recipe.model_fields.items():
        parts.append(
            f"\n## [{section}]\n\n{field.annotation.__doc__}\n\n| key | default | takes | |\n|---|---|---|---|\n"
        )
        for key, setting in field.annotation.model_fields.items():
            cells = (f"`{key}`", f"`{setting.default!r}`", allowed(setting), setting.description or "")
            parts.append("| " + " | ".join(cell.replace("|", "or") for cell in cells) + " |\n")
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page())
