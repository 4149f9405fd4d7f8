"""What a round costs on each engine: in one process, in Flower's simulation, on Flower's deployment with TLS and keys.

The same recipes everywhere: the starter, eight directions that all clients share, or LoRA adapters sent as weights; 3
clients and 100. A round's seconds are those between two rows of a run's metrics, without the first round (in which
models are loaded) and without evaluations. "engine's share": of a round's seconds, what one process does not take for
the same round. Clients of a simulation or deployment compute side by side where there are cores, so the share may be
less than what the engine takes, and is never quoted alone.

Bytes of a client and round: ours are those of the encoded messages, as runs report them. Flower's are what passed
between the nodes and the server's port, both ways, counted by a relay in between, TLS, HTTP, heartbeats and looks for
work included; deployment only. Three nodes serve 100 clients: each gets the orders of all its clients in one message.

Deployment starts processes that take 20 to 40 s to come up.
"""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any

from benchmarks._report import arguments, report, spread
from seedtune import experiment, run_store
from seedtune.config import Machine, Recipe
from seedtune.recipe_text import build, merged

UPLOADS: Mapping[str, Mapping[str, Any]] = {
    "scalars": {"federation": {"keys": "shared", "upload": "scalars"}, "local": {"num_directions": 8}},
    "LoRA weights": {"federation": {"keys": "own", "upload": "weights"}, "local": {"num_directions": 8}},
}
SIZES = (3, 100)
NODES = 3


def recipe(upload: str, num_clients: int, num_rounds: int) -> Recipe:
    base = {
        "model": {"name": "starter", "adapter": "lora"},
        "task": {"name": "stdlib-topics", "max_tokens": 32, "max_eval": 32},
        "partition": {"num_clients": num_clients},
        "federation": {"num_rounds": num_rounds, "batch_size": 1, "min_replies": num_clients},
        "local": {"learning_rate": 1e-4},
        "run": {"num_threads": 1, "eval_every": 1000},
    }
    return build(merged(base, UPLOADS[upload]))


def pace(folder: Path) -> list[float]:
    """Seconds of each round but the first and the last, which is evaluated."""
    at = [row["elapsed_seconds"] for row in run_store.metrics_of(folder)]
    return [b - a for a, b in pairwise(at[1:-1])]


def bytes_each(folder: Path) -> float:
    """Of our messages, a client and round."""
    rows = run_store.metrics_of(folder)[1:]
    return sum(row["bytes_up"] + row["bytes_down"] for row in rows) / sum(row["replied"] for row in rows)


def quiet(*news: Any) -> None: ...


def in_process(given: Recipe, folder: Path) -> str:
    return experiment.run(given, Machine(), folder, quiet)["state_digest"]


def simulated(given: Recipe, folder: Path) -> str:
    from seedtune.flower_app import offline

    offline.prepare("ray")
    from seedtune.flower_app import simulation

    return simulation.run(given, Machine(), folder, quiet, False, quiet, NODES)["state_digest"]


class Relay:
    """Between nodes and the server's port: passes bytes on, and counts them."""

    def __init__(self, port: int):
        self.num_bytes, self._port = 0, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                near.close()
                continue
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                self.num_bytes += len(data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()


def deployed(given: Recipe, folder: Path) -> tuple[str, float]:
    """The digest, and Flower's bytes a round."""
    keys, port = folder.parent / "keys", _free_port()
    relay, begun = Relay(port), folder.parent / "recipe.toml"
    begun.write_text("")
    _seedtune("deploy", "keys", keys)
    settings = [f"--set={section}.{key}={json.dumps(value)}" for section, values in _changed(given).items()
                for key, value in values.items()]  # fmt: skip
    with ExitStack() as running:
        for number, clients in enumerate(_shares(given.partition.num_clients)):
            key = folder.parent / f"node-{number}.key"
            _seedtune("deploy", "node-key", key)
            key.with_suffix(".pub").rename(keys / "nodes" / f"node-{number}.pub")
            running.enter_context(_started(
                "deploy", "node", "--server", f"localhost:{relay.port}", "--ca", keys / "ca.crt", "--key", key,
                "--clients", clients, "--state", folder.parent / f"node-{number}",
            ))  # fmt: skip
        server = running.enter_context(_started("deploy", "server", begun, "--keys", keys, "--out", folder,
                                                "--port", str(port), *settings))  # fmt: skip
        at: list[tuple[int, int]] = [(0, 0)]
        while server.poll() is None:
            rounds = len(run_store.metrics_of(folder)) - 1 if run_store.is_run(folder) else 0
            if rounds > at[-1][0]:
                at.append((rounds, relay.num_bytes))
            sleep(0.05)
        if server.returncode:
            raise RuntimeError(f"the server ended with {server.returncode}: see {folder}")
    counted = [one for one in at[1:] if one[0] < given.federation.num_rounds]
    (first, before), (last, after) = counted[0], counted[-1]
    summary = run_store.summary_of(folder)
    return (summary or {})["state_digest"], (after - before) / (last - first)


def _changed(given: Recipe) -> dict[str, dict[str, Any]]:
    """The settings of a recipe that are not the defaults."""
    usual, found = Recipe().model_dump(), {}
    for section, values in given.model_dump().items():
        if other := {key: value for key, value in values.items() if value != usual[section][key]}:
            found[section] = other
    return found


def _shares(num_clients: int) -> list[str]:
    ends = [num_clients * node // NODES for node in range(NODES + 1)]
    return [f"{a}-{b - 1}" for a, b in pairwise(ends)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(arguments: Sequence[Any]) -> list[str]:
    return [sys.executable, "-c", "from seedtune.cli import main; main()", *map(str, arguments)]


def _seedtune(*arguments: Any) -> None:
    subprocess.run(_command(arguments), check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _started(*arguments: Any) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


ENGINES = {"in one process": in_process, "simulation": simulated, "deployment": deployed}


def tables(quick: bool) -> dict[str, list[dict[str, Any]]]:
    num_rounds, rows = 5 if quick else 8, []
    for upload in UPLOADS:
        for num_clients in SIZES[:1] if quick else SIZES:
            given, found, digests, wire = recipe(upload, num_clients, num_rounds), {}, {}, 0.0
            with TemporaryDirectory() as scratch:
                for name, carry in ENGINES.items():
                    folder = Path(scratch) / name.replace(" ", "-") / "run"
                    folder.parent.mkdir()
                    ended = carry(given, folder)
                    digests[name], wire = ended if isinstance(ended, tuple) else (ended, 0.0)
                    found[name] = pace(folder), bytes_each(folder)
            for name, (seconds, ours) in found.items():
                plain = spread(found["in one process"][0]).median
                share = 1 - plain / spread(seconds).median
                rows.append({
                    "what goes up": upload, "clients": num_clients, "engine": name, "s a round": spread(seconds),
                    "engine's share": f"{share:.0%}" if name != "in one process" else "",
                    "our bytes a client and round": round(ours),
                    "Flower's bytes a client and round": round(wire / num_clients) if name == "deployment" else "",
                    "same digest": digests[name] == digests["in one process"],
                })  # fmt: skip
    return {"what a round costs, by engine": rows}


if __name__ == "__main__":
    given = arguments(__doc__)
    report(tables(given.quick), given.json)
