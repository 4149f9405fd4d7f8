"""How any message is framed: a msgpack array whose first two items are a format version and a kind.

Kinds: 0 and 1 are orders and replies (`messages`), 2 to 5 begin and end a run on a node (`hello`). A new kind gets the
next free number and a module beside these, built from what is here; who answers it is `answering`'s. Reading checks
lengths before anything is used; no pickle, no code.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import msgpack
import numpy as np

from ..errors import MessageError
from ..foreign_text import describe, quote

VERSION = 3
_SMALLEST_ITEM = 32  # bytes of a record
_FRAME_BYTES = 16  # more than an array's length, a version and a kind take


def packed(kind: int, fields: Sequence[Any]) -> bytes:
    """A message of this version."""
    return msgpack.packb([VERSION, kind, *fields])


def unpacked(data: bytes) -> Any:
    """What msgpack holds.

    Raises:
        MessageError: not msgpack, or with more items than so many bytes need.
    """
    longest = 16 + len(data) // _SMALLEST_ITEM  # room for a list is made before its items are read
    try:
        return msgpack.unpackb(data, max_array_len=longest, max_map_len=0, max_ext_len=0)
    except Exception as error:  # msgpack raises a dozen unrelated types on bad bytes, one holds all of them
        raise MessageError(f"a message of {len(data)} bytes is not readable: {describe(error)}") from None


def fields_of(data: bytes, kind: int, *num_fields: int) -> list:
    """The fields of a message after its version and kind.

    Raises:
        MessageError: not a message of this version and kind with so many fields, or one of these numbers.
    """
    fields = unpacked(data)
    begins = isinstance(fields, list) and [type(value) for value in fields[:2]] == [int, int]
    check(begins, "a message is an array of version, kind and fields")
    _check_version(fields[0])
    check(fields[1] == kind and len(fields) - 2 in num_fields, "a message's kind and number of fields agree")
    return fields[2:]


def kind_of(data: bytes) -> int:
    """A message's kind, its fields unread.

    Raises:
        MessageError: not a message of this version.
    """
    reader = msgpack.Unpacker(max_array_len=2**31, max_buffer_size=2 * _FRAME_BYTES)
    reader.feed(data[:_FRAME_BYTES])
    try:
        length, version, kind = reader.read_array_header(), reader.unpack(), reader.unpack()
    except Exception:  # whatever these bytes are
        length, version, kind = 0, None, None
    check(length >= 2 and type(version) is type(kind) is int, "a message is an array of version, kind and fields")
    _check_version(version)
    return kind


def array_of(raw: Any, dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """
    Raises:
        MessageError: other bytes than an array of this type and shape has.
    """
    fits = isinstance(raw, bytes) and len(raw) == prod(shape) * np.dtype(dtype).itemsize
    check(fits and prod(max(size, 1) for size in shape) < 2**31, f"{what} fill their shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def check(holds: bool, rule: str) -> None:
    """
    Raises:
        MessageError: the rule does not hold.
    """
    if not holds:
        raise MessageError(f"a message breaks a rule: {rule}")


def _check_version(version: int) -> None:
    if version != VERSION:
        raise MessageError(
            f"message format {quote(version)} is not ours, {VERSION}: use the same seedtune on both sides"
        )
