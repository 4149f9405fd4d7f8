"""Runs and measurements carried out one after another, here or in several processes at once.

A run's result does not depend on where it is carried out: its recipe says one thread, and all its randomness is keyed.
A process that ends while it works (killed, out of memory) costs its run, and no other. Processes leave Ctrl-C to the
one that started them, and end by themselves when that one is gone, however it ended.
"""

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, Self

from .. import experiment, run_store
from ..config import Machine, Recipe
from ..errors import SeedtuneError
from ..foreign_text import describe
from ..parent import end_after
from . import measuring
from .measuring import Asked, sure

Hear = Callable[[Path, int], None]
"""Hears (a run's folder, rounds done) as rounds end."""
Task = Recipe | tuple[Asked, Path | None]
"""A run; or what is to be measured, with the folder of the run that it is of."""


@dataclass(frozen=True)
class Ended:
    """How a run ended. `error`: None where it came to a summary."""

    folder: Path
    error: str | None = None


class Crew(Protocol):
    """Takes as many runs as it has room for, and tells as each one ends."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None:
        """Stops what is still running; every whole round of it is kept."""

    def has_room(self) -> bool: ...

    def start(self, folder: Path, task: Task) -> None:
        """Begins a run, or goes on with the one that the folder holds; or begins a measurement, whose file it is."""

    def next_ended(self, hear: Hear) -> Ended:
        """Waits until a run ends."""
        ...


def crew_of(size: int) -> Crew:
    return Here() if size == 1 else Processes(size)


@dataclass
class Here:
    """One run at a time, in this process."""

    waiting: list[tuple[Path, Task]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def has_room(self) -> bool:
        return not self.waiting

    def start(self, folder: Path, task: Task) -> None:
        self.waiting.append((folder, task))

    def next_ended(self, hear: Hear) -> Ended:
        return perform(*self.waiting.pop(), hear)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    folder: Path | None = None


@dataclass
class Processes:
    """As many processes as runs at once, each started when it is first needed, and again where one was lost."""

    size: int
    workers: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.folder:
                worker.process.terminate()
            worker.pipe.close()
        for worker in self.workers:
            worker.process.join()

    def has_room(self) -> bool:
        return sum(worker.folder is not None for worker in self.workers) < self.size

    def start(self, folder: Path, task: Task) -> None:
        worker = next((worker for worker in self.workers if worker.folder is None), None) or self._hired()
        worker.folder = folder
        worker.pipe.send((folder, task))

    def _hired(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        worker = _Worker(context.Process(target=_serve, args=(theirs,), daemon=True), ours)
        worker.process.start()
        theirs.close()
        self.workers.append(worker)
        return worker

    def next_ended(self, hear: Hear) -> Ended:
        by_pipe: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers if worker.folder}
        while True:
            for pipe in wait(list(by_pipe)):
                told = self._told(by_pipe[pipe])
                if isinstance(told, Ended):
                    return told
                hear(*told)

    def _told(self, worker: _Worker) -> tuple[Path, int] | Ended:
        try:
            told = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            self.workers.remove(worker)
            worker.pipe.close()
            return Ended(sure(worker.folder), f"its process ended with exit code {worker.process.exitcode}")
        if isinstance(told, Ended):
            worker.folder = None
        return told


def _serve(pipe: Connection) -> None:
    """A worker's life: runs as they come, until nobody sends or hears any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_after(sure(multiprocessing.parent_process()).join)
    try:
        while True:
            folder, task = pipe.recv()
            pipe.send(perform(folder, task, lambda *news: pipe.send(news)))
    except (EOFError, ConnectionError):
        return


def perform(folder: Path, task: Task, hear: Hear) -> Ended:
    """One run, begun or gone on with, or one measurement; an error is how it ended."""

    def listen(num_rounds: int, *_: object) -> None:
        hear(folder, num_rounds)

    try:
        if not isinstance(task, Recipe):
            measuring.take(*task, folder)
        elif run_store.is_run(folder):
            experiment.resume(folder, Machine(), listen)
        else:
            experiment.run(task, Machine(), folder, listen)
    except ConnectionError:
        raise
    except SeedtuneError as error:
        return Ended(folder, str(error))
    except Exception as error:  # whatever a run does, the others go on
        return Ended(folder, describe(error))
    return Ended(folder)
