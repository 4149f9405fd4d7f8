"""What the server asks of its SuperLink, through the command `flwr`: registering nodes, starting and stopping runs.

Each call starts a process that takes about two seconds: made when something changes, never to look whether it has.
"""

import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DeployError
from ..foreign_text import sanitize
from . import flower
from .processes import tied

_PATIENCE = 60.0
_IN_USE = "already in use"
_GREETING = re.compile(r"Using SuperLink: .*\n")


@dataclass(frozen=True)
class Control:
    """The Control interface of the SuperLink on `port`; `ca` is None where it speaks plain HTTP."""

    place: flower.Place
    port: int
    ca: Path | None

    def is_up(self) -> bool:
        """Whether the SuperLink answers; cheap."""
        scheme, context = ("http", None) if self.ca is None else ("https", ssl.create_default_context(cafile=self.ca))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(f"{scheme}://{flower.LOOPBACK}:{self.port}/health", timeout=2) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def register(self, public_key: Path) -> str | None:
        """Lets the node with this key take part; its number, None where it was registered before."""
        try:
            return str(self._ask("supernode", "register", str(public_key), "--name", public_key.stem)["node-id"])
        except DeployError as error:
            if _IN_USE in str(error):
                return None
            raise

    def unregister(self, node: str) -> None:
        """Lets a node take part no longer."""
        self._ask("supernode", "unregister", node)

    def start(self, bundle: Path, config: Mapping[str, str | float]) -> str:
        """Starts the app; the number of its run."""
        return str(self._ask("run", str(bundle), "--run-config", flower.settings(config))["run-id"])

    def stop(self, run: str) -> None:
        self._ask("stop", run)

    def unfinished(self) -> list[str]:
        """The numbers of runs that have not ended, such as those whose process was killed with the server."""
        return [run["run-id"] for run in self._ask("list")["runs"] if not run["status"].startswith("finished")]

    def _ask(self, *arguments: str) -> dict[str, Any]:
        """
        Raises:
            DeployError: the SuperLink said no, or nothing.
        """
        command = flower.control(self.place, *arguments)
        what = "flwr " + " ".join(arguments[:2])
        try:
            done = subprocess.run(
                tied(command.arguments), env={**os.environ, **command.environment}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=_PATIENCE, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DeployError(f"{what}: no answer in {_PATIENCE:.0f} s") from None
        except OSError as error:
            raise DeployError(f"{what}: cannot be started: {error}") from None
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:  # no JSON in what it printed
            said = " ".join((done.stdout + done.stderr).split())[-500:]
            raise DeployError(f"{what}: failed with exit code {done.returncode}: {said}") from None
        if not answer.get("success"):
            reason = _GREETING.sub("", str(answer.get("error-message", answer)))
            raise DeployError(f"{what}: {sanitize(' '.join(reason.split()))}")
        return answer
