"""Files and folders that only their owner may read.

Guarantees: what is written here is never readable by others, not for a moment, and never replaces what is there; what
is read here is refused where others could have read it.
"""

import os
import stat
from pathlib import Path

from ..errors import DeployError


def make_folder(path: Path) -> None:
    """Makes a folder of mode 0700, and those above it where they are missing.

    Raises:
        DeployError: it is there and others may read or write in it, or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DeployError(f"folder {path}: cannot be made: {error.strerror}") from None
    check(path, "0700")


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Writes a file that was not there.

    Raises:
        DeployError: it was, or it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise DeployError(f"{path}: is there already and is never overwritten: move it away first") from None
    except OSError as error:
        raise DeployError(f"{path}: cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check(path: Path, mode: str = "0600") -> None:
    """
    Raises:
        DeployError: there is no such file, or others than this user may read or write it; `mode` is what it should be.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DeployError(f"{path}: cannot be read: {error.strerror}") from None
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise DeployError(
            f"{path}: has mode {stat.S_IMODE(found.st_mode):04o}, so that others than its owner may use it: "
            f"chmod {mode} {path}, and make new keys if others had access to this machine"
        )
    if os.geteuid() not in (0, found.st_uid):
        raise DeployError(f"{path}: belongs to user {found.st_uid}, this is user {os.geteuid()}: chown it first")
