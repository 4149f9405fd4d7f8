"""The engine over a Flower Grid: nodes on other machines, or simulated ones; the same rounds as in one process.

A node is greeted with the run and says what it has, whom it serves and where each of these stands; one whose base,
space, dtype, labels, noise, messages or inputs differ is refused, with both values. Before a round the engine waits
until `federation.min_replies` clients of the cohort can be reached, or as many as a secure sum needs; who joins later
is told the rounds before, or sent the weights. In a round each node gets one message with the orders of its clients.
A node that is not there when the round begins is left out of it; one that is, is waited for: until the deadline, or for
as long as it takes where there is none or fewer than these have answered. Who is left out is named. At the end all
nodes are brought to the last state, and their digests compared with the server's.

Not here: how a message is sent again (`flower_post`), what a node does (`node`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flwr.serverapp import Grid

from .. import errors
from ..assembly import Experiment
from ..config import Recipe
from ..errors import EngineError, SeedtuneError
from ..fed.hello import (
    Hello,
    Standing,
    decode_finished,
    decode_standing,
    differences,
    encode_finish,
    encode_hello,
    facts_of,
)
from ..fed.messages import pack_weights
from ..fed.participation import cohort_of, drops_out
from ..fed.rounds import AHEAD, ExchangeProtocol, Server
from ..foreign_text import MOST_REASON, sanitize
from ..pinned_inputs import share_inputs
from ..privacy.sum_plan import quorum
from .flower_post import Outcome, Post
from .frames import NODE, Parcel
from .node import UNKNOWN_RUN

Say = Callable[[str], None]


@dataclass(frozen=True)
class Waiting:
    """Seconds, none of which change a result unless a client is left out.

    patience: before the first round, for clients beyond `min_replies`. resend: of silence, until a message is sent
    again. finish: for nodes to come to the end of the run. look: between two looks for new nodes. greet_again: until
    one that was refused is asked once more. poll: between two looks for answers, at first and at most.
    num_nodes: how many nodes there will be, all at once, as in a simulation; 0: they come and go.
    """

    patience: float = 30.0
    resend: float = 120.0
    finish: float = 60.0
    look: float = 1.0
    greet_again: float = 60.0
    remind: float = 60.0
    poll: tuple[float, float] = (0.02, 1.0)
    num_nodes: int = 0


@dataclass(frozen=True)
class _Guest:
    """A node that takes part. clients: those it serves."""

    label: str
    clients: tuple[int, ...]


class FlowerGrid:
    """`hello`: what nodes are greeted with. `check` raises where the engine underneath has stopped. All times are
    `clock`'s; `sleep` passes them."""

    def __init__(
        self,
        grid: Grid,
        recipe: Recipe,
        hello: Hello,
        say: Say,
        waiting: Waiting | None = None,
        name: str = "flower",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ):
        self.name = name
        self._grid, self._recipe, self._hello, self._say = grid, recipe, hello, say
        self._waiting, self._clock, self._sleep, self._check = waiting or Waiting(), clock, sleep, check
        self._run, self._hello_bytes, self._is_closed = (
            hello.run.hex(),
            encode_hello(hello),
            self._waiting.num_nodes > 0,
        )
        self._greetings = Post(grid, self._waiting.resend, clock=clock)
        self._started, self._looked = clock(), -float("inf")
        self._online: dict[int, str] = {}
        self._guests: dict[int, _Guest] = {}
        self._node_of: dict[int, int] = {}
        self._refused: dict[int, tuple[str, float]] = {}
        self._told: dict[int, bytes] = {}
        self._num_bytes = {"hello": 0, "finish": 0}

    def gather(self, server: Server) -> Server:
        """
        Raises:
            EngineError: too few clients can be reached, and no more nodes will come.
        """
        cohort = cohort_of(server.recipe, server.round, server.secret)
        present = {client for client in cohort if not drops_out(server.recipe, server.round, client)}
        needed = quorum(server.recipe)
        if len(present) >= needed:
            self._wait_for(present, needed, f"round {server.round}")
        places = self._places(server)
        return replace(server, up_to_date={**server.up_to_date, **places}) if places else server

    def exchange(self, messages: Mapping[int, bytes]) -> Iterator[tuple[int, bytes | Exception]]:
        """Answers as they come; for whoever cannot be reached, or is late, an error that says so."""
        reachable = self._reachable()
        of_node: dict[int, list[int]] = {}
        for client in messages:
            if client in reachable:
                of_node.setdefault(self._node_of[client], []).append(client)
            else:
                yield client, EngineError(f"no node that serves client {client} can be reached")
        yield from self._exchange(messages, of_node)

    def finish(self, server: Server, protocol: ExchangeProtocol) -> dict[str, Any]:
        """Tells every node that can be reached the end of the run, and compares where it came to."""
        self._wait_for(set(range(self._recipe.partition.num_clients)), 0, "the end of the run")
        server = replace(server, up_to_date={**server.up_to_date, **self._places(server)})
        post, expected, found = Post(self._grid, self._waiting.resend, clock=self._clock), server.replica.digest, {}
        for node in [node for node in self._guests if node in self._online]:
            post.send(node, partial(self._last_parcel, server, protocol, node))
        for node, outcome in self._answers_of(post, self._clock() + self._waiting.finish, lambda: True):
            label = self._guests[node].label
            try:
                found[label] = decode_finished(answer := _only(outcome))
                self._num_bytes["finish"] += len(answer)
            except SeedtuneError as error:
                self._say(f"{label} did not come to the end of the run: {error}")
        for node in post.underway:
            self._say(f"{self._guests[node].label} did not come to the end of the run in {self._waiting.finish:g} s")
        for label, digest in found.items():
            if digest != expected:
                self._say(f"{label} ended with the digest {digest.hex()}, the server's is {expected.hex()}")
        return {
            "nodes": len(self._guests), "nodes_at_the_end": sum(digest == expected for digest in found.values()),
            "node_digests": {label: digest.hex() for label, digest in sorted(found.items())},
            "nodes_refused": {self._label(node): reason for node, (reason, _) in self._refused.items()},
            "bytes_hello": self._num_bytes["hello"], "bytes_finish": self._num_bytes["finish"],
        }  # fmt: skip

    def _exchange(
        self, messages: Mapping[int, bytes], of_node: Mapping[int, list[int]]
    ) -> Iterator[tuple[int, bytes | Exception]]:
        limit = self._recipe.federation.deadline_seconds
        post = Post(self._grid, self._waiting.resend, limit and max(60.0, limit), self._clock)
        for node, clients in of_node.items():
            post.send(node, partial(self._parcel, messages, clients))
        num_answered = 0

        def enough() -> bool:
            return num_answered >= quorum(self._recipe)

        deadline = self._clock() + limit if limit else float("inf")
        for node, outcome in self._answers_of(post, deadline, enough):
            answers = list(_each(outcome, len(of_node[node])))
            num_answered += sum(isinstance(answer, bytes) for answer in answers)
            if any(UNKNOWN_RUN in str(answer) for answer in answers if isinstance(answer, Exception)):
                self._dismiss(node)
                self._say(f"{self._label(node)} has lost its state and is greeted again")
            yield from zip(of_node[node], answers, strict=True)
        for node in post.underway:
            reason = post.forget(node)
            late = EngineError(
                f"{self._label(node)} has not answered in {limit:g} s" + (f": {reason}" if reason else "")
            )
            yield from ((client, late) for client in of_node[node])

    def _answers_of(self, post: Post, deadline: float, enough: Callable[[], bool]) -> Iterator[tuple[int, Outcome]]:
        """Until all are there, or the deadline has passed and there are enough. New nodes are greeted meanwhile."""
        pause, remind = self._waiting.poll[0], self._clock() + self._waiting.remind
        while post.underway:
            came = False
            for node, outcome in post.arrived():
                came = True
                yield node, outcome
            if not post.underway or (self._clock() >= deadline and enough()):
                return
            self._welcome()
            if self._clock() >= remind:
                names = ", ".join(self._label(node) for node in post.underway)
                self._say(f"still waiting for {names}")
                remind = self._clock() + self._waiting.remind
            pause = self._waiting.poll[0] if came else min(1.5 * pause, self._waiting.poll[1])
            self._sleep(pause)

    def _wait_for(self, wanted: set[int], needed: int, what: str) -> None:
        """Until `needed` of the clients wanted can be reached; before the first round with patience for all of them."""
        pause, remind = self._waiting.poll[0], self._clock()
        while True:
            self._welcome()
            there = len(wanted & self._reachable())
            is_patient = self._clock() < self._started + self._waiting.patience or self._is_closed
            may_come = not self._is_closed or self._greetings.underway or len(self._online) < self._waiting.num_nodes
            if there == len(wanted) or (there >= needed and not (is_patient and may_come)):
                return
            if there < needed and not may_come:
                reasons = "; ".join(sorted({reason for reason, _ in self._refused.values()})) or "no node serves more"
                raise EngineError(f"{what}: {there} clients can be reached, {needed} are needed: {reasons}")
            if self._clock() >= remind and not self._is_closed:
                self._say(f"{what} waits for nodes: {there} of {len(wanted)} clients can be reached, {needed} needed")
                remind = self._clock() + self._waiting.remind
            self._sleep(pause)
            pause = min(1.5 * pause, self._waiting.poll[1])

    def _welcome(self) -> None:
        """Greets nodes that are new, and takes in those that have answered. Waits for nothing."""
        self._check()
        now = self._clock()
        if now >= self._looked + self._waiting.look:
            self._looked = now
            names = {info.node_id: sanitize(info.name or "", 60) for info in self._grid.get_nodes()}
            self._online = {node: name or f"node {node}" for node, name in names.items()}
        for node in self._online:
            refused_at = self._refused.get(node, ("", -float("inf")))[1]
            is_new = node not in self._guests and node not in self._greetings.underway
            if is_new and now >= refused_at + self._waiting.greet_again:
                self._num_bytes["hello"] += len(self._hello_bytes)
                self._greetings.send(node, lambda: Parcel(self._run, (NODE,), (self._hello_bytes,)))
        for node, outcome in self._greetings.arrived():
            try:
                standing = decode_standing(answer := _only(outcome))
                self._num_bytes["hello"] += len(answer)
                self._admit(node, standing)
            except SeedtuneError as error:
                if self._refused.get(node, ("",))[0] != str(error):
                    self._say(f"{self._label(node)} cannot take part: {error}")
                self._refused[node] = str(error), now

    def _admit(self, node: int, standing: Standing) -> None:
        """
        Raises:
            EngineError: a node that differs from the run, or that claims a client which is another's.
        """
        if different := differences(self._hello.facts, standing.facts):
            raise EngineError(different)
        count, clients = self._recipe.partition.num_clients, tuple(standing.num_examples)
        if not clients or clients[-1] >= count:
            raise EngineError(f"it serves {_ranges(clients)}: the run has clients 0 to {count - 1}")
        taken = {client: self._node_of[client] for client in clients if client in self._node_of}
        if held := {client: other for client, other in taken.items() if other in self._online and other != node}:
            client, other = next(iter(held.items()))
            raise EngineError(f"it claims client {client}, whom {self._label(other)} serves already")
        for other in set(taken.values()):
            self._dismiss(other)
        self._refused.pop(node, None)
        self._guests[node] = _Guest(self._label(node), clients)
        self._node_of |= dict.fromkeys(clients, node)
        self._told |= standing.stands_at
        if not self._is_closed:
            self._say(f"{self._label(node)} takes part with {_ranges(clients)} ({sanitize(standing.software)})")

    def _places(self, server: Server) -> dict[int, int]:
        """Where the clients that nodes have spoken of since it was last asked stand in the server's log."""
        place = {record.digest: i + 1 for i, record in enumerate(server.log)}
        places = {client: place.get(at, AHEAD) if at else 0 for client, at in self._told.items()}
        self._told.clear()
        return places

    def _parcel(self, messages: Mapping[int, bytes], clients: Sequence[int]) -> Parcel:
        return Parcel(self._run, tuple(clients), tuple(messages[client] for client in clients))

    def _last_parcel(self, server: Server, protocol: ExchangeProtocol, node: int) -> Parcel:
        """To one of the node's clients, one that has missed least: its replica is all its clients'."""
        client = max(self._guests[node].clients, key=lambda client: server.up_to_date.get(client, 0))
        data = encode_finish(replace(protocol.order(server, client), rate=1.0))
        self._num_bytes["finish"] += len(data)
        return Parcel(self._run, (NODE,), (data,))

    def _reachable(self) -> set[int]:
        return {client for client, node in self._node_of.items() if node in self._online}

    def _dismiss(self, node: int) -> None:
        guest = self._guests.pop(node, None)
        for client in guest.clients if guest else ():
            self._node_of.pop(client, None)

    def _label(self, node: int) -> str:
        return self._online.get(node) or (self._guests[node].label if node in self._guests else f"node {node}")


