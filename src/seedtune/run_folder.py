"""One folder, one process: claimed by a lock, checked before long work, written so that a crash leaves whole files.

What the files say is `run_store`'s; nothing here knows a run.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import RunStoreError

LOCK, PROBE = "lock", ".probe"
_MARGIN_BYTES = 2**20


@contextmanager
def claimed(folder: Path, is_kept: Callable[[], bool]) -> Iterator[None]:
    """Makes the folder where it is missing and locks it while the context lasts; a killed process holds no lock.

    Folders made here are removed again where `is_kept()` is false in the end.

    Raises:
        RunStoreError: in use by another process, or it cannot be made or written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with writing(folder, "choose another with --out"):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            yield
    finally:
        if missing and not is_kept():
            _remove(folder, missing)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with writing(folder, "choose another with --out"):
            lock.acquire()
    except Timeout:
        raise RunStoreError(
            f"run folder {folder}: is in use by another process; wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _remove(folder: Path, made: list[Path]) -> None:
    """Removes folders, innermost first, unless something has come into them."""
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        for path in made:
            path.rmdir()


def check_room(folder: Path, needed_bytes: int) -> None:
    """Writes for real, since quotas and read-only mounts do not show otherwise.

    Raises:
        RunStoreError: the folder's disk has less than `needed_bytes` free, or cannot be written.
    """
    free, needed = shutil.disk_usage(folder).free, needed_bytes + _MARGIN_BYTES
    if free < needed:
        raise RunStoreError(
            f"run folder {folder}: its disk has {free / 2**20:.0f} MiB free, this run may need {needed / 2**20:.0f}; "
            f"make room or choose another with --out"
        )
    probe = folder / PROBE
    with writing(folder, "choose another with --out"):
        try:
            probe.write_bytes(bytes(2**16))
            sync(probe)
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path, advice: str) -> Iterator[None]:
    """Makes one line of what a disk says no to; `advice` is what the user can do.

    Raises:
        RunStoreError: where the block raises an OSError.
    """
    try:
        yield
    except Timeout:  # an OSError to Python, but a lock's answer
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunStoreError(f"run folder {folder}: cannot be written: {reason}; {advice}") from None


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, and on the disk when this returns."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    sync(part)
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
