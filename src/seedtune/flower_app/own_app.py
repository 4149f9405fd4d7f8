"""A SuperNode that runs no other code than the app installed with this seedtune.

    python -m seedtune.flower_app.own_app ARGUMENTS OF flower-supernode

Flower sends nodes the app to run, so whoever holds the server could run anything on every node; its own check wants
signatures of a platform. Here the app that comes is compared, file by file, with the one that this installation would
have sent. Another one is refused: its messages are left alone, and the log says why. What a server can then still make
a node do is what seedtune's messages can.

It reaches into one private function of Flower 1.41, by name: where that is not as known, the SuperNode does not start.
"""

import hashlib
import io
import sys
import zipfile
from collections.abc import Callable
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

PULL = "_pull_and_store_message"
_KNOWN = {"get_fab", "receive", "get_run"}
_MOST_BYTES = 2**20
"""Of a file of the app once it is unpacked; ours has three, of some hundred bytes."""


def bundle() -> Path:
    """The app of this installation, as a server sends it."""
    return Path(str(files("seedtune.flower_app"))) / "bundle"


def difference(content: bytes, own: bytes) -> str | None:
    """In which file an app (a zip) differs from our own one; None where both have the same files."""
    try:
        found, expected = _unpacked(content), _unpacked(own)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        return f"it cannot be read: {error}"
    names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    return names[0] if names else None


def guarded(pull: Callable[..., Any], own: bytes, log: Callable[[str], None], refuse: type[BaseException]) -> Callable:
    """`pull`, Flower's function that fetches a message and the app for it, with every app compared first.

    refuse: what `pull` takes as the word that a message is to be left alone.
    """
    known = signature(pull)

    def pulled(*arguments: Any, **named: Any) -> Any:
        given = known.bind(*arguments, **named)
        fetch = given.arguments["get_fab"]

        def checked(*which: Any) -> Any:
            fab = fetch(*which)
            if other := difference(fab.content, own):
                digest = hashlib.sha256(fab.content).hexdigest()
                log(
                    f"refused an app that is not this seedtune's own ({other} differs; sha256 {digest}): the server "
                    "has another version, or is not to be trusted"
                )
                raise refuse
            return fab

        given.arguments["get_fab"] = checked
        return pull(*given.args, **given.kwargs)

    return pulled


def main() -> None:
    """As `flower-supernode`; exits with 2 where this Flower is not as known."""
    from flwr.cli.build import build_fab_from_disk
    from flwr.supercore.run import RunNotRunningException
    from flwr.supernode import start_client_internal as internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    pull = getattr(internal, PULL, None)
    if pull is None or not set(signature(pull).parameters) >= _KNOWN:
        print(f"error: this Flower has no {PULL} as version 1.41 has: install flwr==1.41.*", file=sys.stderr)
        sys.exit(2)
    setattr(internal, PULL, guarded(pull, build_fab_from_disk(bundle()), _log, RunNotRunningException))
    flower_supernode()


def _unpacked(content: bytes) -> dict[str, bytes]:
    """Files by name, without the list that Flower adds.

    Raises:
        ValueError: a name that comes twice, or a file that is too large.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename != ".info/CONTENT"]
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names) or any(entry.file_size > _MOST_BYTES for entry in entries):
            raise ValueError("a file comes twice, or is too large")
        return {entry.filename: archive.read(entry) for entry in entries}


def _log(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
