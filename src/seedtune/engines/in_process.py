"""Clients that run here, one after another, on one shared site: memory does not grow with their number.

Messages are encoded and decoded as they would be for a network, so bytes and validation are the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..fed.client import Site, local_round
from ..fed.messages import decode_order, encode_reply


@dataclass(frozen=True)
class InProcess:
    site: Site

    def exchange(self, orders: Mapping[int, bytes]) -> Iterator[tuple[int, bytes | Exception]]:
        """Runs each client's round; an error of one client, whatever it is, is its answer and stops nobody else."""
        for client, order in orders.items():
            try:
                yield client, encode_reply(local_round(self.site, decode_order(order)))
            except Exception as error:
                yield client, error
