"""What a run asks of whatever carries its messages, from before its first round to after its last."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ..fed.rounds import ExchangeProtocol, Server


class RunEngine(Protocol):
    """An `Engine` (`fed.rounds`) that also knows who is there. name: as the summary says it."""

    @property
    def name(self) -> str: ...

    def gather(self, server: Server) -> Server:
        """Before a round: waits until enough clients can be asked; gives back the server with where they stand."""
        ...

    def exchange(self, messages: Mapping[int, bytes]) -> Iterable[tuple[int, bytes | Exception]]: ...

    def finish(self, server: Server, protocol: ExchangeProtocol) -> dict[str, Any]:
        """After the last round: brings whoever holds weights of its own to the end; what the summary says of it."""
        ...
