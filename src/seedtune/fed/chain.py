"""Records by the states that they lead between, so that weights find their way from one to another.

A replica that serves several clients, or that comes back after a restart, is told pieces of the trajectory that
overlap, repeat, or continue from an earlier state since rounds were taken back. Each record is known here by the digest
it ends in, together with the digest it began at: a tree whose root is the base, or weights that were sent whole. It
moves no weights and touches no file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..zo.trajectory import RoundRecord

Link = tuple[bytes, RoundRecord]
"""A record, and the digest of the weights that it starts from."""


@dataclass
class Chain:
    """roots: digests of weights that are there whole. links: by the digest that a record ends in."""

    roots: set[bytes]
    links: dict[bytes, Link] = field(default_factory=dict)

    def __contains__(self, state: bytes) -> bool:
        return state in self.roots or state in self.links

    def link(self, start: bytes, records: Iterable[RoundRecord]) -> list[Link]:
        """Learns records that go on from `start`, or from an earlier state and then come through `start`.

        Returns those that were new. A record that moved nothing, or that ends in a state that is known, adds none: the
        first way to a state is kept, so that no way runs in a circle.
        """
        records, new = list(records), []
        passed = [i for i, record in enumerate(records) if record.digest == start]
        for record in records[passed[-1] + 1 :] if passed else records:
            if record.digest not in self and start in self:
                self.links[record.digest] = start, record
                new.append((start, record))
            start = record.digest
        return new

    def way(self, here: bytes, there: bytes) -> tuple[bytes, tuple[RoundRecord, ...]] | None:
        """From where to set out, `here` or a root, and the records that lead `there`; None where no way is known."""
        back: list[RoundRecord] = []
        state = there
        while state != here and state not in self.roots:
            if state not in self.links:
                return None
            state, record = self.links[state]
            back.append(record)
        return state, tuple(reversed(back))

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links.values())
