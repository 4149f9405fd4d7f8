"""Errors without their reasons, where these may follow from a client's data.

A client of a private run, or of secure sums, says that a step failed, never why: an error's words can hold a number, a
token or a text. Classes stay apart where the server's round depends on them: `NotFinite`, and all others.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import EngineError, NotFinite
from .messages import Order


@contextmanager
def redact_errors(order: Order, of_what: str) -> Iterator[None]:
    """Replace whatever is raised within by a fixed text that names client and round.

    Raises:
        NotFinite: a number that is not finite, or that cannot be coded or applied. EngineError: any other failure.
    """
    where = f"client {order.client}, round {order.round}"
    try:
        yield
    except NotFinite:
        raise NotFinite(
            f"{where}: what it would add to {of_what} is not finite, or too large to be coded or applied; the number "
            "stays on the device: lower local.learning_rate, set local.clip, or lower secure_sum.fraction_bits"
        ) from None
    except Exception:
        raise EngineError(f"{where}: a local step of {of_what} failed; why stays on the device") from None
