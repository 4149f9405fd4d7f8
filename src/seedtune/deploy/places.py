"""What must be there before anything is started: folders, secrets, free ports, one supervisor a folder."""

import importlib.util
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from ..errors import DeployError, install_hint
from . import private
from .flower import LOOPBACK, Place

SECRET_SAYS = "(32 random bytes, mode 0600)"


def check_installed() -> None:
    """
    Raises:
        DeployError: Flower is not there.
    """
    for module in ("flwr", "cryptography"):
        if importlib.util.find_spec(module) is None:
            raise DeployError(f"deploy: needs {module}, which is not installed: {install_hint('flower')}")


@contextmanager
def opened(place: Place) -> Iterator[None]:
    """The place's folders and its secret, made where they are missing, and nobody else's while the block lasts.

    Raises:
        DeployError: another process supervises it; others may read it.
    """
    for folder in (place.folder, place.home, place.folder / "logs"):
        private.make_folder(folder)
    lock = FileLock(place.folder / "lock", timeout=0)
    try:
        with lock:
            if not place.secret.exists():
                private.write_new(place.secret, secrets.token_bytes(32))
            private.check(place.secret)
            yield
    except Timeout:
        raise DeployError(f"{place.folder}: is in use by another 'seedtune deploy'; stop that one first") from None


def check_free(port: int) -> None:
    """
    Raises:
        DeployError: something listens on this port of loopback, or may not be listened on.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise DeployError(
                f"port {port} of {LOOPBACK}: cannot be used: {error.strerror}; choose another with --port"
            ) from None


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
