"""Who may take part: the public keys in a folder, registered with the SuperLink as they come and go.

A key that is copied into the folder while the server runs is registered within seconds; one that is removed is
unregistered, and its node is answered no more: Flower never takes that key again, so its node would need a new one.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ..errors import DeployError
from ..run_folder import replace_text
from . import keys
from .control import Control
from .processes import Say

EVERY = 2.0
"""Seconds between two looks into the folder."""


class _Entry(TypedDict):
    """A node that was registered. node: its number, None where that is lost."""

    name: str
    node: str | None
    is_out: bool


_ENTRIES = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class Changes:
    """Public keys to register, with their files, and to unregister."""

    new: Mapping[str, Path] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.gone)


@dataclass
class Roll:
    """folder: with NAME.pub files, None where nodes have no keys. kept: what was registered, for the next start."""

    folder: Path | None
    kept: Path
    control: Control
    say: Say
    due: float = 0.0
    refused: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registered = self._read()

    def changes(self) -> Changes:
        """What came into the folder and what left it, looked at now and then; cheap."""
        if self.folder is None or time.monotonic() < self.due:
            return Changes()
        self.due = time.monotonic() + EVERY
        wanted = self._wanted(self.folder)
        for key in wanted.keys() & self.registered.keys():
            if self.registered[key]["is_out"]:
                self._refuse(wanted[key], f"{wanted[key]}: was taken away once: its node needs a new key to come back")
        new = {key: path for key, path in wanted.items() if key not in self.registered}
        gone = (key for key, entry in self.registered.items() if key not in wanted and not entry["is_out"])
        return Changes(new, tuple(gone))

    def make(self, changes: Changes) -> None:
        """Registers keys that are new and unregisters those that are gone; the SuperLink must be up."""
        for key, path in changes.new.items():
            self._register(key, path)
        for key in changes.gone:
            self._unregister(key)

    def _register(self, key: str, path: Path) -> None:
        try:
            number = self.control.register(path)
        except DeployError as error:
            self._refuse(path, str(error))
            return
        self.registered[key] = {"name": path.stem, "node": number, "is_out": False}
        self._keep()
        self.say(f"node {path.stem} may take part")

    def _unregister(self, key: str) -> None:
        entry = self.registered[key]
        if entry["node"] is None:
            self._refuse(Path(entry["name"]), f"node {entry['name']} cannot be taken out: its number is lost")
            return
        try:
            self.control.unregister(entry["node"])
        except DeployError as error:
            self._refuse(Path(entry["name"]), str(error))
            return
        entry["is_out"] = True
        self._keep()
        self.say(f"node {entry['name']} may take part no longer")

    def _wanted(self, folder: Path) -> dict[str, Path]:
        """The keys in the folder; what is no key is said once and left out."""
        found = {}
        for path in sorted(folder.glob("*.pub")):
            try:
                found[keys.public_key(path)] = path
            except DeployError as error:
                self._refuse(path, str(error))
        return found

    def _refuse(self, path: Path, reason: str) -> None:
        if self.refused.get(path) != reason:
            self.refused[path] = reason
            self.say(f"WARNING: {reason}")

    def _read(self) -> dict[str, _Entry]:
        try:
            return _ENTRIES.validate_json(self.kept.read_bytes(), strict=True)
        except (OSError, ValueError):
            return {}

    def _keep(self) -> None:
        replace_text(self.kept, json.dumps(self.registered, indent=2) + "\n")
