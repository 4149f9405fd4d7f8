"""How a run begins and ends on a node: hello and where it stands, finish and where it came to.

    hello      down   the run, its recipe and what a node must share with it
    standing   up     what the node has of it, and where each client that it serves stands
    finish     down   what leads to the end of the run
    finished   up     the digest of the weights that the node then holds

A node whose base, tuned space, dtype, labels, noise, messages or inputs (`pinned_inputs`) are others than the run's is
refused: `differences` names both. Everything is checked as it is decoded. A recipe is data: nothing of it is executed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..foreign_text import MOST_MESSAGE, quote, sanitize
from ..pinned_inputs import EXAMPLES, Inputs
from ..space import DIGEST_BYTES, Space
from ..zo.trajectory import Header
from .messages import Order, decode_order, encode_order
from .recipe_limits import MOST_CHARACTERS
from .wire import VERSION, array_of, check, fields_of, packed

HELLO, STANDING, FINISH, FINISHED = 2, 3, 4, 5
RUN_BYTES = 16
_MOST_FACTS = 64
_LONGEST_TEXT, _LONGEST_FACT = 2**20, 2**16

Facts = Mapping[str, str]
"""What a node and a run must have in common, by name."""


@dataclass(frozen=True)
class Hello:
    """What a node needs to take part.

    run: id of the run, 16 bytes. recipe: JSON (`config.Recipe`), resolved. facts: the server's own. initial: packed
    weights of a fresh head's start (`Header.initial`), empty where there is none.
    """

    run: bytes
    recipe: str
    facts: Facts
    initial: bytes = b""


@dataclass(frozen=True)
class Standing:
    """What a node says of itself.

    facts: its own. num_examples: by client that it serves, sorted. stands_at: by client, the digest of the weights that
    it last stood at; empty bytes: the base. software: versions, for people.
    """

    facts: Facts
    num_examples: Mapping[int, int]
    stands_at: Mapping[int, bytes] = field(default_factory=dict)
    software: str = ""


def facts_of(header: Header, space: Space, labels: tuple[str, ...], inputs: Inputs | None = None) -> Facts:
    """The facts of one side, from its own model and task; `inputs`: those that nodes can check (`pinned_inputs`)."""
    return {
        "message format": str(VERSION),
        "noise version": str(header.noise_version),
        "base digest": header.base_digest,
        "tuned space": space.fingerprint,
        "dtype": "+".join(sorted({spec.dtype for spec in space.tensors})),
        "labels": ", ".join(labels),
        "split": "" if header.split is None else str(header.split),
        **(inputs or {}),
    }


def differences(run: Facts, node: Facts) -> str:
    """Every fact in which a node differs from a run, with both values; empty where there is none.

    A node that has examples of its own says nothing of the run's.
    """
    silent = {name for name in EXAMPLES if name not in node}
    names = [name for name in {**run, **node} if run.get(name) != node.get(name) and name not in silent]
    pairs = ((sanitize(name, 60), quote(node.get(name)), quote(run.get(name))) for name in names)
    each = (f"its {name} is {its}, the run's is {ours}" for name, its, ours in pairs)
    return sanitize("; ".join(each), MOST_MESSAGE)


def encode_hello(hello: Hello) -> bytes:
    return packed(HELLO, [hello.run, hello.recipe, _packed_facts(hello.facts), hello.initial])


def decode_hello(data: bytes) -> Hello:
    """
    Raises:
        MessageError: not a hello of this version, or a field out of its range.
    """
    run, recipe, facts, initial = fields_of(data, HELLO, 4)
    check(isinstance(run, bytes) and len(run) == RUN_BYTES, f"a run's id has {RUN_BYTES} bytes")
    short = isinstance(recipe, str) and len(recipe) <= MOST_CHARACTERS
    check(short, f"a hello's recipe is a text of at most {MOST_CHARACTERS} characters")
    check(isinstance(initial, bytes), "a head's start comes as bytes")
    return Hello(run, recipe, _facts(facts), initial)


def encode_standing(standing: Standing) -> bytes:
    clients = sorted(standing.num_examples)
    counts = np.array([standing.num_examples[client] for client in clients], "<i8").tobytes()
    at = [standing.stands_at.get(client, b"") for client in clients]
    places = sorted(set(at))
    where = np.array([places.index(place) for place in at], "<i4").tobytes()
    numbers = np.array(clients, "<i4").tobytes()
    return packed(
        STANDING, [_packed_facts(standing.facts), numbers, counts, b"".join(places), where, standing.software]
    )


def decode_standing(data: bytes) -> Standing:
    """
    Raises:
        MessageError: not a standing of this version, or a field out of its range.
    """
    facts, numbers, counts, places, where, software = fields_of(data, STANDING, 6)
    check(isinstance(numbers, bytes) and len(numbers) % 4 == 0, "clients are 4-byte numbers")
    size = len(numbers) // 4
    clients = np.frombuffer(numbers, "<i4").tolist()
    check(clients == sorted(set(clients)) and min(clients, default=0) >= 0, "clients are sorted counts")
    examples = array_of(counts, "<i8", (size,), "a node's numbers of examples").tolist()
    check(all(0 <= count < 2**31 for count in examples), "numbers of examples are counts")
    index = array_of(where, "<i4", (size,), "a node's places").tolist()
    check(isinstance(places, bytes) and len(places) % DIGEST_BYTES == 0, f"a digest has {DIGEST_BYTES} bytes")
    known = [places[i : i + DIGEST_BYTES] for i in range(0, len(places), DIGEST_BYTES)]
    at_base = len(set(index)) - len(known)  # the empty place, sorted first, where a client stands at the base
    check(
        at_base in (0, 1) and set(index) == set(range(len(known) + at_base)), "places are those that clients stand at"
    )
    known = [b""] * at_base + known
    check(isinstance(software, str) and len(software) <= _LONGEST_TEXT, "a node's software is a text")
    stands_at = {client: known[i] for client, i in zip(clients, index, strict=True)}
    return Standing(_facts(facts), dict(zip(clients, examples, strict=True)), stands_at, software)


def encode_finish(order: Order) -> bytes:
    """`order`: as for a round after the last, to the client through which the node is told; its rate means nothing."""
    return packed(FINISH, [encode_order(order)])


def decode_finish(data: bytes) -> Order:
    """
    Raises:
        MessageError: not a finish of this version, or what it holds is no order.
    """
    (order,) = fields_of(data, FINISH, 1)
    check(isinstance(order, bytes), "a finish holds an order")
    return decode_order(order)


def encode_finished(digest: bytes) -> bytes:
    return packed(FINISHED, [digest])


def decode_finished(data: bytes) -> bytes:
    """The digest of the weights that a node ended with.

    Raises:
        MessageError: not a finished of this version.
    """
    (digest,) = fields_of(data, FINISHED, 1)
    check(isinstance(digest, bytes) and len(digest) == DIGEST_BYTES, f"a digest has {DIGEST_BYTES} bytes")
    return digest


def _packed_facts(facts: Facts) -> list[str]:
    return [text for pair in facts.items() for text in pair]


def _facts(texts: Any) -> Facts:
    given = isinstance(texts, list) and len(texts) % 2 == 0 and len(texts) <= 2 * _MOST_FACTS
    short = given and all(isinstance(text, str) and len(text) <= _LONGEST_FACT for text in texts)
    check(short, f"facts are names and texts of at most {_LONGEST_FACT} characters")
    names = texts[::2]
    check(len(set(names)) == len(names), "each fact is there once")
    return dict(zip(names, texts[1::2], strict=True))
