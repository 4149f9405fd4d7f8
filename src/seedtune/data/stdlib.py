"""Text that every Python installation carries: docstrings and sources of its standard library.

Read at run time from the running installation, by parsing files: nothing is imported, nothing is copied into the
project, nothing is fetched. Versions of Python differ a little in their texts, so counts differ a little too.
"""

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

HELD_BACK = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
"""The packages of the tasks `stdlib-topics` and `stdlib-text`. The starter's pretraining never sees their files."""

FORM = "{text}\nThis text documents the package"
"""How `stdlib-topics` puts a masked docstring to a causal model; the starter's pretraining uses the same words."""

MASK = "___"
MAX_TOKENS = 72
MIN_CHARACTERS = 30
_SKIPPED = {"__pycache__", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests"}


@dataclass(frozen=True)
class Docstring:
    """One docstring: `package` is its top-level module, `path` its file below the library's root."""

    package: str
    path: str
    text: str


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone: the hash by which splits are made."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64


@cache
def source_files() -> tuple[tuple[str, str], ...]:
    """(path below the library's root, source) of every readable module, sorted by path; tests are left out."""
    return tuple(_read(_module_paths()))


def _module_paths() -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    below = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    return [path.as_posix() for path in below if _SKIPPED.isdisjoint(path.parts)]


def _read(paths: list[str]) -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in paths:
        try:
            yield path, (root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def package_of(path: str) -> str:
    """The top-level module that a path below the library's root belongs to.

    >>> package_of("email/mime/base.py"), package_of("ast.py")
    ('email', 'ast')
    """
    return path.split("/")[0].removesuffix(".py")


@cache
def docstrings() -> tuple[Docstring, ...]:
    """Every distinct docstring of at least 30 characters, in the order of files and lines."""
    return _distinct(source_files())


@cache
def held_back_docstrings() -> tuple[Docstring, ...]:
    """The distinct docstrings of the packages `HELD_BACK`, without reading the rest of the library: under a second."""
    return _distinct(_read([path for path in _module_paths() if package_of(path) in HELD_BACK]))


def _distinct(files: Iterable[tuple[str, str]]) -> tuple[Docstring, ...]:
    found, seen = [], set()
    for path, source in files:
        for text in _docstrings_of(source):
            if len(text) >= MIN_CHARACTERS and text not in seen:
                seen.add(text)
                found.append(Docstring(package_of(path), path, text))
    return tuple(found)


def _docstrings_of(source: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escape sequences in the sources are not the reader's concern
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield inspect.cleandoc(text)


def masked(docstring: Docstring) -> str:
    """The docstring with its package's own name, and dotted names below it, replaced by `___`.

    >>> masked(Docstring("email", "email/base64mime.py", "See email.header for Email headers, not emails."))
    'See ___ for ___ headers, not emails.'
    """
    return re.sub(rf"\b{re.escape(docstring.package)}(\.\w+)*\b", MASK, docstring.text, flags=re.IGNORECASE)


def language_reference() -> tuple[str, ...]:
    """The topics of the language reference that `help()` shows; none where `pydoc_data` is not installed."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return ()
    return tuple(topics[name] for name in sorted(topics))
