"""What a node keeps on disk, so that after a restart it goes on where it stood.

    hello            the run's hello, as it came
    records          every record that it was told, with the state it starts from (`fed.chain`); appended
    status.json      run, round and digest of the replica, where each client stands; for people and for the node
    weights          weights that were sent whole where records would have been longer
    replies/         the last answer of each client and kind of message, for when the same is asked again
    memory/RUN/      what clients of a run must still know (`fed.answering.Memory`); kept when another run begins
    runs/RUN         the digest of the run's one recipe
    runs/RUN.examples   of the owner's examples that it began with
    ledger.json      what was spent of the owner's privacy (`node_ledger`)

Folders are the user's alone (0700), and so are files (0600). Guarantees: every file is replaced in one rename or
appended; what a crash left half written, or a disk spoiled, is recognised and left out, and the node then stands at an
earlier state that it knows. A power cut may take it further back, but not the memory, the runs' recipes and the ledger:
these are on the disk before anything that follows from them leaves the node. Nothing here moves weights.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgpack

from ..errors import MessageError
from ..fed.chain import Link
from ..fed.messages import pack_record, unpack_record
from ..fed.wire import kind_of

HELLO, RECORDS, STATUS, WEIGHTS, REPLIES, MEMORY = "hello", "records", "status.json", "weights", "replies", "memory"
RUNS = "runs"
_CHECK_BYTES = 16


class NodeState:
    """The state of one node in `folder`, which is made where it is missing."""

    def __init__(self, folder: Path):
        self.folder = folder
        for path in (folder, folder / REPLIES, folder / MEMORY, folder / RUNS):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)

    def begin(self, hello: bytes) -> None:
        """Forgets where an earlier run stood, and keeps the hello of this one. No memory of any run is touched."""
        shutil.rmtree(self.folder / REPLIES, ignore_errors=True)
        (self.folder / REPLIES).mkdir(mode=0o700)
        for name in (HELLO, STATUS, RECORDS, WEIGHTS):
            (self.folder / name).unlink(missing_ok=True)
        write(self.folder / HELLO, hello)

    def memory_folder(self, run: str) -> Path:
        return self.folder / MEMORY / run

    def recipe_digest(self, run: str) -> bytes | None:
        """That of the recipe with which a run first came; None where it never came."""
        return _read(self.folder / RUNS / run)

    def keep_recipe_digest(self, run: str, digest: bytes) -> None:
        write(self.folder / RUNS / run, digest, is_synced=True)

    def examples_digest(self, run: str) -> str | None:
        """Return that of the owner's examples with which a run began; None where it never began."""
        kept = _read(self.folder / RUNS / f"{run}.examples")
        return None if kept is None else kept.decode(errors="replace")

    def keep_examples_digest(self, run: str, digest: str) -> None:
        """Keep it for as long as the folder lasts, whatever runs and hellos come."""
        write(self.folder / RUNS / f"{run}.examples", digest.encode(), is_synced=True)

    def forget_records(self) -> None:
        """After records that led elsewhere than they said: the node stands at the base again."""
        for name in (RECORDS, WEIGHTS):
            (self.folder / name).unlink(missing_ok=True)

    def hello(self) -> bytes | None:
        return _read(self.folder / HELLO)

    def status(self) -> dict[str, Any]:
        """Empty where there is none that can be read."""
        try:
            status = json.loads(_read(self.folder / STATUS) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) and _is_status(status) else {}

    def set_status(self, status: Mapping[str, Any]) -> None:
        write(self.folder / STATUS, (json.dumps(status) + "\n").encode())

    def add_links(self, links: Iterable[Link]) -> None:
        data = b"".join(_checked(msgpack.packb([start, pack_record(record)])) for start, record in links)
        if data:
            with open(os.open(self.folder / RECORDS, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab") as file:
                file.write(data)

    def links(self, since: int = 0) -> tuple[list[Link], int]:
        """Those that begin at byte `since` of the file or later, in the order in which they came, and where they end.

        From the first damaged one on they are cut off, so that what is added later can be read.
        """
        data = _read(self.folder / RECORDS, since) or b""
        found, place = [], 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 4], "big")
            content = _unchecked(data[place + 4 : place + 4 + _CHECK_BYTES + length])
            if content is None:
                os.truncate(self.folder / RECORDS, since + place)
                break
            start, record = msgpack.unpackb(content)
            found.append((start, unpack_record(record)))
            place += 4 + _CHECK_BYTES + length
        return found, since + place

    def keep_weights(self, packed: bytes) -> None:
        write(self.folder / WEIGHTS, packed)

    def weights(self) -> bytes | None:
        return _read(self.folder / WEIGHTS)

    def reply(self, client: int, message: bytes) -> bytes | None:
        """The answer that this very message had, None where it was not the last of its kind."""
        kept = _unchecked(_read(self._reply_path(client, message)) or b"")
        asked = blake2b(message, digest_size=_CHECK_BYTES).digest()
        return kept[_CHECK_BYTES:] if kept and kept[:_CHECK_BYTES] == asked else None

    def keep_reply(self, client: int, message: bytes, reply: bytes) -> None:
        content = blake2b(message, digest_size=_CHECK_BYTES).digest() + reply
        write(self._reply_path(client, message), blake2b(content, digest_size=_CHECK_BYTES).digest() + content)

    def _reply_path(self, client: int, message: bytes) -> Path:
        try:
            kind: int | str = kind_of(message)
        except MessageError:
            kind = "none"
        return self.folder / REPLIES / f"{client}-{kind}"


