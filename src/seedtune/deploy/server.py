"""The server: SuperLink, the process that runs Flower's server app, and the run that goes on until it has a summary.

    RUN/                      the run folder; the app begins the run there, or goes on with it
    RUN/service/superlink.db  nodes, runs and messages, so that the SuperLink survives a restart
    RUN/service/flwr, logs, superexec.secret, nodes.json

Whatever ends before the run has ended is started again: the app goes on from the run folder. Nothing here knows what a
round is. The SuperLink listens on loopback alone (`flower` says why); nodes elsewhere come through `nginx`.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DeployError, EngineError
from ..run_store import RunStore, summary_of
from . import flower, keys, places
from .control import Control
from .news import Told
from .processes import FIRST_WAIT, Child, Command, Say, ended_together, num_running, told_by
from .roll import Roll

TICK = 0.5
MOST_FAILURES = 3
"""Times that the app may end without one more round before the server gives up."""
START_SECONDS = 60.0
"""How long the app's process may take to appear."""
_TIED_ALONE = 2
"""Processes of a group that has started none: the one that ties it, and the one that is tied."""


@dataclass(frozen=True)
class Server:
    """What a server runs.

    bundle: the folder of Flower's app. keys: with the certificate, None: plain HTTP. nodes: with NAME.pub. config: the
    app's settings beside the run folder (`flower_app.server`).
    """

    folder: Path
    bundle: Path
    keys: Path | None = None
    nodes: Path | None = None
    port: int = 8000
    config: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def place(self) -> flower.Place:
        return flower.Place(self.folder / "service")

    @property
    def log(self) -> Path:
        """Where the app says how the run goes; Flower takes what it prints."""
        return self.place.log("app")

    @property
    def ca(self) -> Path | None:
        return self.keys / keys.CA_CERTIFICATE if self.keys else None

    @property
    def settings(self) -> dict[str, str | float]:
        """What the app is told beside its recipe, which it finds in the folder."""
        return {"folder": str(self.folder), "log": str(self.log), **self.config}


def commands(server: Server) -> list[Command]:
    """The processes of a server, in the order in which they are started."""
    return [
        flower.superlink(server.place, server.port, server.keys),
        flower.superexec(server.place, server.port, server.ca),
    ]


def files(server: Server) -> dict[Path, str]:
    """What must be there before, for people who start the processes themselves."""
    return {
        server.place.secret: places.SECRET_SAYS,
        server.place.home / "config.toml": flower.connection_file(server.port, server.ca),
    }


def afterwards(server: Server) -> list[Command]:
    """What is asked of the SuperLink once it runs: to let each node take part, and to start the app."""
    place, started = server.place, ("--run-config", flower.settings(server.settings))
    asked = [flower.control(place, "run", str(server.bundle), *started)]
    if server.nodes:
        asked.insert(
            0, flower.control(place, "supernode", "register", str(server.nodes / "NAME.pub"), "--name", "NAME")
        )
    return asked


def check(server: Server) -> str | None:
    """A note where the certificate expires soon.

    Raises:
        DeployError: keys that cannot be used, no bundle.
    """
    if not (server.bundle / "pyproject.toml").is_file():
        raise DeployError(f"{server.bundle}: holds no Flower app: this installation of seedtune is not whole")
    flower.settings(server.settings)
    return keys.check_server_keys(server.keys) if server.keys else None


def serve(server: Server, say: Say) -> dict[str, Any]:
    """Runs until the run in the folder has a summary, which is returned; nothing is left running.

    Raises:
        DeployError: as `check`; the folder or the port is another's. EngineError: the app ended `MOST_FAILURES` times
            without one more round.
    """
    if sys.platform != "linux":
        raise DeployError("deploy server: watches processes as Linux shows them; elsewhere, start what --print shows")
    if note := check(server):
        say(f"WARNING: {note}")
    if (summary := summary_of(server.folder)) is not None:
        return summary
    with places.opened(server.place):
        places.check_free(server.port)
        (server.place.home / "config.toml").write_text(flower.connection_file(server.port, server.ca))
        is_new = not server.place.database.exists()
        if is_new:
            server.place.nodes.unlink(missing_ok=True)  # of an earlier SuperLink, which is gone
        superlink, superexec = children = [Child(command) for command in commands(server)]
        with ended_together(children):
            return _Supervision(server, say, superlink, superexec, is_new).until_ended()


