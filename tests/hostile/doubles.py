"""A server and clients that keep to no rule: what they send, through which engine, and what came back.

`MODES` are exchanges under each kind of privacy, `ORDERS` what a hostile server makes of a right order, `ANSWERS` what
a hostile client makes of a right answer. `Asked` is the victim's side of an engine: clients that answer messages.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import small_federation
import torch
from small_federation import examples, protocol, recipe, server, site

from seedtune.config import Recipe
from seedtune.engines.bench import Benches, Options
from seedtune.engines.frames import NODE, Parcel
from seedtune.engines.in_process import InProcess
from seedtune.engines.node import Node
from seedtune.engines.node_state import NodeState
from seedtune.fed import secure_messages as sm
from seedtune.fed.hello import Hello, encode_hello, facts_of
from seedtune.fed.messages import Order, encode_order, pack_record, pack_weights
from seedtune.recipe_text import merged
from seedtune.space import digest
from seedtune.zo.trajectory import RoundRecord

RUN, SESSION = bytes(range(16)), bytes(range(16, 32))
EQUAL = {"weighting": "equal", "num_rounds": 9}
SCALARS = {"federation": {**EQUAL, "keys": "shared", "local_steps": 2}}
VOTES = merged(SCALARS, {"federation": {"aggregation": "sign-vote"}})
WEIGHTS = {"federation": {**EQUAL, "upload": "weights", "local_steps": 2}}
SECURE = {"secure_sum": {"enabled": True}}


def private(noise: str) -> dict:
    return {"privacy": {"unit": "client", "noise": noise, "noise_multiplier": 4.0}}


MODES: dict[str, dict] = {
    "scalars, none": SCALARS,
    "scalars, local": merged(SCALARS, private("local")),
    "scalars, central": merged(SCALARS, private("central")),
    "scalars, secure": merged(SCALARS, SECURE),
    "scalars, local and secure": merged(SCALARS, merged(private("local"), SECURE)),
    "scalars, shares": merged(SCALARS, merged(private("shares"), SECURE)),
    "votes, none": VOTES,
    "votes, secure": merged(VOTES, SECURE),
    "weights, none": WEIGHTS,
    "weights, secure": merged(WEIGHTS, SECURE),
}


def told_of(mode: str) -> Recipe:
    return recipe(**MODES[mode])


def record(shape: tuple[int, ...], round_: int = 0) -> bytes:
    scalars = np.ones(shape, np.float32)
    return pack_record(RoundRecord(round_, (0,), scalars, np.ones(len(scalars)), bytes(16)))


def huge(order: Order, at) -> Order:
    """Weights that are finite and compute nothing."""
    weights = {name: torch.full_like(held, 3e38) for name, held in at.replica.weights.items()}
    return replace(order, weights=pack_weights(weights), digest=digest(weights), missed=())


ORDERS: dict[str, Callable] = {
    "a rate of next to nothing": lambda order, at: replace(order, rate=1e-30),
    "a rate beyond everything": lambda order, at: replace(order, rate=1e30),
    "another rate by a little": lambda order, at: replace(order, rate=order.rate * 1.001),
    "a ratio of rates": lambda order, at: replace(order, rate_ratio=2.0),
    "a state that is nobody's": lambda order, at: replace(order, digest=b"x" * 16, weights=b""),
    "weights that compute nothing": huge,
    "weights of another model": lambda order, at: replace(
        order, weights=pack_weights({"a": torch.zeros(2)}), digest=bytes(16)
    ),
    "weights of absurd size": lambda order, at: replace(order, weights=bytes(2**22), digest=bytes(16)),
    "a round after the last": lambda order, at: replace(order, round=9),
    "more rounds missed than there were": lambda order, at: replace(order, missed=(record((1, 2, 2)),) * 10),
    "a round of absurd size": lambda order, at: replace(
        order, round=1, missed=(record((1, 1_000, 1_000)),), digest=b"y" * 16, weights=b""
    ),
    "a round of another shape": lambda order, at: replace(
        order, round=1, missed=(record((1, 2, 64)),), digest=b"y" * 16, weights=b""
    ),
    "a round that is none": lambda order, at: replace(order, round=1, missed=(b"\xc1",), digest=b"y" * 16, weights=b""),
    "an order for another client": lambda order, at: replace(order, client=3),
}
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[:-3],
    "deep": lambda data: b"\x91" * 10_000,
    "another version": lambda data: msgpack.packb([1, *msgpack.unpackb(data)[1:]]),
    "another kind": lambda data: msgpack.packb([3, 77, 1]),
    "a flood of items": lambda data: b"\xdd\xff\xff\xff\xff" + data,
    "nothing": lambda data: b"",
}


class Asked:
    """Clients behind an engine that is played in this process. `texts`: all errors that came back so far."""

    def __init__(self, settings: Recipe, engine: str, folder: Path, data: Callable = examples):
        self.settings, self.texts = settings, []
        self.at = site(settings, data=data)
        if engine == "in-process":
            self._exchange = InProcess(self.at).exchange
        else:
            make = lambda given, machine, initial=None, own=None: small_federation.without_a_model(  # noqa: E731
                given, site=site(given, data=data)
            )
            self.node = Node(NodeState(folder), Options(), Benches(make))
            self.greet()
            self._exchange = self._over_the_node

    def greet(self, **changed) -> str:
        """The error of a hello, empty where the node takes part."""
        facts = facts_of(self.at.header, self.at.perturber.space, ("down", "up"))
        hello = replace(Hello(RUN, self.settings.model_dump_json(), facts), **changed)
        return self.node.answers(Parcel(hello.run.hex(), (NODE,), (encode_hello(hello),))).errors[0]

    def exchange(self, messages: Mapping[int, bytes]) -> dict[int, bytes | Exception]:
        found = dict(self._exchange(messages))
        self.texts += [f"{type(a).__name__}: {a}" for a in found.values() if isinstance(a, Exception)]
        return found

    def _over_the_node(self, messages):
        answered = self.node.answers(Parcel(RUN.hex(), tuple(messages), tuple(messages.values())))
        for client, answer, error in zip(messages, answered.messages, answered.errors, strict=True):
            yield client, sm.error_from(error) if error else answer

    def order(self, client: int) -> Order:
        return protocol(self.settings).order(server(site(self.settings)), client)

    def answer(self, message: bytes, client: int = 0) -> bytes | Exception:
        """What one client answers; in a run of secure sums, to an order in a sum of all of them."""
        if not self.settings.secure_sum.enabled:
            return self.exchange({client: message})[client]
        return self.masked({client: message})[client]

    def masked(self, orders: Mapping[int, bytes], session: bytes = SESSION) -> dict[int, bytes | Exception]:
        """The masked replies of some clients, in a sum for which all four dealt shares."""
        self.keys = {c: sm.decode_keys(a) for c, a in self._each(
            {c: sm.encode_key_request(sm.KeyRequest(session, 0, True)) for c in range(4)}).items()}  # fmt: skip
        roster = sm.RosterMessage(session, {c: k.mask for c, k in self.keys.items()},
                                  tuple(k.card for k in self.keys.values()))  # fmt: skip
        dealt = self._each(dict.fromkeys(range(4), sm.encode_roster(roster)))
        self.sealed = {c: sm.decode_shares(a).sealed for c, a in dealt.items()}
        requests = {
            c: sm.packed(sm.MASKED_ORDER, [session, order, *sm._columns(
                {d: boxes[c] for d, boxes in self.sealed.items() if d != c})])
            for c, order in orders.items()
        }  # fmt: skip
        return self._each(requests)

    def revealed(self, survivors, session: bytes = SESSION) -> dict[int, Mapping[int, bytes]]:
        request = sm.encode_unmask_request(sm.UnmaskRequest(session, tuple(survivors)))
        return {c: sm.decode_unmasked(a).shares for c, a in self._each(dict.fromkeys(survivors, request)).items()}

    def _each(self, requests: Mapping[int, bytes]) -> dict[int, bytes | Exception]:
        bundles = {client: sm.encode_bundle([request]) for client, request in requests.items()}
        found = {}
        for client, answer in self.exchange(bundles).items():
            found[client] = answer if isinstance(answer, Exception) else sm.decode_answers(answer)[0]
        self.texts += [f"{type(a).__name__}: {a}" for a in found.values() if isinstance(a, Exception)]
        return found


def encoded(order: Order) -> bytes:
    return encode_order(order)
