"""Clients that run here, on one shared site: memory does not grow with their number.

Messages are encoded and decoded as they would be for a network, so bytes and validation are the same. Clients answer
one after another, or, where they measure the same directions, side by side (`seedtune.fed.cohort`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from ..fed.client import Site
from ..fed.cohort import Cohort
from ..fed.messages import decode_order, encode_reply

Given, Made = TypeVar("Given"), TypeVar("Made")


@dataclass(frozen=True)
class InProcess:
    site: Site

    def exchange(self, orders: Mapping[int, bytes]) -> Iterator[tuple[int, bytes | Exception]]:
        """Runs each client's round; an error of one client, whatever it is, is its answer and stops nobody else."""
        decoded = ((client, _attempted(decode_order, order)) for client, order in orders.items())
        for client, reply in self._cohort.replies(decoded):
            yield client, reply if isinstance(reply, Exception) else _attempted(encode_reply, reply)

    @cached_property
    def _cohort(self) -> Cohort:
        return Cohort(self.site)


def _attempted(call: Callable[[Given], Made], given: Given) -> Made | Exception:
    try:
        return call(given)
    except Exception as error:
        return error