@dataclass
class _Supervision:
    """What is known of a server between two looks at it.

    is_new: the SuperLink knows of no run yet. run: the number of the app's run, None where none goes.
    """

    server: Server
    say: Say
    superlink: Child
    superexec: Child
    is_new: bool
    run: str | None = None
    begun: float = 0.0
    app_was_seen: bool = False
    failures: int = 0
    not_before: float = 0.0
    rounds: int = 0
    log_from: int = 0

    def __post_init__(self) -> None:
        self.control = Control(self.server.place, self.server.port, self.server.ca)
        self.roll = Roll(self.server.nodes, self.server.place.nodes, self.control, self.say)
        self.server.log.touch()
        self.told = Told(self.server.log, self.server.log.stat().st_size)

    def until_ended(self) -> dict[str, Any]:
        self.superlink.start()
        self.say(f"SuperLink runs on {flower.LOOPBACK}:{self.server.port}; logs in {self.superlink.command.log.parent}")
        self.superexec.start()
        while True:
            summary = summary_of(self.server.folder)
            if summary is not None and not self._app_lives():
                self._tell()
                return summary
            self._look()
            time.sleep(TICK)

    def _tell(self) -> None:
        for line in self.told.news():
            self.say(line)

    def _look(self) -> None:
        self._tell()
        self.superlink.revive(self.say)
        if self.superexec.revive(self.say):
            self.run = None  # the app ended with it
        if not (self.superlink.is_running and self.superexec.is_running):
            return
        changes, is_due = self.roll.changes(), self.run is None and time.monotonic() >= self.not_before
        if (changes or is_due) and not self.control.is_up():
            return
        self.roll.make(changes)
        if is_due:
            self._start_app()
        elif self._app_lives():
            self.app_was_seen = True
        elif self.run and (self.app_was_seen or time.monotonic() - self.begun > START_SECONDS):
            self._app_ended()

    def _app_lives(self) -> bool:
        """Whether the SuperExec, which is tied, has started another process: it starts nothing but the app."""
        return self.superexec.is_running and num_running(self.superexec) > _TIED_ALONE

    def _start_app(self) -> None:
        try:
            self._ask_for_run()
        except DeployError as error:
            self._failed(str(error))

    def _ask_for_run(self) -> None:
        if not self.is_new:
            for left in self.control.unfinished():
                self.control.stop(left)
        self.is_new = False
        self.log_from = self.server.log.stat().st_size
        self.run = self.control.start(self.server.bundle, self.server.settings)
        self.begun, self.app_was_seen, self.rounds = time.monotonic(), False, self._rounds()
        self.say(f"run {self.run} of the app started")

    def _app_ended(self) -> None:
        """Forgets Flower's run, so that a later look starts another; unless it was done."""
        if summary_of(self.server.folder) is not None:
            return
        self.failures = 0 if self._rounds() > self.rounds else self.failures
        self.run = None
        self._failed(told_by(self.server.log, self.log_from))

    def _rounds(self) -> int:
        """Whole rounds that the folder holds."""
        manifest = RunStore(self.server.folder).manifest()
        return manifest.num_rounds if manifest else 0

    def _failed(self, reason: str) -> None:
        self.failures += 1
        if self.failures >= MOST_FAILURES:
            raise EngineError(
                f"run {self.server.folder}: the app ended {self.failures} times without one more round; the last time: "
                f"{reason}"
            )
        self.say(f"the app ended ({reason}): starting it again, which goes on from the run folder")
        self.not_before = time.monotonic() + FIRST_WAIT * 2**self.failures
