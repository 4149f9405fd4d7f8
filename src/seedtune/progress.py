"""Progress of long phases of work: loading, evaluating, keeping activations.

    with phase("evaluating test examples", 200) as told:
        for batch in batches:
            ...
            told.advance(len(batch))

The one who runs the work says nothing on a screen; who shows it opens `watching()` and reads the phases whenever it
likes. Without a watcher `phase` costs one small object and tells nobody. A watcher sees the phases of its own context
(`contextvars`), so a thread that was started elsewhere disturbs none.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Phase:
    """A stretch of work. total: units in all, None where nobody knows; done: units so far; began: monotonic seconds."""

    name: str
    total: int | None = None
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def advance(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self.done += count

    def __str__(self) -> str:
        """
        >>> str(Phase("evaluating", 200, 64)), str(Phase("loading the model"))
        ('evaluating 64/200', 'loading the model')
        """
        return self.name if self.total is None else f"{self.name} {self.done}/{self.total}"


class Watch:
    """The phases that are open, outermost first. Read by any thread, written by the one that works."""

    def __init__(self) -> None:
        self._open: list[Phase] = []

    @property
    def innermost(self) -> Phase | None:
        """The phase that was opened last and is still open."""
        phases = tuple(self._open)
        return phases[-1] if phases else None

    @contextmanager
    def opened(self, phase: Phase) -> Iterator[None]:
        self._open.append(phase)
        try:
            yield
        finally:
            self._open.remove(phase)


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching() -> Iterator[Watch]:
    """Collect the phases that are opened while the context lasts."""
    watch = Watch()
    token = _WATCH.set(watch)
    try:
        yield watch
    finally:
        _WATCH.reset(token)


@contextmanager
def phase(name: str, total: int | None = None) -> Iterator[Phase]:
    """Open a phase of `total` units; count them with `.advance(n)`."""
    opened, watch = Phase(name, total), _WATCH.get()
    if watch is None:
        yield opened
        return
    with watch.opened(opened):
        yield opened
