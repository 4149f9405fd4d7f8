"""A node: clients that live on one machine, where they stand, and their answers to the messages that reach it.

Takes parcels (`frames`), whoever brought them, and answers every message in them: hello and finish itself, all others
as any site does (`fed.answering`). The node has one replica for all of its clients, an order tells what *one* of them
missed, and a restart loses what was in memory: so every record is kept with the state it starts from (`fed.chain`,
`node_state`), and the replica finds its way from wherever it stands to the digest that an order names.

Guarantee: a message that comes twice is answered by the same bytes and computed once, also across a restart. Nothing
here opens a socket.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

from .. import assembly
from ..errors import ConfigError, DigestMismatch, EngineError, MessageError, TrajectoryError
from ..fed.answering import attempted
from ..fed.chain import Chain
from ..fed.hello import FINISH, HELLO, Hello, Standing, decode_finish, decode_hello, encode_finished, encode_standing
from ..fed.messages import ORDER, Order, decode_order, unpack_weights
from ..fed.order_rules import check_order, check_sent_weights, unpacked_records
from ..fed.secure_messages import BUNDLE, orders_in
from ..fed.wire import kind_of
from ..foreign_text import describe
from ..space import copy_into, digest
from ..zo import kernels
from ..zo.trajectory import check_digest, round_updates
from ..zo.update import apply
from .bench import Bench, Benches, Options, served
from .frames import NODE, Answered, Parcel
from .node_ledger import LEDGER, Entry, NodeLedger
from .node_state import NodeState

_LONGEST_ERROR = 2_000
UNKNOWN_RUN = "unknown run"
"""With this begins what a node says that must be greeted again."""


class Node:
    """One node of a process that keeps its state in a folder; several may share the benches."""

    def __init__(self, state: NodeState, options: Options, benches: Benches):
        self.state, self.options, self.benches = state, options, benches
        self._status: dict[str, Any] = {}
        self._num_read = 0
        self._forget()

    def answers(self, parcel: Parcel) -> Answered:
        """What every message of a parcel is answered; an error of one, whatever it is, stops no other."""
        with kernels.using(self.options.machine.kernel), self._status_kept():
            if parcel.clients == (NODE,):
                found: list[bytes | Exception] = [attempted(self._answer_itself, parcel)]
            else:
                of_each = attempted(self._of_clients, parcel)
                found = [of_each] * len(parcel.clients) if isinstance(of_each, Exception) else of_each
        return Answered(
            tuple(b"" if isinstance(answer, Exception) else answer for answer in found),
            tuple(describe(answer) if isinstance(answer, Exception) else "" for answer in found),
        )

    def wake(self) -> None:
        """After a restart: makes the model of the run that is on disk, and brings it to where it stood.

        Raises:
            SeedtuneError: a model, data or client that cannot be used here any more.
        """
        with kernels.using(self.options.machine.kernel), self._status_kept():
            hello, stood = self._hello(), bytes.fromhex(self._status.get("digest", ""))
            if hello is not None:
                bench = self.benches.bench(hello, self.options)
                with suppress(DigestMismatch, TrajectoryError):  # the server brings it there
                    self._or_from_the_base(bench, lambda: self._move(bench, stood or bench.base))

    def _answer_itself(self, parcel: Parcel) -> bytes:
        (data,) = parcel.messages
        kind = kind_of(data)
        if kind == HELLO:
            return self._greeted(data, parcel.run)
        if kind != FINISH:
            raise MessageError(f"no node answers messages of kind {kind}")
        bench, order = self._bench_of(parcel.run), decode_finish(data)
        self._come_to(bench, order)
        self._status |= {"round": order.round, "finished": True}
        return encode_finished(bench.replica.digest)

    def _greeted(self, data: bytes, run: str) -> bytes:
        """Takes part in a run; nothing of a hello is kept before all of it was checked and its model made."""
        hello = decode_hello(data)
        if hello.run.hex() != run:
            raise MessageError("a hello and its parcel are of one run")
        try:
            recipe_digest = self._check_recipe(hello)
            bench = self.benches.bench(hello, self.options)
            clients = self._clients(bench)
            self._check_budget(bench, run)
            self._pin_data(bench, run)
        except Exception as error:
            self._status |= {"asked": run, "refused": describe(error)}
            raise
        self.state.keep_recipe_digest(run, recipe_digest)
        if data != self.state.hello():
            self.state.begin(data)
            self._forget()
            self._status = {}
        self._status |= {"run": run, "asked": run, "seedtune": version("seedtune")}
        site = bench.experiment.site
        self._status |= {"refused": bench.refused, "clients": list(clients)}
        stood = {client: self._stood(client) for client in clients}
        stands_at = {client: b"" if at == bench.base else at for client, at in stood.items()}
        counts = {client: 1 if site.private else site.num_examples(client) for client in clients}
        return encode_standing(Standing(bench.facts, counts, stands_at, software()))

    def _of_clients(self, parcel: Parcel) -> list[bytes | Exception]:
        bench, asked = self._bench_of(parcel.run), dict(zip(parcel.clients, parcel.messages, strict=True))
        bench.memory.folder = self.state.memory_folder(parcel.run)
        bench.arrive = lambda order: self._come_to(bench, order)
        found: dict[int, bytes | Exception] = {}
        for client, data in asked.items():
            kept = self.state.reply(client, data)
            error = None if kept else attempted(partial(self._prepare, bench, parcel.run, client), data)
            if answer := kept or error:
                found[client] = answer
        wanted = {client: data for client, data in asked.items() if client not in found}
        for client, answer in bench.answering.answers(wanted):
            found[client] = answer
            if isinstance(answer, bytes):
                self.state.keep_reply(client, wanted[client], answer)
        return [found[client] for client in parcel.clients]

    def _prepare(self, bench: Bench, run: str, client: int, data: bytes) -> None:
        """Before a client answers: it is one of ours, and the replica stands where its order says."""
        if client not in self._clients(bench):
            raise EngineError(f"client {client} is not served by this node")
        for order in map(decode_order, _orders_in(data)):
            if order.client != client:
                raise MessageError(f"an order for client {order.client} came for client {client}")
            check_order(bench.experiment.recipe, bench.experiment.space, order)
            self._charge(bench, run, order)
            self._come_to(bench, order)
            self._status |= {"round": order.round, "refused": ""}

    def _check_recipe(self, hello: Hello) -> bytes:
        """Return the digest of the run's recipe.

        Raises:
            MessageError: the run came with another recipe before: what it was promised would not hold any more.
        """
        found = blake2b(hello.recipe.encode(errors="replace"), digest_size=16).digest()
        if self.state.recipe_digest(hello.run.hex()) not in (None, found):
            raise MessageError("this run has said hello with another recipe before: a run has one; start another run")
        return found

    def _check_budget(self, bench: Bench, run: str) -> None:
        """
        Raises:
            ConfigError: the run, with those before it on the same data, may come to be worth more than the owner says.
        """
        private, most = bench.experiment.site.private, self.options.max_epsilon
        if private is None or not most:
            return
        plan = private.plan
        worth = self._ledger.epsilon(bench.data, plan.unit, Entry(bench.data, run, plan, {0: plan.num_rounds}))
        if not worth <= most:
            raise ConfigError(
                f"the run's {plan.num_rounds} rounds, with what this node's data was in before, are worth epsilon "
                f"{worth:.4g}, and this node takes part up to {most:g} (--max-epsilon)"
            )

    def _charge(self, bench: Bench, run: str, order: Order) -> None:
        """Writes a release down before it is computed; not one that is only repeated.

        Raises:
            ConfigError: the owner's limit is reached.
        """
        if bench.experiment.site.private is None:
            return
        private = replace(bench.experiment.site.private, memory=bench.memory)
        if private.plan.trusts_server or not private.is_released(order):
            self._ledger.charge(bench.data, run, private.plan, order.client, order.round, self.options.max_epsilon)

    @property
    def _ledger(self) -> NodeLedger:
        return NodeLedger(self.state.folder / LEDGER, self.options.max_delta)

    def _come_to(self, bench: Bench, order: Order) -> None:
        """Brings the replica to the order's digest and remembers that its client stood there.

        Raises:
            DigestMismatch: what the node was told does not lead there.
        """
        self._or_from_the_base(bench, lambda: self._learn(bench, order))
        stand = {**self._status.get("stands_at", {}), str(order.client): order.digest.hex()}
        self._status |= {"stands_at": stand, "digest": order.digest.hex()}

    @contextmanager
    def _status_kept(self) -> Iterator[None]:
        """The status as it is on disk, where another process of a simulation may have changed it, and back to it."""
        before = self.state.status()
        self._status = dict(before)
        try:
            yield
        finally:
            if self._status != before:
                self.state.set_status(self._status)

    def _or_from_the_base(self, bench: Bench, act: Callable[[], None]) -> None:
        """Acts; where records or weights turn out not to be what they said, forgets them and stands at the base."""
        try:
            act()
        except (DigestMismatch, TrajectoryError):
            self.state.forget_records()
            self._forget()
            self._status = {k: v for k, v in self._status.items() if k not in ("stands_at", "digest", "weights")}
            self._set_out_from(bench, bench.base)
            raise

    def _learn(self, bench: Bench, order: Order) -> None:
        check_sent_weights(bench.experiment.recipe, order)
        if order.weights:
            self._take(bench, order)
            return
        self._read_records(bench)
        links = self._chain.link(
            self._stood(order.client) or bench.base, unpacked_records(bench.experiment.recipe, order)
        )
        self.state.add_links(links)
        self._move(bench, order.digest)

    def _take(self, bench: Bench, order: Order) -> None:
        """Takes weights that came whole; kept, where later records will go on from them."""
        if bench.replica.digest != order.digest:
            self._set(bench, order.weights, order.digest)
        if bench.experiment.recipe.federation.upload == "scalars":
            self.state.keep_weights(order.weights)
            self._status["weights"] = order.digest.hex()

    def _move(self, bench: Bench, there: bytes) -> None:
        self._read_records(bench)
        replica, experiment = bench.replica, bench.experiment
        found = self._chain.way(replica.digest, there)
        if found is None:
            raise DigestMismatch(
                f"the weights' digest on this node is {replica.digest.hex()}, and nothing that it was told leads from "
                f"there to {there.hex()}"
            )
        origin, records = found
        if origin != replica.digest:
            self._set_out_from(bench, origin)
        if records:
            updates = (update for record in records for update in round_updates(experiment.header, record))
            try:
                apply(experiment.space, replica.weights, updates, experiment.header.distribution)
            finally:  # also where one broke off: a replica never says that it is what it is not
                replica.digest = digest(replica.weights)
            check_digest(replica.digest, there, "on this node, after the records that it was told")

    def _set_out_from(self, bench: Bench, root: bytes) -> None:
        if root != bench.base:
            self._set(bench, self.state.weights() or b"", root)
            return
        copy_into(bench.replica.weights, assembly.base_weights(bench.experiment))
        bench.replica.digest = bench.base

    def _set(self, bench: Bench, packed: bytes, expected: bytes) -> None:
        copy_into(bench.replica.weights, unpack_weights(packed, bench.experiment.space))
        bench.replica.digest = digest(bench.replica.weights)
        check_digest(bench.replica.digest, expected, "on this node, of weights that came whole")

    def _read_records(self, bench: Bench) -> None:
        """Learns what is on disk, be it from before a restart or from another process of a simulation."""
        self._chain.roots |= {bench.base, *filter(None, [bytes.fromhex(self._status.get("weights", ""))])}
        links, self._num_read = self.state.links(self._num_read)
        for start, record in links:
            self._chain.link(start, [record])

    def _forget(self) -> None:
        self._chain = Chain(set())
        self._num_read = 0

    def _stood(self, client: int) -> bytes:
        """The digest that a client last stood at, empty for the base."""
        return bytes.fromhex(self._status.get("stands_at", {}).get(str(client), ""))

    def _clients(self, bench: Bench) -> tuple[int, ...]:
        return served(bench.experiment.recipe, self.options.clients)

    def _hello(self) -> Hello | None:
        data = self.state.hello()
        try:
            return None if data is None else decode_hello(data)
        except MessageError:  # of another version, or spoiled: the server says hello again
            return None

    def _bench_of(self, run: str) -> Bench:
        """
        Raises:
            EngineError: another run than the one that said hello, or one that refuses this node.
        """
        hello = self._hello()
        if hello is None or hello.run.hex() != run:
            raise EngineError(f"{UNKNOWN_RUN}: this node has had no hello from run {run}")
        bench = self.benches.bench(hello, self.options)
        if bench.refused:
            raise EngineError(f"this node was refused: {bench.refused}")
        self._pin_data(bench, run)
        return bench

    def _pin_data(self, bench: Bench, run: str) -> None:
        """Keep the digest of the owner's examples with the run; it is told to nobody.

        Raises:
            EngineError: the run began with other examples.
        """
        began = self.state.examples_digest(run)
        if began is None:
            self.state.keep_examples_digest(run, bench.examples)
        elif bench.examples != began:
            raise EngineError(
                "the examples of this node are not those that it began the run with: put its --data file back, or take "
                "part in another run"
            )


def _orders_in(data: bytes) -> list[bytes]:
    """The encoded orders of a message, of which a bundle of a secure sum may hold one."""
    kind = kind_of(data)
    return [data] if kind == ORDER else orders_in(data) if kind == BUNDLE else []


def software() -> str:
    """What a node computes with, for people."""
    return ", ".join(f"{name} {version(name)}" for name in ("seedtune", "torch", "transformers"))
