"""What clients answer to the messages that reach their site, whatever kind these are and whoever carried them.

The one way in: in-process, in simulation and on a node, a message is answered by the same function. A kind of message
says in `HANDLERS` who answers it. Nothing here moves bytes between machines.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TypeVar

from ..errors import MessageError
from ..privacy.sum_plan import check_installed
from .client import Site
from .cohort import Cohort
from .messages import ORDER, Order, decode_order, encode_reply
from .order_rules import check_order
from .secure_messages import BUNDLE
from .wire import kind_of

Given = TypeVar("Given")
Made = TypeVar("Made")

Answer = tuple[int, bytes | Exception]
Handler = Callable[[Iterable[tuple[int, bytes]]], Iterator[Answer]]
"""Answers messages of one kind, each with the client that it is for, as they come; an error is an answer."""

Memory = MutableMapping[str, bytes]
"""What clients must still know when the next message comes, be it after a restart: on a node it is on disk, readable by
nobody else; elsewhere a dictionary. Clients share it, so a name in it has the client's number."""


class Answering:
    """The clients of one site, exchange after exchange."""

    def __init__(self, site: Site, memory: Memory | None = None):
        memory = {} if memory is None else memory
        self._handlers = {kind: made_for(site, memory) for kind, made_for in HANDLERS.items()}

    def answers(self, messages: Mapping[int, bytes]) -> Iterator[Answer]:
        """For each client its answer, or what went wrong with it, whatever it is; messages are taken as needed."""
        for kind, together in groupby(messages.items(), lambda message: attempted(kind_of, message[1])):
            yield from self._handler(kind)(together)

    def _handler(self, kind: int | Exception) -> Handler:
        if kind in self._handlers:
            return self._handlers[kind]
        error = kind if isinstance(kind, Exception) else MessageError(f"no client answers messages of kind {kind}")
        return lambda messages: ((client, error) for client, _ in messages)


def orders(site: Site, memory: Memory) -> Handler:
    """Local rounds, one after another or side by side (`cohort`)."""
    cohort = Cohort(_remembering(site, memory))

    def answer(messages: Iterable[tuple[int, bytes]]) -> Iterator[Answer]:
        decoded = ((client, attempted(partial(_open_order, site, client), order)) for client, order in messages)
        for client, reply in cohort.replies(decoded):
            yield client, reply if isinstance(reply, Exception) else attempted(encode_reply, reply)

    return answer


def _remembering(site: Site, memory: Memory) -> Site:
    """What private clients remember is in the memory."""
    return replace(site, private=replace(site.private, memory=memory)) if site.private else site


def _open_order(site: Site, client: int, data: bytes) -> Order:
    """An order that a client may answer without a mask.

    Raises:
        MessageError: not where the recipe has secure sums, nor on a node that was given the roster of a secure sum; or
            an order that the recipe cannot have led to.
    """
    if site.recipe.secure_sum.enabled or (site.credentials and site.credentials.roster is not None):
        raise MessageError(
            "what is learned here leaves in secure sums only: set secure_sum.enabled, for all of the run"
        )
    order = decode_order(data)
    if order.client != client:
        raise MessageError(f"an order for client {order.client} came for client {client}")
    check_order(site.recipe, site.perturber.space, order)
    return order


def secure_sums(site: Site, memory: Memory) -> Handler:
    """Parts in sums (`secure_client`), whose libraries are imported with the first message."""
    site = _remembering(site, memory)
    in_this_process: dict[str, bytes] = {}

    def answer(client: int, bundle: bytes) -> bytes:
        check_installed()
        from .secure_client import SecureClient

        kept = memory if site.credentials is None else in_this_process  # never on a node's disk
        return SecureClient(site, client, kept, site.credentials, answered=memory).answers(bundle)

    return one_by_one(answer)


def one_by_one(answer: Callable[[int, bytes], bytes]) -> Handler:
    """The handler for a kind whose messages have nothing to do with one another; `answer` takes client and message."""
    return lambda messages: ((client, attempted(partial(answer, client), data)) for client, data in messages)


def attempted(call: Callable[[Given], Made], given: Given) -> Made | Exception:
    """What a call gives, or what it raises."""
    try:
        return call(given)
    except Exception as error:
        return error


HANDLERS: Mapping[int, Callable[[Site, Memory], Handler]] = {ORDER: orders, BUNDLE: secure_sums}
"""By kind, what makes the handler of a site. What a handler must keep between messages it keeps in the memory."""
