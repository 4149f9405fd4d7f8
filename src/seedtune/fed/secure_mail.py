"""Bundles to clients and their answers back, counted: what a round asks now and, in the same messages, for the next."""

from collections.abc import Callable, Collection, Iterator, Mapping

from ..errors import EngineError, MessageError
from .secure_messages import decode_answers, encode_bundle
from .server import Engine

Requests = Mapping[int, Callable[[], bytes]]
"""By client, what makes its request when it is carried."""


class Mail:
    """What one round sends. `bytes_down` and `bytes_up` are those of the encoded bundles so far."""

    def __init__(self, engine: Engine):
        self._engine, self.bytes_down, self.bytes_up = engine, 0, 0

    def exchange(self, *streams: Requests) -> Iterator[tuple[int, int, bytes | Exception]]:
        """For each request the number of its stream, its client, and the answer or what went wrong, as they come.

        A client that has requests in several streams gets one bundle; one that does not answer, or answers otherwise
        than it was asked, has an error in each. What nobody asked for, or comes twice, is passed over.
        """
        bundles = _Bundles(streams, self)
        missing = dict.fromkeys(bundles)
        for client, answer in self._engine.exchange(bundles) if missing else ():
            if client in missing:
                del missing[client]
                for place, given in zip(bundles.places(client), self._opened(answer, bundles, client), strict=True):
                    yield place, client, given
        for client in missing:
            yield from ((place, client, EngineError("no answer")) for place in bundles.places(client))

    def _opened(self, answer: bytes | Exception, bundles: "_Bundles", client: int) -> list[bytes | Exception]:
        expected = len(bundles.places(client))
        if isinstance(answer, Exception):
            return [answer] * expected
        self.bytes_up += len(answer)
        try:
            answers = decode_answers(answer)
        except MessageError as error:
            return [error] * expected
        if len(answers) != expected:
            return [MessageError(f"client {client} gave {len(answers)} answers to {expected} requests")] * expected
        return answers


class _Bundles(Mapping[int, bytes]):
    """The bundle of each client, made when it is carried."""

    def __init__(self, streams: Collection[Requests], mail: Mail):
        self._streams, self._mail = streams, mail
        self._clients = dict.fromkeys(client for stream in streams for client in stream)

    def places(self, client: int) -> list[int]:
        """The streams that have a request for it."""
        return [place for place, stream in enumerate(self._streams) if client in stream]

    def __getitem__(self, client: int) -> bytes:
        if client not in self._clients:
            raise KeyError(client)
        bundle = encode_bundle([stream[client]() for stream in self._streams if client in stream])
        self._mail.bytes_down += len(bundle)
        return bundle

    def __iter__(self) -> Iterator[int]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)
