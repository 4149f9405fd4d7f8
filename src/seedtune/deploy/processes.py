"""Processes that are started, watched, started again when they die, and never left behind.

Guarantees: each process has a group of its own, and stopping it ends the whole group; where the supervisor itself is
killed, the groups end with it (`tied`, on Linux). What a process prints goes to its log file.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..errors import DeployError
from ..foreign_text import sanitize

Say = Callable[[str], None]

GRACE = 5.0
"""Seconds between the request to end and the kill."""
FIRST_WAIT, LONGEST_WAIT, STEADY, SETTLED = 1.0, 10.0, 60.0, 5.0
"""Seconds: before a process is started again, at most after some failures, that it must live to start afresh, and until
it is said to run again."""
_LAST_BYTES = 65536


@dataclass(frozen=True)
class Command:
    """What is started: its name in messages, its arguments, what it finds in its environment, and where it prints."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path

    def shown(self) -> str:
        """As a line for a shell, without its environment."""
        return shlex.join(self.arguments)


@dataclass
class Child:
    """One process that should run; `start` begins it, `stop` ends it and all that it started."""

    command: Command
    process: subprocess.Popen | None = None
    wait: float = FIRST_WAIT
    started: float = 0.0
    again_at: float = 0.0
    log_from: int = 0
    trouble: str = ""
    """Why it ended, as it was last said; "" once it has lived for `SETTLED` seconds again."""

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """
        Raises:
            DeployError: its program is not there, or its log cannot be written.
        """
        command = self.command
        try:
            with open(command.log, "ab") as log:
                self.log_from = log.tell()
                self.process = subprocess.Popen(
                    tied(command.arguments), env={**os.environ, **command.environment}, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise DeployError(f"{command.name}: cannot be started: {error}") from None
        self.started = time.monotonic()

    def stop(self) -> None:
        stop_all([self])

    def revive(self, say: Say) -> bool:
        """Starts the process again where it has died, after a wait that doubles each time; whether it did.

        The same reason is said once, not at every try; and that it runs again, once it has lived for a moment.
        """
        now = time.monotonic()
        if self.is_running:
            if self.trouble and now - self.started > SETTLED:
                self.trouble = ""
                say(f"{self.command.name} runs again")
            return False
        if not self.again_at:
            self.stop()  # whatever it left behind
            self.wait = FIRST_WAIT if now - self.started > STEADY else self.wait
            self.again_at = now + self.wait
            if (trouble := self.ending()) != self.trouble:
                self.trouble = trouble
                say(f"{self.command.name} ended ({trouble}): starting it again until it stays")
            self.wait = min(2 * self.wait, LONGEST_WAIT)
        if now < self.again_at:
            return False
        self.again_at = 0.0
        self.start()
        return True

    def ending(self) -> str:
        """How it ended, with what its log says about that."""
        code = self.process.returncode if self.process else None
        reason = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"{reason}; {told_by(self.command.log, self.log_from)}"


def tied(arguments: Sequence[str]) -> tuple[str, ...]:
    """The same, ended with this process."""
    return (sys.executable, "-P", "-m", "seedtune.deploy.tied", str(os.getpid()), *arguments)


def told_by(log: Path, start: int = 0) -> str:
    """What a log says, from byte `start` on, about why its process ended: its last error, else its last line."""
    try:
        with open(log, "rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    lines = [line for line in (_COLOURS.sub("", line).strip() for line in text.splitlines()) if line]
    if not lines:
        return f"{log} says nothing"
    errors = [line for line in lines if _ERRORS.match(line)]
    return f"{log} says: {sanitize((errors or lines)[-1])}"


_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_ERRORS = re.compile(r"(error:|\[code: \d+\]|[\w.]+(Error|Mismatch|NotFinite)\b)")
"""How errors look: ours on a command line, those by which Flower refuses, and the last line of a traceback."""


def stop_all(children: Iterable[Child]) -> None:
    """Ends processes and all that they started: asks, waits `GRACE` seconds at most, kills."""
    running = [child.process for child in children if child.process]
    for process in running:
        _signal(process, signal.SIGTERM)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(map(_is_alive, running)):
        time.sleep(0.05)
    for process in running:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
    """To the whole group, which may outlive its leader."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _is_alive(process: subprocess.Popen) -> bool:
    """Whether anything of the group still runs; on Linux, what has ended and was not collected does not count."""
    process.poll()
    if Path("/proc/self/stat").exists():
        return _num_in_group(process.pid) > 0
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _group(process: Path) -> int | None:
    """The group of a process that runs (Linux: proc(5), stat); None where it has ended."""
    try:
        state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(group)


def num_running(child: Child) -> int:
    """How many processes of the group run, the one that ties it included (Linux)."""
    return _num_in_group(child.process.pid) if child.process else 0


def _num_in_group(leader: int) -> int:
    return sum(_group(path) == leader for path in Path("/proc").glob("[0-9]*"))


@contextmanager
def ended_together(children: list[Child]) -> Iterator[None]:
    """Ends whatever of `children` runs when the block is left, in whichever way: SIGTERM is taken as Ctrl-C, and both
    count where this process was started in the background, for which shells have SIGINT ignored."""
    before = {number: signal.signal(number, _interrupted) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        stop_all(children)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt
