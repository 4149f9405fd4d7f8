"""Flower's side of a node: hands a message to the node's resident worker and brings back the answer.

Flower starts a process for every message, so this one imports neither torch nor a model: where the node's config names
a `worker-socket`, the worker (`engines.worker`) answers there, and is waited for while it starts, computes or restarts.
Where it names none, as in a simulation, this process holds the node itself.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ..engines.frames import RECORD, parcel_of, receive, send
from ..errors import ConfigError, EngineError

SOCKET, PATIENCE = "worker-socket", "worker-patience"
"""Keys of a node's config: the path of its worker's socket; seconds to wait for a worker that cannot be reached."""
DEFAULT_PATIENCE = 600.0
_PAUSE = 0.1


@dataclass(frozen=True)
class Simulated:
    """Nodes without workers: where their states lie, and what they compute on (`config.Machine`, as plain data)."""

    folder: str
    num_clients: int
    machine: tuple[tuple[str, Any], ...] = ()


def app(simulated: Simulated | None = None) -> ClientApp:
    """The app of one node, or of all nodes of a simulation."""
    client = ClientApp()

    @client.train()
    def answer(message: Message, context: Context) -> Message:
        plain = dict(message.content[RECORD])
        config = context.node_config
        if SOCKET in config:
            patience = float(config.get(PATIENCE, DEFAULT_PATIENCE))
            answered = through(Path(str(config[SOCKET])), plain, patience)
        elif simulated is not None:
            answered = _held_here(simulated, int(config["partition-id"]), int(config["num-partitions"]), plain)
        else:
            raise ConfigError(f"this node has no worker: its SuperNode's --node-config needs {SOCKET}=PATH")
        return Message(RecordDict({RECORD: ConfigRecord(answered)}), reply_to=message)

    return client


def through(
    path: Path,
    plain: Mapping[str, Any],
    patience: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """What the worker behind a socket answers; asked again, by the same bytes, where it goes away meanwhile.

    Raises:
        EngineError: no worker could be reached for `patience` seconds.
    """
    given_up = clock() + patience
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(os.fspath(path))
                send(connection, plain)
                if (answered := receive(connection)) is not None:
                    return answered
            reason = "it hung up"
        except OSError as error:
            reason = error.strerror or str(error)
        if clock() >= given_up:
            raise EngineError(f"no worker answers on {path} ({reason}): start it, or see its log")
        sleep(_PAUSE)


def clients_of(node: int, num_nodes: int, num_clients: int) -> tuple[int, ...]:
    """Those that a simulated node serves: ranges of like size.

    >>> [clients_of(node, 3, 7) for node in range(3)]
    [(0, 1), (2, 3), (4, 5, 6)]
    """
    return tuple(range(node * num_clients // num_nodes, (node + 1) * num_clients // num_nodes))


def _held_here(simulated: Simulated, node: int, num_nodes: int, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a simulated node: any process serves any node, with one model for all of them."""
    from ..config import Machine  # only a simulation loads torch here
    from ..engines.bench import Benches, Options
    from ..engines.node import Node
    from ..engines.node_state import NodeState

    benches = _BENCHES.setdefault(simulated, Benches())
    state = NodeState(Path(simulated.folder) / f"{node}")
    served = clients_of(node, num_nodes, simulated.num_clients)
    at = Node(state, Options(served, machine=Machine(**dict(simulated.machine)), recipe_paths=True), benches)
    return at.answers(parcel_of(dict(plain))).plain()


_BENCHES: dict[Simulated, Any] = {}
"""By simulation, the model that this process holds for it."""
