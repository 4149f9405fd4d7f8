"""Clients that run here, on one shared site: memory does not grow with their number.

Messages are encoded and decoded as they would be for a network, so bytes and validation are the same. Clients answer
one after another, or, where they measure the same directions, side by side (`seedtune.fed.cohort`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from ..fed.answering import Answer, Answering, Memory
from ..fed.client import Site
from ..fed.rounds import ExchangeProtocol, Server


@dataclass(frozen=True)
class InProcess:
    site: Site
    memory: Memory = field(default_factory=dict, repr=False)
    name: ClassVar[str] = "in-process"

    def gather(self, server: Server) -> Server:
        """Everybody is here, on the server's own weights."""
        return server

    def exchange(self, messages: Mapping[int, bytes]) -> Iterator[Answer]:
        """Each client's answer; an error of one client, whatever it is, is its answer and stops nobody else."""
        return self._answering.answers(messages)

    def finish(self, server: Server, protocol: ExchangeProtocol) -> dict[str, Any]:
        return {}

    @cached_property
    def _answering(self) -> Answering:
        return Answering(self.site, self.memory)