def hello_of(experiment: Experiment, run: bytes) -> Hello:
    """What nodes are greeted with. run: the run's id, 16 bytes."""
    header, task = experiment.header, experiment.task
    initial = pack_weights(header.initial) if header.initial else b""
    shared = share_inputs(experiment.recipe, header.inputs)
    facts = facts_of(header, experiment.space, task.label_names, shared)
    return Hello(run, experiment.recipe.model_dump_json(), facts, initial)


def _only(outcome: Outcome) -> bytes:
    """
    Raises:
        SeedtuneError: what went wrong.
    """
    (answer,) = _each(outcome, 1)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _each(outcome: Outcome, count: int) -> Iterator[bytes | Exception]:
    """One answer a message; the same error for each where the parcel itself failed."""
    if isinstance(outcome, Exception):
        yield from [outcome] * count
        return
    for message, error in zip(outcome.messages, outcome.errors, strict=True):
        yield _error(error) if error else message


def _error(text: str) -> SeedtuneError:
    """An error of a node as one of ours: of its own class where that is one."""
    name, _, reason = sanitize(text, MOST_REASON).partition(": ")
    kind: Any = getattr(errors, name, None)
    is_ours = isinstance(kind, type) and issubclass(kind, SeedtuneError)
    return kind(reason) if is_ours else EngineError(sanitize(text, MOST_REASON))


def _ranges(clients: tuple[int, ...]) -> str:
    """
    >>> _ranges((0, 1, 2, 5))
    'clients 0-2, 5'
    """
    parts: list[list[int]] = []
    for client in clients:
        if parts and client == parts[-1][-1] + 1:
            parts[-1][1:] = [client]
        else:
            parts.append([client])
    return "clients " + ", ".join("-".join(map(str, part)) for part in parts) if parts else "no clients"
