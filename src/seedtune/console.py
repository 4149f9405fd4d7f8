"""What all commands share: where they print, and the options that mean the same everywhere."""

import json
import sys
from typing import Annotated, Any, TextIO

import typer
from rich import console as rich_console
from rich import table as rich_table
from rich.console import RenderableType

from .foreign_text import MOST_MESSAGE, sanitize
from .recipe_text import assignment, merged

WIDE = 10_000
"""Columns where nobody looks at a terminal: no value is folded or cut."""
MOST_PRINTED = 200_000
"""Characters of one text that is printed as it is, such as a generated one."""


class Console(rich_console.Console):
    """A console whose texts cannot steer the terminal, whoever wrote them (`foreign_text`)."""

    def print(self, *objects: Any, **options: Any) -> None:
        safe = (sanitize(one, MOST_PRINTED, keep="\n\t") if isinstance(one, str) else one for one in objects)
        super().print(*safe, **options)


class Table(rich_table.Table):
    """A table whose cells cannot steer the terminal, whoever wrote them; each is on one line."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        safe = (sanitize(cell, MOST_MESSAGE) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*safe, **options)


DIVERGED, STOPPED = 3, 130
"""Exit codes: of a run that diverged, and after Ctrl-C."""


def _console(stream: TextIO | None, **options: Any) -> Console:
    is_terminal = stream is not None and stream.isatty()  # None: closed
    return Console(width=None if is_terminal else WIDE, markup=False, emoji=False, highlight=False, **options)


out, err = _console(sys.stdout), _console(sys.stderr, stderr=True)

Set = Annotated[list[str] | None, typer.Option("--set", help="any setting: section.key=value; may be repeated")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Device = Annotated[
    str,
    typer.Option("--device", help="where the model computes: cpu, cuda or cuda:N; default cpu", show_default=False),
]


def nested(settings: list[str] | None) -> dict[str, Any]:
    """The values of all --set together.

    Raises:
        ConfigError: one that is no section.key=value.
    """
    values: dict[str, Any] = {}
    for text in settings or []:
        values = merged(values, assignment(text))
    return values


def show(values: dict[str, Any], as_json: bool) -> None:
    """Names and values; without those that are not known, where a person reads them."""
    if as_json:
        print(json.dumps(values, indent=2, allow_nan=False))
        return
    out.print(pairs({name: value for name, value in values.items() if value is not None}))


def pairs(values: dict[str, Any]) -> Table:
    """Names and values, one a row."""
    shown = table("", "")
    shown.show_header = False
    for name, value in values.items():
        shown.add_row(name, str(value))
    return shown


def table(*columns: str) -> Table:
    """Columns by name, without lines; long values are folded."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
