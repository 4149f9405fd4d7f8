"""A node: the worker that holds model, data and progress, and the SuperNode that fetches its work.

    FOLDER/worker/           the worker's: records seen, last replies, status.json
    FOLDER/worker.sock       where Flower's client process hands messages to the worker
    FOLDER/superexec.secret  keeps other users of this machine from taking the node's work
    FOLDER/flwr, logs

Whichever of the three processes ends is started again; what the worker knew is on its disk. The SuperNode takes no code
from the server (`flower_app.own_app`).
"""

import ipaddress
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeployError
from ..recipe_text import clients_of
from . import flower, keys, places
from .news import Standing
from .processes import Child, Command, Say, ended_together

TICK = 0.2
_LONGEST_SOCKET = 100
"""Bytes of a Unix socket's path that all systems take."""


@dataclass(frozen=True)
class Node:
    """What a node runs. `ca` and `key` are None where it speaks plain HTTP; model, data, clients and roster as the
    worker's, whose identity in secure sums is `key`."""

    server: str
    folder: Path
    ca: Path | None = None
    key: Path | None = None
    clients: str | None = None
    model: str | None = None
    data: Path | None = None
    device: str = "cpu"
    port: int = 9094
    recipe_paths: bool = False
    max_epsilon: float = 0.0
    roster: Path | None = None
    max_delta: float = 1e-5
    min_clients: int = 0

    @property
    def place(self) -> flower.Place:
        return flower.Place(self.folder)

    @property
    def socket(self) -> Path:
        return self.folder / "worker.sock"

    @property
    def status(self) -> Path:
        return self.folder / "worker" / "status.json"


def check(node: Node) -> None:
    """
    Raises:
        DeployError: an address or a key that cannot be used; plain HTTP to another machine. ConfigError: `clients`
            that are none.
    """
    host = host_of(node.server)
    if (node.ca is None) != (node.key is None):
        raise DeployError("--ca and --key: a node needs both, the server's ca.crt and its own key")
    if node.ca is None and not is_loopback(host):
        raise DeployError(
            f"--plain-http: only to a server on loopback, such as 127.0.0.1, not {host}: use --ca and --key"
        )
    if node.ca and node.key:
        keys.check_ca(node.ca)
        keys.check_node_key(node.key)
    if node.clients is not None:
        clients_of(node.clients)
    if node.data is not None and not node.data.exists():
        raise DeployError(f"--data {node.data}: there is no such file or folder")
    if node.roster is not None and not node.roster.is_file():
        raise DeployError(f"--roster {node.roster}: there is no such file")
    if len(bytes(node.socket)) > _LONGEST_SOCKET:
        raise DeployError(
            f"--state {node.folder}: the path of its socket has {len(bytes(node.socket))} bytes, at most "
            f"{_LONGEST_SOCKET} are possible: choose a folder with a shorter path"
        )


def commands(node: Node) -> list[Command]:
    """The processes of a node, in the order in which they are started."""
    place = node.place
    config = {"worker-socket": str(node.socket)}
    return [
        _worker(node),
        flower.supernode(place, node.server, node.ca, node.key, node.port, config),
        flower.superexec(place, node.port, None),
    ]


def files(node: Node) -> dict[Path, str]:
    """What must be there before, for people who start the processes themselves."""
    return {node.place.secret: places.SECRET_SAYS}


def _worker(node: Node) -> Command:
    options = {
        "--clients": node.clients, "--model": node.model, "--data": node.data, "--device": node.device,
        "--identity": node.key, "--roster": node.roster,
    }  # fmt: skip
    arguments = (
        sys.executable, "-P", "-m", "seedtune.engines.worker", "--socket", str(node.socket),
        "--state", str(node.status.parent),
        *(text for name, value in options.items() if value is not None for text in (name, str(value))),
        *(["--recipe-paths"] if node.recipe_paths else []),
        *(["--max-epsilon", f"{node.max_epsilon:g}"] if node.max_epsilon else []),
        *(["--max-delta", f"{node.max_delta:g}"] if node.max_delta != 1e-5 else []),
        *(["--min-clients", f"{node.min_clients}"] if node.min_clients else []),
    )  # fmt: skip
    return Command("worker", arguments, {"TOKENIZERS_PARALLELISM": "false"}, node.place.log("worker"))


def supervise(node: Node, say: Say, until: Callable[[], bool] = lambda: False) -> None:
    """Keeps a node going until Ctrl-C, or until `until` says so; nothing of it is left when this returns.

    Raises:
        DeployError: as `check`; the folder is another's; a program is missing.
    """
    check(node)
    with places.opened(node.place):
        places.check_free(node.port)
        children = [Child(command) for command in commands(node)]
        with ended_together(children):
            for child in children:
                child.start()
            say(f"node runs; server {node.server}, clients {node.clients or 'all'}, logs in {node.folder / 'logs'}")
            standing = Standing(node.status)
            while not until():
                for child in children:
                    child.revive(lambda line: say(_explained(line)))
                if news := standing.news():
                    say(news)
                time.sleep(TICK)


def _explained(line: str) -> str:
    """In a user's words, where a healthy deployment says it too: nodes may be there before the server."""
    if "Failed to activate" not in line:
        return line
    return (
        "waiting for the server to let this node in: it does not know this node's public key yet, or, for up to a "
        "minute after this node was killed, takes it for connected; asking again until it does"
    )


def host_of(server: str) -> str:
    """The host of HOST:PORT.

    Raises:
        DeployError: it is not of that form.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", server)
    if not match or not 0 < int(match[2]) < 65536:
        raise DeployError(f"--server {server!r}: must be HOST:PORT, such as fed.example.org:443")
    return match[1].strip("[]")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
