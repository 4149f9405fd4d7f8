"""`seedtune deploy ...`: parse, call, print. What is started and how is the other modules'.

Exit codes are those of the whole command line (`cli`).
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ..command_group import CommandGroup
from ..console import DIVERGED, Console
from ..errors import ConfigError
from ..foreign_text import MOST_MESSAGE, sanitize

app = typer.Typer(
    cls=CommandGroup,
    help="Run a federation on several machines: keys, a server, nodes, a reverse proxy.",
    no_args_is_help=True,
)

Keys = Annotated[Path | None, typer.Option("--keys", help="folder made by 'seedtune deploy keys'")]
PlainHttp = Annotated[
    bool, typer.Option("--plain-http", help="neither TLS nor node keys: to try things out, on loopback only")
]
Print = Annotated[bool, typer.Option("--print", help="show commands, environment and files; start nothing")]


def say(text: str) -> None:
    print(sanitize(text, MOST_MESSAGE), flush=True)


@app.command("keys")
def keys_(
    folder: Annotated[Path, typer.Argument(help="folder for the authority, the server's certificate, the nodes' keys")],
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="name or address by which nodes reach this server; may be repeated"),
    ] = None,
) -> None:
    """Make a private certificate authority and the server's certificate; where the authority is there, the latter."""
    _ready()
    from . import keys

    for path in keys.make_server_keys(folder, hosts or []):
        say(f"{path}: made")
    say(f"give each node {folder / keys.CA_CERTIFICATE}; put each node's public key into {folder / keys.NODES}")


@app.command()
def node_key(file: Annotated[Path, typer.Argument(help="the private key's file, such as site-0.key")]) -> None:
    """Make a node's key, on the node: the private one stays there, the public one goes to the server."""
    _ready()
    from . import keys

    public = keys.make_node_key(file)
    say(f"{file}: made; it stays here")
    say(f"{public}: made; copy it into the folder '{keys.NODES}' beside the server's keys")


@app.command()
def server(
    folder: Annotated[Path, typer.Option("--out", help="run folder: a run that is there goes on")],
    recipe: Annotated[
        str | None, typer.Argument(help="a known recipe or a TOML file; none: the folder's run", show_default=False)
    ] = None,
    method: Annotated[str | None, typer.Option(help="a known method, laid over the recipe")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="any setting: section.key=value; may be repeated")
    ] = None,
    keys: Keys = None,
    nodes: Annotated[
        Path | None, typer.Option(help="folder with the nodes' public keys; default 'nodes' in the folder of keys")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the SuperLink, on loopback")] = 8000,
    device: Annotated[str, typer.Option(help="where the server's model computes: cpu, cuda or cuda:N")] = "cpu",
    patience: Annotated[
        float, typer.Option(min=0, help="seconds before the first round for nodes that are not needed")
    ] = 30.0,
    resend: Annotated[float, typer.Option(min=1, help="seconds of silence until a message is sent again")] = 120.0,
    finish: Annotated[float, typer.Option(min=0, help="seconds at the end for nodes to come to the last state")] = 60.0,
    plain_http: PlainHttp = False,
    shown: Print = False,
) -> None:
    """Start a run's server and see it through to its summary: SuperLink, the app, nodes' keys; again where one ends."""
    _ready()
    _check_choice(keys is None, plain_http, "--keys FOLDER")
    from ..results import results
    from . import begin, show
    from . import server as serving

    folder = folder.absolute()
    keys = keys and keys.absolute()
    config: dict[str, str | float] = {"device": device, "patience": patience, "resend": resend, "finish": finish}
    made = serving.Server(folder, _bundle(), keys, _nodes(keys, nodes), port, config)
    serving.check(made)
    if shown:
        show.plan(serving.files(made), serving.commands(made), serving.afterwards(made))
        return
    say(f"run folder {folder}")
    begin.begin(folder, recipe, method, settings or [], say)
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    summary = serving.serve(made, say)
    for part in results(summary, folder):
        console.print(part)
    if summary.get("outcome") == "diverged":
        raise typer.Exit(DIVERGED)


