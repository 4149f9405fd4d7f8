"""What can go wrong, as one tree.

    SeedtuneError
    ├── ConfigError        a recipe, preset or flag that cannot be run
    ├── DataError          a file, column, template, label or partition that cannot be used
    ├── ModelError         a model that cannot be loaded, tuned or evaluated as asked
    ├── TrajectoryError    a trajectory that is damaged, foreign or from the future
    │   └── DigestMismatch   weights that are not the ones the record speaks of
    ├── MessageError       an order or a reply that fails validation
    │   └── NotFinite        weights that overflowed, or would
    ├── EngineError        too few clients answered, or one failed: names client, round and step
    ├── RunStoreError      a run folder that cannot be written, resumed or is in use
    └── DeployError        a key, a certificate or a process of a deployment that cannot be used

A message says what was given, the rule, what was found and what to do, on one line. The command line prints it and
exits with 2; it never shows a traceback for one of these.

Guarantee: whatever a message echoes, it has at most 2,000 characters, all of them printable (`foreign_text`).
"""

from collections.abc import Iterable
from difflib import get_close_matches

from .foreign_text import MOST_MESSAGE, quote, sanitize


class SeedtuneError(Exception):
    """Everything that this package raises on purpose."""

    def __init__(self, message: object = ""):
        super().__init__(sanitize(message, MOST_MESSAGE))


class ConfigError(SeedtuneError): ...


class DataError(SeedtuneError): ...


class ModelError(SeedtuneError): ...


class TrajectoryError(SeedtuneError): ...


class DigestMismatch(TrajectoryError): ...


class MessageError(SeedtuneError): ...


class NotFinite(MessageError): ...


class EngineError(SeedtuneError): ...


class RunStoreError(SeedtuneError): ...


class DeployError(SeedtuneError): ...


MOST_NAME = 100
"""Characters of a name that are compared with known ones; the cost grows with its square."""


def install_hint(extra: str) -> str:
    """Return the command that adds an optional dependency, as it works in a checkout: seedtune is on no index.

    >>> install_hint("report")
    "pip install '.[report]'"
    """
    return f"pip install '.[{extra}]'"


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the nearest that does.

    >>> unknown("task", "sst-2", ["rte", "sst2"])
    "unknown task 'sst-2': did you mean 'sst2'? Known: rte, sst2"
    """
    known = sorted(known)
    near = get_close_matches(given[:MOST_NAME], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {quote(given)}: {hint}Known: {', '.join(known) or 'none'}"
