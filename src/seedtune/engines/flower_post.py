"""Parcels to nodes over a Flower Grid, and their answers: what is lost is sent again, what comes twice counts once.

Flower keeps no promise that a message arrives: a node that stops, a client process that dies or a message that expires
come back as error codes, after a while or never. Nodes answer a message that comes twice by the same bytes (`node`), so
sending again is safe; the first answer wins. How long to wait for whom is `flower_grid`'s.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..errors import EngineError, MessageError
from ..foreign_text import describe, sanitize
from .frames import RECORD, Answered, Parcel, answered_of

MESSAGE_TYPE = "train"
LOST = {3: "message expired", 4: "answer expired", 5: "node not reachable", 8: "client process died"}
"""Flower's error codes after which the same message may still be answered."""
LONGEST_PAUSE = 60.0
"""Seconds between two sendings of a message that is lost again and again, at most."""

Outcome = Answered | Exception


@dataclass
class _Underway:
    """A parcel that is not answered yet. ids: of its sendings. due: when it is sent again. lost: why, if it was."""

    make: Callable[[], Parcel]
    size: int = 0
    ids: set[str] = field(default_factory=set)
    num_sent: int = 0
    due: float = 0.0
    lost: str = ""


class Post:
    """One parcel at a time to each node.

    resend_seconds: of silence after which a parcel is sent again, doubled each time. ttl: seconds for which Flower
    keeps a message, 0: its default. All times are `clock`'s.
    """

    def __init__(
        self, grid: Grid, resend_seconds: float, ttl: float = 0.0, clock: Callable[[], float] = time.monotonic
    ):
        self._grid, self._resend, self._ttl, self._clock = grid, resend_seconds, ttl, clock
        self._underway: dict[int, _Underway] = {}

    @property
    def underway(self) -> tuple[int, ...]:
        return tuple(self._underway)

    def send(self, node: int, make: Callable[[], Parcel]) -> None:
        """Sends what `make` gives, which is asked again whenever it must be sent again."""
        self._underway[node] = _Underway(make)
        self._push(node)

    def forget(self, node: int) -> str:
        """Waits no longer for a node; why its parcel was lost, if it was."""
        return self._underway.pop(node).lost

    def arrived(self) -> Iterator[tuple[int, Outcome]]:
        """What has come since it was last asked; sends again what is due. Waits for nothing."""
        node_of = {id_: node for node, parcel in self._underway.items() for id_ in parcel.ids}
        for message in self._grid.pull_messages(list(node_of)) if node_of else ():
            node = node_of.get(message.metadata.reply_to_message_id)
            if node not in self._underway:  # answered already
                continue
            outcome = self._read(node, message)
            if outcome is not None:
                del self._underway[node]
                yield node, outcome
        for node, parcel in self._underway.items():
            if self._clock() >= parcel.due:
                self._push(node)

    def _read(self, node: int, message: Message) -> Outcome | None:
        """None where the message was lost, and is sent again later."""
        parcel = self._underway[node]
        if not message.has_error():
            try:
                return answered_of(dict(message.content[RECORD]), parcel.size)
            except Exception as error:  # a record that is missing or of another type
                return MessageError(f"what a node sent is no answer: {describe(error)}")
        code, reason = message.error.code, sanitize(" ".join((message.error.reason or "").split()))
        if code not in LOST:
            return EngineError(f"Flower's error {code}: {reason}")
        parcel.ids.discard(message.metadata.reply_to_message_id)
        parcel.lost = LOST[code]
        if not parcel.ids:
            parcel.due = min(parcel.due, self._clock() + min(2.0 ** (parcel.num_sent - 1), LONGEST_PAUSE))
        return None

    def _push(self, node: int) -> None:
        parcel = self._underway[node]
        made = parcel.make()
        content = RecordDict({RECORD: ConfigRecord(made.plain())})
        message = Message(content, node, MESSAGE_TYPE, ttl=self._ttl or None)
        parcel.ids.update(filter(None, self._grid.push_messages([message])))
        parcel.size, parcel.num_sent = len(made.messages), parcel.num_sent + 1
        pause = self._resend * 2.0 ** (parcel.num_sent - 1)
        if not parcel.ids:  # Flower does not know the node at this moment
            parcel.lost, pause = LOST[5], min(2.0 ** (parcel.num_sent - 1), LONGEST_PAUSE)
        parcel.due = self._clock() + pause
