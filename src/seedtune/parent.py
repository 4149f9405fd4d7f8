"""A process that ends with the one that started it, however that one ended: killed, it could clean up nothing."""

import os
import threading
from collections.abc import Callable


def end_after(wait: Callable[[], object]) -> None:
    """Ends this process, whatever it is at, once `wait` returns, in a thread of its own.

    `wait`: for the parent's end, which closes its end of a pipe.
    """

    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_standard_input() -> None:
    """Where that is a pipe into which the parent writes nothing."""
    end_after(lambda: os.read(0, 1))
