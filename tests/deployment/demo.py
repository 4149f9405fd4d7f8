"""A federation of three nodes on this machine, with TLS and node keys, through what happens to one: a node is killed in
mid-round and comes back, another joins late, the server is killed and goes on. In the end every node, the server and a
run in one process must hold the same weights, to the bit.

`make deploy-demo` runs it; it ends by itself, with 0 where all of this held, and leaves no process behind. Everything
is done by commands that a user has: folders stand for machines.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from proxied import NGINX, proxy

from seedtune.deploy import places

SECONDS = 570
"""After which it gives up, whatever happens."""
NUM_ROUNDS = 7
RECIPE = f"""
[model]
name = "starter"
trainable = ["model.norm.weight"]

[task]
name = "stdlib-topics"
max_tokens = 48
max_train = 96
max_eval = 32

[partition]
num_clients = 3

[federation]
num_rounds = {NUM_ROUNDS}
cohort_size = 2
min_replies = 2
batch_size = 4

[local]
num_directions = 4
perturbation_scale = 1e-2
learning_rate = 2.0

[run]
method = "shared directions"
seed = 13
num_threads = 1
eval_every = {NUM_ROUNDS}
"""
"""With this seed, rounds 1 to 3 ask clients 0 and 1; client 2 is asked from round 4 on, and may join until then."""
COMMAND = (sys.executable, "-P", "-c", "from seedtune.cli import main; main()")
STARTED = time.monotonic()


def tell(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def command(folder: Path, *arguments: str) -> None:
    """A command that ends by itself."""
    tell(f"$ seedtune {' '.join(arguments)}")
    subprocess.run((*COMMAND, *arguments), cwd=folder, check=True, stdout=subprocess.DEVNULL)


class Machine:
    """A command that goes on, in a process group of its own; what it says is told with its name."""

    def __init__(self, name: str, folder: Path, *arguments: str):
        self.name, self.folder, self.arguments = name, folder, arguments
        self.start()

    def start(self) -> None:
        tell(f"{self.name}$ seedtune {' '.join(self.arguments)}")
        self.process = subprocess.Popen(
            (*COMMAND, *self.arguments), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            tell(f"{self.name}: {line.rstrip()}")

    def kill(self) -> None:
        """As a power cut would: SIGKILL to the whole group, with no time to clean up."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


def demo(folder: Path, machines: ExitStack) -> bool:
    """Whether all digests agree."""
    (folder / "recipe.toml").write_text(RECIPE)
    tell("the same run in one process, to compare with")
    command(folder, "run", "recipe.toml", "--out", "twin")

    tell("keys: the server's, and one for each node, whose public half is copied to the server")
    command(folder, "deploy", "keys", "keys", "--host", "localhost")
    for name in ("a", "b", "c"):
        command(folder, "deploy", "node-key", f"{name}/node.key")
    for name in ("a", "b"):
        shutil.copy(folder / name / "node.pub", folder / "keys" / "nodes" / f"{name}.pub")

    port = places.free_port()
    flags = ("--keys", "keys", "--port", str(port), "--resend", "20", "--finish", "90")
    server = started(machines, "server", folder, "deploy", "server", "recipe.toml", "--out", "run", *flags)
    a = node(machines, folder, "a", 0, port)
    node(machines, folder, "b", 1, port)
    wait_for("the first round", lambda: rounds(folder) >= 1, server)
    wait_for("round 2 to reach node a", lambda: status(folder, "a").get("round", 0) >= 1, server)

    tell("--- node a is killed in mid-round, and started again ---")
    a.kill()
    check_gone(folder / "a" / "state")
    a.start()

    public = port
    if NGINX:
        tell("--- node c joins late, through nginx: its key is registered as soon as it is copied ---")
        public = machines.enter_context(proxy(folder / "nginx", folder / "keys", port))
    else:
        tell("--- node c joins late: its key is registered as soon as it is copied (nginx is not installed) ---")
    shutil.copy(folder / "c" / "node.pub", folder / "keys" / "nodes" / "c.pub")
    node(machines, folder, "c", 2, public)
    wait_for("node c to take part", lambda: rounds(folder) >= 4, server)

    tell("--- the server is killed, and started again on its run folder ---")
    server.kill()
    check_gone(folder / "run" / "service")
    server = started(machines, "server", folder, "deploy", "server", "--out", "run", *flags)
    wait_for("the end of the run", lambda: server.process.poll() is not None)
    return agree(folder, server.process.returncode)


def started(machines: ExitStack, name: str, folder: Path, *arguments: str) -> Machine:
    machine = Machine(name, folder, *arguments)
    machines.callback(machine.stop)
    return machine


def node(machines: ExitStack, folder: Path, name: str, client: int, port: int) -> Machine:
    keys = ("--ca", "keys/ca.crt", "--key", f"{name}/node.key", "--state", f"{name}/state")
    flags = ("--server", f"localhost:{port}", "--clients", str(client))
    return started(machines, f"node {name}", folder, "deploy", "node", *flags, *keys)


def rounds(folder: Path) -> int:
    path = folder / "run" / "manifest.json"
    return json.loads(path.read_text())["num_rounds"] if path.exists() else 0


def status(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name / "state" / "worker" / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def wait_for(what: str, condition: Callable[[], bool], server: Machine | None = None) -> None:
    tell(f"... waiting for {what}")
    while not condition():
        if server and server.process.poll() is not None:
            raise SystemExit(f"FAILED: the server ended while {what} was waited for")
        time.sleep(0.1)


def check_gone(folder: Path) -> None:
    """Nothing of a killed machine may live on: its processes are found by the folder that they name."""
    end = time.monotonic() + 10
    while left := running(folder):
        if time.monotonic() > end:
            raise SystemExit(f"FAILED: still running: {left}")
        time.sleep(0.1)
    tell("nothing of it is left running")


def running(folder: Path) -> list[str]:
    """Processes whose command line or environment names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            known = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if f"{folder}".encode() in known and int(path.name) != os.getpid():
            found.append(f"{path.name} {(path / 'cmdline').read_bytes().decode().replace(chr(0), ' ')}")
    return found


def agree(folder: Path, code: int) -> bool:
    digests = {"in one process": summary(folder / "twin")["state_digest"]}
    digests["server"] = summary(folder / "run")["state_digest"]
    digests |= {f"node {name}": status(folder, name).get("digest") for name in ("a", "b", "c")}
    tell("state digests:")
    for name, digest in digests.items():
        tell(f"    {name:<16} {digest}")
    return code == 0 and len(set(digests.values())) == 1


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def given_up(number: int, frame: object) -> None:
    raise SystemExit(f"FAILED: {signal.Signals(number).name} after {time.monotonic() - STARTED:.0f} s")


def main() -> None:
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, given_up)
    signal.alarm(SECONDS)
    with tempfile.TemporaryDirectory(prefix="seedtune-") as name:
        folder = Path(name)
        with ExitStack() as machines:
            agreed = demo(folder, machines)
        if left := running(folder):
            raise SystemExit(f"FAILED: still running: {left}")
    tell("all digests agree, and nothing is left running" if agreed else "FAILED: the digests differ")
    sys.exit(0 if agreed else 1)


if __name__ == "__main__":
    main()
