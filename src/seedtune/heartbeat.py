"""Signs of life while work goes on: how long it took, how long it may take, and a call every so many seconds."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from .quantities import duration

REMEMBERED = 15
"""Rounds whose median says how long the next ones will take."""
Clock = Callable[[], float]


@dataclass
class Pace:
    """Times of rounds as they end. `clock` gives seconds, from any beginning."""

    num_rounds: int
    clock: Clock = time.monotonic
    done: int = 0
    _last: float = field(init=False)
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __post_init__(self) -> None:
        self.began = self._last = self.clock()

    @property
    def elapsed(self) -> float:
        return self.clock() - self.began

    def note(self, num_rounds: int, is_round: bool) -> None:
        """Note that `num_rounds` are done; `is_round`: the last ended just now, and took the time since the last."""
        now = self.clock()
        if is_round:
            self._took.append(now - self._last)
        self.done, self._last = num_rounds, now

    def seconds_left(self) -> float | None:
        """None before a round has ended here. What the round under way has taken is not subtracted twice."""
        if not self._took:
            return None
        whole = median(self._took) * (self.num_rounds - self.done)
        return max(0.0, whole - min(self.clock() - self._last, median(self._took)))

    def left(self, least: float = 1.0) -> str:
        """Time left in words; "" where it is not known, or less than `least` seconds."""
        seconds = self.seconds_left()
        return "" if seconds is None or seconds < least else f"about {duration(round(seconds))} left"

    def so_far(self) -> str:
        return f"{duration(round(self.elapsed))} so far"


class Heartbeat:
    """Calls `beat` every `seconds` in a thread of its own until it is stopped, or until `beat` cannot write any more.

    Who prints elsewhere calls `check`, so that a reader who is gone ends the work there, not in the thread.
    """

    def __init__(self, beat: Callable[[], None], seconds: float) -> None:
        self._beat, self._seconds, self._stop = beat, seconds, threading.Event()
        self.is_lost = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def check(self) -> None:
        """
        Raises:
            BrokenPipeError: a beat could not be written.
        """
        if self.is_lost:
            raise BrokenPipeError

    @contextmanager
    def beating(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._beat()
            except (OSError, ValueError, SystemExit):  # closed, full, or gone: rich makes an exit of a broken pipe
                self.is_lost = True
                return
