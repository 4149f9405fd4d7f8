"""Who may take part: the public keys in a folder, registered with the SuperLink as they come and go.

A key that is copied into the folder while the server runs is registered within seconds; one that is removed is
unregistered, and its node is answered no more.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DeployError
from ..run_folder import replace_text
from . import keys
from .control import Control
from .processes import Say

EVERY = 2.0
"""Seconds between two looks into the folder."""


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

    def is_due(self) -> bool:
        return self.folder is not None and time.monotonic() >= self.due

    def update(self) -> None:
        """Registers keys that are new and unregisters those that are gone, if it is time to look."""
        if not self.is_due():
            return
        self.due = time.monotonic() + EVERY
        wanted = self._wanted()
        for key, path in wanted.items():
            if key not in self.registered:
                self._register(key, path)
        for key in [key for key in self.registered if key not in wanted]:
            self._unregister(key)

    def _register(self, key: str, path: Path) -> None:
        try:
            number = self.control.register(path)
        except DeployError as error:
            self._refuse(path, str(error))
            return
        self.registered[key] = {"name": path.stem, "node": number}
        self._keep()
        self.say(f"node {path.stem} may take part")

    def _unregister(self, key: str) -> None:
        entry = self.registered[key]
        if entry["node"] is not None:
            self.control.unregister(entry["node"])
        del self.registered[key]
        self._keep()
        self.say(f"node {entry['name']} may take part no longer")

    def _wanted(self) -> dict[str, Path]:
        """The keys in the folder; what is no key is said once and left out."""
        found = {}
        for path in sorted(self.folder.glob("*.pub")):
            try:
                found[keys.public_key(path)] = path
            except DeployError as error:
                self._refuse(path, str(error))
        return found

    def _refuse(self, path: Path, reason: str) -> None:
        if self.refused.get(path) != reason:
            self.refused[path] = reason
            self.say(f"WARNING: {reason}")

    def _read(self) -> dict[str, dict[str, str | None]]:
        try:
            return json.loads(self.kept.read_text())
        except (OSError, ValueError):
            return {}

    def _keep(self) -> None:
        replace_text(self.kept, json.dumps(self.registered, indent=2) + "\n")
