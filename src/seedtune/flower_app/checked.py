"""Flower's client process on a node, which runs the app that came with this installation of seedtune and no other.

A SuperLink sends nodes the app's code with a run, and Flower's own client process runs whatever was sent: whoever has
the server would have every node. Here the code that comes must be, file by file, that of the bundle beside this module,
or nothing of it is written or run. Guarantee: of what a server sends, a node executes nothing.

It stands in for Flower's command `flwr-clientapp`; `deploy` puts it where a node's SuperExec looks for that, and puts
nothing else there, so no other kind of Flower's tasks is started on a node either.
"""

import importlib
import io
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import EngineError

BUNDLE = Path(__file__).parent / "bundle"
_ABOUT, _PROJECT = ".info/", "pyproject.toml"
_MOST_BYTES = 2**20


def main() -> None:
    """As `flwr-clientapp`, with the same arguments."""
    process = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    process.install_from_fab = _only_ours(process.install_from_fab)
    importlib.import_module("flwr.supernode.cli").flwr_clientapp()


def _only_ours(install: Callable[..., Path]) -> Callable[..., Path]:
    def checked(app: bytes, *arguments: Any, **options: Any) -> Path:
        check(app)
        return install(app, *arguments, **options)

    return checked


def check(app: bytes) -> None:
    """
    app: a Flower app bundle, a zip archive.

    Raises:
        EngineError: it is not the app of this installation.
    """
    try:
        sent, ours = _sent(app), _installed()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise EngineError(f"the app that the server sent cannot be read: {error}") from None
    differing = sorted(name for name in sent.keys() | ours.keys() if sent.get(name) != ours.get(name))
    if differing:
        raise EngineError(
            f"the server sent another app than this node's ({', '.join(differing)} differ): nothing of it was run; "
            "install the same version of seedtune on both"
        )


def _sent(app: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(app)) as archive:
        entries = [entry for entry in archive.infolist() if not entry.filename.startswith(_ABOUT)]
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it holds a file twice")
        if sum(entry.file_size for entry in entries) > _MOST_BYTES:
            raise ValueError("it is too large")
        return _compared({entry.filename: archive.read(entry) for entry in entries})


def _installed() -> dict[str, Any]:
    return _compared({path.name: path.read_bytes() for path in BUNDLE.iterdir() if path.suffix in (".py", ".toml")})


def _compared(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The project file by its values: Flower writes it anew."""
    text = files.get(_PROJECT, b"").decode()
    return {**files, _PROJECT: tomllib.loads(text)}


if __name__ == "__main__":
    main()
