"""Standard streams that are closed, full, or take few letters: an exit code and at most one line, never a traceback."""

import io
import os
import sys

from .errors import ConfigError

OUTPUT = 1
"""The file descriptor of standard output."""


def prepare() -> None:
    """Let both streams print any text: letters that their encoding lacks come as `\\xe9`.

    Raises:
        ConfigError: standard output is closed. Files opened next would take its place, and be printed into.
    """
    if sys.stderr is None:  # closed; what would be said there is lost
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
    if sys.stdout is None:
        raise ConfigError("standard output is closed: leave it open, or send it to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> None:
    """Write out what is left; what cannot be written is dropped, so that the interpreter does not try again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard()


def discard() -> None:
    """Send standard output to nowhere from here on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), OUTPUT)


def explain(error: OSError) -> str:
    """Name what the system refused: a file, or standard output where it names none."""
    return f"{error.filename or 'standard output'}: {error.strerror or error}"


def is_interrupt(error: BaseException | None) -> bool:
    """Ctrl-C, or an error that a library made of it while it was imported."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