@app.command()
def node(
    server: Annotated[str, typer.Option(help="HOST:PORT of the server")],
    folder: Annotated[Path, typer.Option("--state", help="folder for what the node keeps")] = Path("seedtune-node"),
    ca: Annotated[Path | None, typer.Option(help="the server's ca.crt")] = None,
    key: Annotated[Path | None, typer.Option(help="this node's private key")] = None,
    clients: Annotated[
        str | None,
        typer.Option(help="which clients of the recipe this node is, such as 0-3,7; default all"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="where the base is on this machine; default the recipe's")] = None,
    data: Annotated[Path | None, typer.Option(help="this node's own data; default the recipe's")] = None,
    device: Annotated[str, typer.Option(help="where the model computes: cpu, cuda or cuda:N")] = "cpu",
    recipe_paths: Annotated[
        bool, typer.Option("--recipe-paths", help="let the server's recipe name files on this machine")
    ] = False,
    max_epsilon: Annotated[
        float,
        typer.Option(min=0, help="take part only in runs whose local noise keeps them within it; default any run"),
    ] = 0.0,
    max_delta: Annotated[
        float, typer.Option(help="delta at which --max-epsilon and the ledger count, whatever a recipe says")
    ] = 1e-5,
    min_clients: Annotated[
        int, typer.Option(min=0, help="take part only in secure sums of at least so many clients; default any run")
    ] = 0,
    roster: Annotated[
        Path | None,
        typer.Option(help="all clients' public keys, for secure sums with nobody else (docs/secure-sums.md)"),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port on loopback for Flower's own processes; default a free one")
    ] = 0,
    plain_http: PlainHttp = False,
    shown: Print = False,
) -> None:
    """Run a node until Ctrl-C: the worker with model and data, and Flower's SuperNode; again where one ends."""
    _ready()
    _check_choice(ca is None and key is None, plain_http, "--ca FILE and --key FILE")
    from . import node as noding
    from . import places, show

    _check_delta(max_delta)
    made = noding.Node(
        server, folder.absolute(), ca and ca.absolute(), key and key.absolute(), clients, _where(model),
        data and data.absolute(), device, port or (9094 if shown else places.free_port()), recipe_paths,
        max_epsilon, roster and roster.absolute(), max_delta, min_clients,
    )  # fmt: skip
    if shown:
        noding.check(made)
        show.plan(noding.files(made), noding.commands(made))
        return
    noding.supervise(made, say)


@app.command()
def ledger(
    folder: Annotated[Path, typer.Argument(help="the node's --state folder")] = Path("seedtune-node"),
    max_delta: Annotated[float, typer.Option(help="delta at which epsilon is told")] = 1e-5,
) -> None:
    """Show what a node has spent of its data's privacy: epsilon over all runs, by data set and protected unit."""
    from ..engines.node_ledger import LEDGER, NodeLedger

    _check_delta(max_delta)
    path = folder / "worker" / LEDGER
    rows = list(NodeLedger(path, max_delta).rows())
    for row in rows:
        say(
            f"data {row['data'][:16]}, unit {row['unit']}: epsilon {row['epsilon']:.4g} at delta {row['delta']:g}, "
            f"{row['releases']} releases in {row['runs']} runs"
        )
    if not rows:
        say(f"{path}: nothing was spent")


@app.command()
def nginx(
    keys: Annotated[Path, typer.Option("--keys", help="folder made by 'seedtune deploy keys'")],
    file: Annotated[Path | None, typer.Option("--out", help="file to write; default: print it")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the SuperLink, on loopback")] = 8000,
    listen: Annotated[
        list[str] | None, typer.Option(help="port or address:port that nodes reach; may be repeated; default 443")
    ] = None,
    body: Annotated[str, typer.Option("--max-body", help="largest message, such as 64m or 2g")] = "64m",
) -> None:
    """Write the site for nginx by which nodes elsewhere reach the server: Flower's Fleet paths, and nothing else."""
    _ready()
    from . import keys as certificates
    from . import nginx as proxy
    from . import private

    folder = keys.absolute()
    certificates.check_server_keys(folder)
    text = proxy.site(folder, certificates.hosts_of(folder), port, listen or ["443", "[::]:443"], body)
    if file is None:
        print(text, end="")
        return
    private.write_new(file, text.encode(), 0o644)
    say(f"{file}: written; 'nginx -t' checks it, 'systemctl reload nginx' takes it")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"--max-delta {delta:g}: must lie between 0 and 1, well below 1 over the number of units")


def _ready() -> None:
    from . import places

    places.check_installed()


def _check_choice(has_no_keys: bool, plain_http: bool, flags: str) -> None:
    if has_no_keys and not plain_http:
        raise ConfigError(f"deploy: needs {flags}, or, to try things out on loopback, --plain-http")
    if plain_http and not has_no_keys:
        raise ConfigError("--plain-http: leaves out TLS and node keys: give it, or them, not both")


def _bundle() -> Path:
    return Path(str(files("seedtune"))) / "flower_app" / "bundle"


def _nodes(keys: Path | None, nodes: Path | None) -> Path | None:
    if keys is None:
        return None
    return nodes.absolute() if nodes else keys / "nodes"


def _where(model: str | None) -> str | None:
    """A folder's whole path; the name of something else, such as a hub id, stays."""
    return str(Path(model).absolute()) if model and Path(model).exists() else model
