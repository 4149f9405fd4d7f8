"""Flower's command lines: what is started with which flags and which environment. Pure functions, nothing is started.

Flower (1.41) speaks protobuf over HTTP on one port for three interfaces: Fleet (nodes), Control (who starts runs) and
Runtime (the processes that run the apps). The open build checks nobody on Control, so SuperLink listens on loopback
alone, always; Runtime is kept by a secret file, Fleet by the nodes' keys.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeployError
from .processes import Command

LOOPBACK = "127.0.0.1"
CONNECTION = "seedtune"
"""The name of the SuperLink in Flower's own configuration file, which lies in $FLWR_HOME."""
POLL_SECONDS = 0.25
"""How often a SuperExec asks for work."""


@dataclass(frozen=True)
class Place:
    """A folder that holds what Flower's processes on one machine keep: databases, secrets, logs, apps."""

    folder: Path

    @property
    def secret(self) -> Path:
        """32 random bytes that a SuperExec must know to be given work."""
        return self.folder / "superexec.secret"

    @property
    def home(self) -> Path:
        return self.folder / "flwr"

    @property
    def database(self) -> Path:
        """What the SuperLink knows: nodes, runs, messages on their way."""
        return self.folder / "superlink.db"

    @property
    def nodes(self) -> Path:
        """The public keys that were registered in that database."""
        return self.folder / "nodes.json"

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def command(self, name: str, *arguments: str) -> Command:
        program, *rest = arguments
        path = str(Path(sys.executable).parent / program)
        return Command(name, (path, *rest), environment(self.home), self.log(name))

    def module(self, name: str, module: str, *arguments: str) -> Command:
        """A program of this package's, by its module."""
        return Command(name, (sys.executable, "-P", "-m", module, *arguments), environment(self.home), self.log(name))


def environment(home: Path) -> dict[str, str]:
    """What is added to the user's environment: no telemetry, no downloads, apps and settings in a place of ours."""
    programs, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    direct = ",".join(filter(None, (os.environ.get("NO_PROXY"), LOOPBACK, "localhost")))
    return {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(POLL_SECONDS), "NO_PROXY": direct,
        "PATH": path if path.split(os.pathsep)[0] == programs else os.pathsep.join((programs, path)),
    }  # fmt: skip


def superlink(place: Place, port: int, keys: Path | None) -> Command:
    """`keys`: the folder with the certificate; None: plain HTTP, and nodes are not checked."""
    tls = ("--insecure",) if keys is None else (
        "--ssl-ca-certfile", str(keys / "ca.crt"), "--ssl-certfile", str(keys / "server.crt"),
        "--ssl-keyfile", str(keys / "server.key"), "--enable-supernode-auth",
    )  # fmt: skip
    return place.command(
        "superlink", "flower-superlink", "--host", LOOPBACK, "--port", str(port), *tls,
        "--database", str(place.database), "--isolation", "process",
        "--superexec-auth-secret-file", str(place.secret),
    )  # fmt: skip


def superexec(place: Place, port: int, ca: Path | None) -> Command:
    """Starts the apps' processes for the SuperLink or SuperNode on `port` of this machine; `ca` None: plain HTTP."""
    tls = ("--insecure",) if ca is None else ("--root-certificates", str(ca))
    return place.command(
        "superexec", "flower-superexec", "--runtime-api-address", f"{LOOPBACK}:{port}", *tls,
        "--superexec-auth-secret-file", str(place.secret),
    )  # fmt: skip


def supernode(
    place: Place, server: str, ca: Path | None, key: Path | None, port: int, config: Mapping[str, str]
) -> Command:
    """A `flower-supernode` that takes no other app than ours. `ca` and `key` None: plain HTTP. Its own interface to the
    app's process is plain HTTP on loopback."""
    tls = ("--insecure",) if ca is None else ("--root-certificates", str(ca))
    auth = () if key is None else ("--auth-supernode-private-key", str(key))
    return place.module(
        "supernode", "seedtune.flower_app.own_app",
        "--superlink", server, *tls, *auth, "--host", LOOPBACK, "--port", str(port),
        "--isolation", "process", "--superexec-auth-secret-file", str(place.secret),
        "--node-config", settings(config),
    )  # fmt: skip


def control(place: Place, *arguments: str) -> Command:
    """A question to the SuperLink, answered in JSON."""
    group = 2 if arguments[0] == "supernode" else 1
    subject = () if arguments[0] == "list" else arguments[group : group + 1]
    options = arguments[group + len(subject) :]
    return place.command("flwr", "flwr", *arguments[:group], *subject, CONNECTION, *options, "--format", "json")


def settings(values: Mapping[str, str | float]) -> str:
    """As Flower's processes read settings from their command line.

    >>> settings({"folder": "/runs/a b", "resend": 20.0})
    'folder="/runs/a b" resend=20.0'
    """
    return " ".join(f"{name}={quoted(value) if isinstance(value, str) else value}" for name, value in values.items())


def connection_file(port: int, ca: Path | None) -> str:
    """What `flwr` reads from $FLWR_HOME/config.toml."""
    tls = "insecure = true" if ca is None else f"root-certificates = {quoted(str(ca))}"
    return f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{LOOPBACK}:{port}"\n{tls}\n'


def quoted(text: str) -> str:
    """A TOML string that Flower also finds the end of.

    Raises:
        DeployError: it holds a quotation mark, a backslash or a line's end.
    """
    if set(text) & set('"\\\n\r'):
        raise DeployError(f"{text!r}: a path with a quotation mark, a backslash or a line's end cannot be used here")
    return f'"{text}"'
