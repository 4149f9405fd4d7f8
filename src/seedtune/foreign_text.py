"""Text that others wrote (files, clients, nodes, libraries), made fit to be logged, printed, stored or echoed.

Every foreign string passes through `sanitize` on its way to a person, and every foreign JSON through `parse_json`.
"""

import json
from typing import Any

MOST_CHARACTERS = 300
"""Of one foreign string."""
MOST_REASON = 600
"""Of an exception: our own say what to do at their end."""
MOST_MESSAGE = 2000
"""Of a whole message, which may hold several."""


def sanitize(text: object, limit: int = MOST_CHARACTERS, keep: str = "") -> str:
    """Return `text` on one line of at most `limit` characters, everything that is not printable escaped.

    Line breaks, terminal escapes, bidirectional marks and lone surrogates become visible; of a longer text the middle
    is left out, so that what a message ends with (what to do) stays. `keep`: characters that stay as they are, such as
    the line breaks of a text that is shown as one. Applied twice it changes nothing more.

    >>> sanitize("fine"), sanitize("two\\nlines \\x1b[31m"), sanitize("\\u202eevil \\ud800")
    ('fine', 'two\\\\nlines \\\\x1b[31m', '\\\\u202eevil \\\\ud800')
    >>> sanitize("a" * 500 + "end", 45)
    'aaaaaaaaaa[503 characters, some left out]aend'
    """
    given = _text(text)
    if given.isprintable():
        return _shorten(given, limit)
    escaped = (letter if letter in keep else _escape(letter) for letter in _shorten(given, limit))
    return _shorten("".join(escaped), limit)


def describe(error: BaseException) -> str:
    """Return an exception as "Class: message" on one bounded line."""
    message = " ".join(_text(error).split())
    return sanitize(f"{type(error).__name__}: {message}" if message else type(error).__name__, MOST_REASON)


def quote(value: object, limit: int = MOST_CHARACTERS) -> str:
    """Return a foreign value as Python would write it, bounded; also where it cannot be written.

    >>> quote("it's"), quote(16**5000)
    ('"it\\'s"', 'a int that cannot be shown')
    """
    try:
        return sanitize(repr(value), limit)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, or too deep
        return f"a {type(value).__name__} that cannot be shown"


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that others wrote.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or an integer of too many digits; says so in one line.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {sanitize(error)}") from None
    except ValueError:  # what else `json` may say: Python's limit of digits
        raise ValueError("an integer in it has too many digits") from None


def is_text(value: str) -> bool:
    """Return whether a string can be written to a file or a path: no lone surrogate, no nul byte."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # a foreign object's own code, or an integer of more than 4,300 digits
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


def _escape(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")


def _shorten(text: str, limit: int) -> str:
    """Keep two thirds of `limit` from the beginning and one from the end."""
    if len(text) <= limit:
        return text
    mark = f"[{len(text)} characters, some left out]"
    tail = max(0, limit - len(mark)) // 3
    head = max(0, limit - len(mark) - tail)
    return (text[:head] + mark + text[len(text) - tail :])[:limit]
