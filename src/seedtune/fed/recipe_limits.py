"""Bounds on a recipe that another machine sends, checked before it is parsed: its size, depth and texts.

What the settings mean is checked after that, as any recipe's (`recipe_text`).
"""

import json
from typing import Any

from ..config import Recipe
from ..errors import MessageError
from ..recipe_text import build_json

MOST_CHARACTERS, MOST_DEPTH, LONGEST_TEXT, LONGEST_NAME = 2**18, 8, 20_000, 1_000
_NAMES = (("model", "name"), ("task", "name"), ("task", "path"), ("task", "test_path"))


def bounded_recipe(text: str, source: str) -> Recipe:
    """Parse and check a recipe from elsewhere. Cost: bounded by `MOST_CHARACTERS`.

    Raises:
        MessageError: a text too long or too deep, or with characters that no name has. ConfigError: as `build_json`.
    """
    if len(text) > MOST_CHARACTERS:
        raise MessageError(f"{source} has {len(text)} characters: at most {MOST_CHARACTERS}")
    if (depth := _depth(text)) > MOST_DEPTH:
        raise MessageError(f"{source} is nested {depth} deep: at most {MOST_DEPTH}")
    try:
        values = json.loads(text)
    except ValueError:
        return build_json(text, source)  # which says what is wrong
    _check_texts(values, source)
    for section, key in _NAMES:
        named = values.get(section) if isinstance(values, dict) else None
        name = named.get(key) if isinstance(named, dict) else None
        if isinstance(name, str) and len(name) > LONGEST_NAME:
            raise MessageError(f"{source}: {section}.{key} has {len(name)} characters: at most {LONGEST_NAME}")
    return build_json(text, source)


def _depth(text: str) -> int:
    """The deepest nesting of brackets outside of strings."""
    depth = deepest = 0
    is_text = is_escaped = False
    for character in text:
        if is_escaped:
            is_escaped = False
        elif is_text:
            is_escaped, is_text = character == "\\", character != '"'
        elif character == '"':
            is_text = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _check_texts(value: Any, source: str) -> None:
    """
    Raises:
        MessageError: a text that is too long, or has a NUL or half a surrogate pair.
    """
    if isinstance(value, dict):
        for pair in value.items():
            _check_texts(list(pair), source)
    elif isinstance(value, list):
        for part in value:
            _check_texts(part, source)
    elif isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            raise MessageError(f"{source} has a text of {len(value)} characters: at most {LONGEST_TEXT}")
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
            raise MessageError(f"{source} has a text with a character that no text has (NUL, or half a pair)")
