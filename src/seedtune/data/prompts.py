"""Templates with `{column}` names in braces, filled from a row into the head, body and tail of a prompt.

`{mask}` is not a column: it stays in the text, and `encoding` puts the tokenizer's mask token there. `{{` and `}}`
stand for braces. No other syntax of Python's format strings is understood.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

from ..errors import DataError

MASK_SLOT = "{mask}"
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@cache
def pieces(template: str) -> tuple[tuple[str, bool], ...]:
    """The template as (text, False) and (column, True) in order.

    >>> pieces("{question}? {mask}.")
    (('question', True), ('? {mask}.', False))
    """
    found: list[tuple[str, bool]] = []
    literal, at = "", 0
    for match in _PIECE.finditer(template):
        literal += template[at : match.start()]
        at = match.end()
        if match[1] is None or match[0] == MASK_SLOT:
            literal += match[0] if match[1] else match[0][0]
            continue
        found += [(literal, False), (match[1], True)]
        literal = ""
    found.append((literal + template[at:], False))
    return tuple(piece for piece in found if piece[0])


def columns_of(template: str) -> tuple[str, ...]:
    """The columns that a template names, in order, each once."""
    return tuple(dict.fromkeys(text for text, is_column in pieces(template) if is_column))


def check_columns(template: str, columns: Iterable[str], where: str) -> None:
    """Check that `template` closes its braces and names columns, all of them among `columns`.

    `where` says whose columns they are.

    Raises:
        DataError: a brace without its other half, no column at all, or one that is not there.
    """
    columns = tuple(columns)
    if lone := re.search("[{}]", _PIECE.sub("", template)):
        raise DataError(
            f"template {template!r} has a {lone[0]!r} without its other half: write columns as {{name}}, and braces "
            f"that are text as {{{{ and }}}}"
        )
    if not columns_of(template):
        raise DataError(
            f"template {template!r} names no column, so every row would give the same text: write columns as {{name}}; "
            f"{where} has {', '.join(columns) or 'none'}"
        )
    missing = [name for name in columns_of(template) if name not in columns]
    if missing:
        raise DataError(
            f"template {template!r} names the column {missing[0]!r}, which {where} does not have: it has "
            f"{', '.join(columns) or 'none'}; write braces that are text as {{{{ and }}}}"
        )


def fill(template: str, row: Mapping[str, str], body: str | None = None) -> tuple[str, str, str]:
    """(head, body, tail) of the filled template. The body is the column `body`, or else the row's longest value.

    A template without columns is all tail, so that none of it is ever cut.

    >>> fill("Suppose {premise} Is {claim} true?", {"premise": "it rains.", "claim": "wet"})
    ('Suppose ', 'it rains.', ' Is wet true?')
    """
    parts = [row[text] if is_column else text for text, is_column in pieces(template)]
    spots = [i for i, (_, is_column) in enumerate(pieces(template)) if is_column]
    if not spots:
        return "", "", "".join(parts)
    named = [i for i in spots if pieces(template)[i][0] == body]
    at = named[0] if named else max(spots, key=lambda i: len(parts[i]))
    return "".join(parts[:at]), parts[at], "".join(parts[at + 1 :])
