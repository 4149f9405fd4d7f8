"""The resident process of a node: it holds model, data and progress, and answers on a Unix socket.

    python -m seedtune.engines.worker --socket PATH --state FOLDER [--clients 0-32,40] [--model PATH] [--data PATH]
        [--recipe-paths] [--max-epsilon E] [--max-delta D] [--min-clients N] [--identity PATH] [--roster PATH]
        [--device cpu]

Flower starts a process for every message; loading a model there would take longer than a round. That process hands the
message to this one (`frames`) and waits. The socket and the state are the user's alone (0600, 0700). Requests are taken
one at a time. It may be killed at any moment: started again, it catches up from its own disk, and what was asked before
is answered as before (`node`). It never opens a port.
"""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..config import Machine
from ..errors import ConfigError, EngineError, MessageError, SeedtuneError
from ..foreign_text import MOST_MESSAGE, sanitize
from ..privacy.sum_plan import check_installed
from ..recipe_text import clients_of
from .bench import Benches, Options
from .frames import parcel_of, receive, send
from .node import Node, software
from .node_state import NodeState

if TYPE_CHECKING:
    from ..privacy.identities import Credentials

LOCK, IDENTITY = "lock", "identity"
_LONGEST_PATH = 100  # bytes: a Unix socket's path has 108 at most, less on some systems


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C; exits with 2 and one line where it cannot."""
    given = _parser().parse_args(arguments)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _leave)
    try:
        clients = clients_of(given.clients) if given.clients else None
        model, data = (str(Path(path).resolve()) if path else None for path in (given.model, given.data))
        credentials = _credentials(given.identity, given.state, given.roster)
        machine = Machine(device=given.device)
        options = Options(
            clients, model, data, machine, given.recipe_paths, credentials, given.max_epsilon, given.max_delta,
            given.min_clients,
        )  # fmt: skip
        run(given.socket, given.state, options, _log)
    except (SeedtuneError, ValueError) as error:
        print(f"error: {sanitize(error, MOST_MESSAGE)}", file=sys.stderr)
        sys.exit(2)


def run(path: Path, folder: Path, options: Options, say: Callable[[str], None]) -> None:
    """Takes parcels from the socket at `path` and answers them, until the process is ended.

    Raises:
        EngineError: another worker has this socket or this state, or one of them cannot be made.
    """
    os.umask(0o077)
    try:
        node = Node(NodeState(folder), options, Benches())
        with FileLock(folder / LOCK, timeout=0), _listening(path) as listener:
            say(f"{software()}; state in {folder}, listening on {path}")
            _wake(node, say)
            while True:
                connection, _ = listener.accept()
                with connection:
                    _serve(connection, node, say)
    except Timeout:
        raise EngineError(f"worker: state {folder} is in use by another worker; give each node a folder") from None
    except OSError as error:
        raise EngineError(f"worker: {error.strerror or error} ({error.filename or path})") from None


def _credentials(identity: Path | None, folder: Path, roster: Path | None) -> "Credentials | None":
    """For secure sums: the identity given, or one of the state's own; None where their libraries are not installed.

    Raises:
        ConfigError: something was given and they are not installed. DataError: a file that cannot be used.
    """
    try:
        check_installed()
    except ConfigError:
        if identity or roster:
            raise
        return None
    from ..privacy.identities import Credentials, Identity, read_roster

    own = Identity.of_file(identity) if identity else Identity.kept(folder / IDENTITY)
    return Credentials(own, read_roster(roster) if roster else None)


def _wake(node: Node, say: Callable[[str], None]) -> None:
    """Goes back to where the node stood; a model that is no longer there is said, and asked for again by the server."""
    try:
        node.wake()
    except Exception as error:  # whatever a spoiled state raises, the next hello begins anew
        say(f"the run on disk cannot be gone on with: {' '.join(f'{type(error).__name__}: {error}'.split())[:2000]}")
        return
    if status := node.state.status():
        say(f"run {status.get('run')}: stands after the start of round {status.get('round', 0)}")


def _serve(connection: socket.socket, node: Node, say: Callable[[str], None]) -> None:
    """Answers one connection's parcels; one who hangs up or sends nonsense stops nobody else."""
    try:
        while (plain := receive(connection)) is not None:
            answered = node.answers(parcel_of(plain))
            for error in filter(None, answered.errors):
                say(error)
            send(connection, answered.plain())
    except (ConnectionError, MessageError) as error:
        say(f"a connection was dropped: {error}")


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A Unix socket at `path`, in place of one that a killed worker left.

    Raises:
        EngineError: another worker's.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise EngineError(f"worker: the socket's path {path} is too long: at most {_LONGEST_PATH} bytes")
    if path.is_socket():
        if _is_answered(path):
            raise EngineError(f"worker: another one listens on {path}; give each node a socket")
        path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        try:
            os.chmod(path, 0o600)
            listener.listen(16)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seedtune.engines.worker", description="The worker of a node.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--state", type=Path, required=True, help="folder for what the node must not forget")
    parser.add_argument("--clients", help="those that this node serves, such as 0-32,40; default all of the run's")
    parser.add_argument("--model", help="where the base lies here; default where the recipe says")
    parser.add_argument("--data", help="this node's own training data; default the recipe's")
    parser.add_argument(
        "--max-epsilon", type=float, default=0.0, help="only runs with local noise, worth at most so much"
    )
    parser.add_argument("--max-delta", type=float, default=1e-5, help="delta at which epsilon is told")
    parser.add_argument("--min-clients", type=int, default=0, help="only secure sums of at least so many clients")
    parser.add_argument("--recipe-paths", action="store_true", help="let the server's recipe name files here")
    parser.add_argument(
        "--identity", type=Path, help="this node's private key, for secure sums; default one of its own"
    )
    parser.add_argument("--roster", type=Path, help="all clients' public keys: secure sums with these only")
    parser.add_argument("--device", default="cpu", help="where the model computes: cpu, cuda or cuda:N")
    return parser


def _leave(signal_: int, frame: Any) -> None:
    sys.exit(0)


def _log(note: str) -> None:
    print(sanitize(note, MOST_MESSAGE), flush=True)


if __name__ == "__main__":
    main()