class FileMemory(MutableMapping[str, bytes]):
    """A memory (`fed.answering`) with a file a name; `folder` may be changed to that of another node's."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, name: str) -> bytes:
        kept = _unchecked(_read(self._path(name)) or b"")
        if kept is None:
            raise KeyError(name)
        return msgpack.unpackb(kept)[1]

    def __setitem__(self, name: str, value: bytes) -> None:
        content = msgpack.packb([name, value])
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(self.folder.parent)
        checked = blake2b(content, digest_size=_CHECK_BYTES).digest() + content
        write(self._path(name), checked, is_synced=True)

    def __delitem__(self, name: str) -> None:
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        for path in sorted(self.folder.glob("[0-9a-f]*")):
            kept = _unchecked(_read(path) or b"")
            if kept is not None:
                yield msgpack.unpackb(kept)[0]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, name: str) -> Path:
        return self.folder / blake2b(name.encode(), digest_size=_CHECK_BYTES).hexdigest()


def write(path: Path, data: bytes, is_synced: bool = False) -> None:
    """Puts a file there in one rename; nobody else may read it. is_synced: it is on the disk when this returns."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    os.replace(part, path)
    if is_synced:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Brings a rename to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_status(status: dict[str, Any]) -> bool:
    """Whether what the node reads of a status is of its kind; people's parts may be anything."""
    stood = status.get("stands_at", {})
    digests = [
        status.get("digest", ""),
        status.get("weights", ""),
        *(stood.values() if isinstance(stood, dict) else [0]),
    ]
    return all(isinstance(text, str) and re.fullmatch(r"([0-9a-f]{2})*", text) for text in digests)


def _read(path: Path, since: int = 0) -> bytes | None:
    try:
        with open(path, "rb") as file:
            file.seek(since)
            return file.read()
    except FileNotFoundError:
        return None


def _checked(content: bytes) -> bytes:
    """Length, checksum and content."""
    return len(content).to_bytes(4, "big") + blake2b(content, digest_size=_CHECK_BYTES).digest() + content


def _unchecked(body: bytes) -> bytes | None:
    """The content after its checksum, None where they do not belong together."""
    check, content = body[:_CHECK_BYTES], body[_CHECK_BYTES:]
    return content if blake2b(content, digest_size=_CHECK_BYTES).digest() == check else None
