"""Parcels: the messages of one exchange to one node, and what came of each; and how they pass through a local socket.

Whoever only hands them on, such as Flower's client process, needs neither torch nor a model: this module imports none.
"""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from ..errors import MessageError

RECORD = "seedtune"
"""The name of a parcel, and of its answer, among the records of a Flower message."""
NODE = -1
"""In place of a client's number: for the node itself."""
MOST_BYTES = 2**34
"""Of one frame."""
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Parcel:
    """run: the run's id, hex. clients: whom each message is for."""

    run: str
    clients: tuple[int, ...]
    messages: tuple[bytes, ...]

    def plain(self) -> dict[str, Any]:
        return {"run": self.run, "clients": list(self.clients), "messages": list(self.messages)}


@dataclass(frozen=True)
class Answered:
    """One entry a message: its answer, or empty bytes and what went wrong ("ErrorClass: message")."""

    messages: tuple[bytes, ...]
    errors: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        return {"messages": list(self.messages), "errors": list(self.errors)}


def parcel_of(plain: Mapping[str, Any]) -> Parcel:
    """
    Raises:
        MessageError: not the fields of a parcel.
    """
    found: Iterator[Any] = (plain.get(name) for name in ("run", "clients", "messages"))
    run, clients, messages = found
    typed = isinstance(run, str) and _all(clients, int) and _all(messages, bytes)
    if not typed or not len(set(clients)) == len(clients) == len(messages):
        raise MessageError("a parcel has a run, and a message for each client that it names")
    return Parcel(run, tuple(clients), tuple(messages))


def answered_of(plain: Mapping[str, Any], num_messages: int) -> Answered:
    """
    Raises:
        MessageError: not an answer, or the text of an error, for each of so many messages.
    """
    found: Iterator[Any] = (plain.get(name) for name in ("messages", "errors"))
    messages, errors = found
    whole = _all(messages, bytes) and _all(errors, str) and len(messages) == len(errors) == num_messages
    if not whole:
        raise MessageError(f"a node's answer has {num_messages} messages and as many texts of errors")
    return Answered(tuple(messages), tuple(errors))


def send(connection: socket.socket, plain: Mapping[str, Any]) -> None:
    data = msgpack.packb(dict(plain))
    connection.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """What was sent, None where the other side has closed.

    Raises:
        MessageError: a frame that is too long, or no map. ConnectionError: closed within a frame.
    """
    head = _exactly(connection, _LENGTH_BYTES)
    if head is None:
        return None
    length = int.from_bytes(head, "big")
    if length > MOST_BYTES:
        raise MessageError(f"a frame says that it has {length} bytes: at most {MOST_BYTES}")
    data = _exactly(connection, length)
    if data is None:
        raise ConnectionError("closed within a frame")
    try:
        plain = msgpack.unpackb(data)
    except Exception as error:  # msgpack raises a dozen unrelated types on bad bytes
        raise MessageError(f"a frame of {length} bytes is not readable: {type(error).__name__}") from None
    if not isinstance(plain, dict):
        raise MessageError("a frame holds a map")
    return plain


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    """So many bytes, None where the other side closed before the first of them."""
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(min(2**20, count - len(data)))
        if not piece and data:
            raise ConnectionError("closed within a frame")
        if not piece:
            return None
        data += piece
    return bytes(data)


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
