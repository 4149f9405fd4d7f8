"""The command line: parse, call, print, exit codes. No logic of runs lives here.

Exit codes: 0 done; 1 the reader of standard output is gone; 2 a request that cannot be met, with one line that says
why; 3 a run that diverged (`verdict`), its summary written as ever; 130 stopped by Ctrl-C.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from . import presets, streams
from .command_group import CONTEXT, CommandGroup
from .console import DIVERGED, STOPPED, Device, Json, Set, err, out, pairs, show
from .deploy.commands import app as deploy
from .errors import ConfigError, SeedtuneError, unknown
from .foreign_text import MOST_MESSAGE, sanitize
from .probing import app as probe
from .recipe_text import assignment, machine_of, merged
from .studies.commands import study
from .task_commands import register as register_task_commands

typer.core.HAS_RICH = False  # before 0.21 typer escapes defaults and ranges for rich, even in plain help
app = typer.Typer(
    cls=CommandGroup,
    context_settings=CONTEXT,
    help="Tune language models across devices with forward passes only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(probe, name="probe")
app.add_typer(deploy, name="deploy")
app.command()(study)
register_task_commands(app)
Kernel = Annotated[
    str,
    typer.Option("--kernel", help="noise kernel: auto, compiled or torch; the result is the same", show_default=False),
]
Keep = Annotated[
    str,
    typer.Option(
        "--keep-activations",
        help="outputs of frozen layers: auto keeps them in memory, then on disk; memory; none. The result is the same",
        show_default=False,
    ),
]
KeepMemory = Annotated[
    int, typer.Option("--activation-memory", min=0, help="MiB of kept outputs in memory", show_default=True)
]
Events = Annotated[Path | None, typer.Option("--tensorboard", help="also write event files for TensorBoard there")]
Engine = Annotated[
    str,
    typer.Option("--engine", help="what carries messages: in-process; flower-sim; same digest", show_default=False),
]
Nodes = Annotated[
    int, typer.Option("--nodes", min=0, help="flower-sim: simulated nodes; default one a client", show_default=False)
]


def main() -> None:
    """The entry point of the command `seedtune`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        streams.prepare()
        code = app(prog_name="seedtune", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that is gone is no error
        if code == STOPPED:  # what click makes of Ctrl-C, in some versions
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except SeedtuneError as error:
        _fail(str(error))
    except BrokenPipeError:  # a reader such as `head` has seen enough
        streams.discard()
        sys.exit(1)
    except OSError as error:
        _fail(streams.explain(error))
    except (Exception, KeyboardInterrupt) as error:
        _end(error)
    finally:
        streams.finish()


def _end(error: BaseException) -> NoReturn:
    """What is not an error of ours: Ctrl-C, and what click refuses; anything else is raised again."""
    if streams.is_interrupt(error) or isinstance(error, typer.Abort):
        err.print("stopped")
        sys.exit(STOPPED)
    if type(error).__module__.partition(".")[0] not in ("click", "typer"):
        raise error
    told: Any = error  # typer may bring a click of its own, so there is no class to name
    if type(error).__name__ == "NoArgsIsHelpError":
        err.print(told.format_message())
        sys.exit(2)
    _fail(told.format_message())


def _fail(reason: str) -> NoReturn:
    with suppress(OSError):  # standard error may be full too
        err.print("error: " + sanitize(" ".join(reason.splitlines()), MOST_MESSAGE), style="red", soft_wrap=True)
    sys.exit(2)


@app.callback(invoke_without_command=True)
def version(shown: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False) -> None:
    """Tune language models across devices with forward passes only."""
    if shown:
        out.print(f"seedtune {metadata.version('seedtune')}")


@app.command()
def run(
    recipe: Annotated[
        str | None,
        typer.Argument(help="a known recipe or a TOML file; without one, give --model and --task", show_default=False),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="run folder; default runs/RECIPE")] = None,
    model: Annotated[str | None, typer.Option(help="a known name, a folder, a GGUF file or a hub id")] = None,
    task: Annotated[str | None, typer.Option(help="a known task, or 'custom'")] = None,
    method: Annotated[str | None, typer.Option(help="a known method, laid over the recipe")] = None,
    rounds: Annotated[int | None, typer.Option(help="number of rounds")] = None,
    settings: Set = None,
    replace: Annotated[bool, typer.Option("--replace", help="delete a run that is in the folder")] = False,
    kernel: Kernel = "auto",
    device: Device = "cpu",
    events: Events = None,
    engine: Engine = "in-process",
    nodes: Nodes = 0,
    keep: Keep = "auto",
    keep_memory: KeepMemory = 1024,
) -> None:
    """Tune a model on a task: start a run in a folder of its own."""
    flags: dict[str, Any] = {}
    for section, key, value in (
        ("model", "name", model),
        ("task", "name", task),
        ("federation", "num_rounds", rounds),
    ):
        flags = merged(flags, {section: {key: value}} if value is not None else {})
    notes: list[str] = []
    composed = presets.composed(recipe, method, flags, *map(assignment, settings or []), say=notes.append)
    folder = folder or Path("runs") / Path(recipe or presets.START).stem
    machine, (start, _) = machine_of(kernel, device, keep, keep_memory), _driven_by(engine, nodes)

    say = _say_after(notes)

    with _progress(composed.federation.num_rounds, folder, events) as listen:
        summary = start(composed, machine, folder, lambda *news: (say(), listen(*news)), replace, say)
    _print_summary(summary, folder)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="a run folder")],
    kernel: Kernel = "auto",
    device: Device = "cpu",
    events: Events = None,
    engine: Engine = "in-process",
    nodes: Nodes = 0,
    keep: Keep = "auto",
    keep_memory: KeepMemory = 1024,
) -> None:
    """Resume an interrupted run from its last completed round."""
    machine, (_, go_on) = machine_of(kernel, device, keep, keep_memory), _driven_by(engine, nodes)
    from . import run_store

    recipe = run_store.recipe_of(folder)
    rows = run_store.metrics_of(folder)
    sent = sum((row.get("bytes_up") or 0) + (row.get("bytes_down") or 0) for row in rows)
    with _progress(recipe.federation.num_rounds, folder, events, max(0, len(rows) - 1), sent) as listen:
        summary = go_on(folder, machine, listen, _say)
    _print_summary(summary, folder)


@app.command()
def evaluate(
    subject: Annotated[
        str, typer.Argument(help="a run folder, or a model: a known name, a folder, a GGUF file, a hub id")
    ],
    task: Annotated[str | None, typer.Option(help="another task than the run's")] = None,
    base: Annotated[str | None, typer.Option(help="where an adapter's or a run's base is now, if it has moved")] = None,
    settings: Set = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Evaluate a run's tuned model, or any model, on a task's test examples, class by class."""
    overrides, machine = [assignment(text) for text in settings or []], machine_of("auto", device)
    from . import terminal, trying

    with terminal.waiting(err):
        found = trying.evaluated(subject, task, *overrides, machine=machine, base=base)
    if as_json or "confusion" not in found:
        show(found, as_json)
        return
    confusion, classes = found.pop("confusion"), found.pop("classes")
    for table in (pairs(found), terminal.classes(classes), terminal.confusion(classes, confusion)):
        out.print(table)
        out.print()


@app.command()
def generate(
    subject: Annotated[
        str, typer.Argument(help="a run folder, or a model: a known name, a folder, a GGUF file, a hub id")
    ],
    prompt: Annotated[str, typer.Argument(help="the text to go on from; '-' reads it from standard input")],
    tokens: Annotated[int, typer.Option(min=1, help="most tokens to write")] = 64,
    base: Annotated[str | None, typer.Option(help="where the base is now, if it has moved")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Generate text from a prompt with a run's tuned model, or any causal model."""
    machine = machine_of("auto", device)
    from . import terminal, trying

    with terminal.waiting(err):
        written = trying.written(subject, sys.stdin.read() if prompt == "-" else prompt, tokens, base, machine)
    if as_json:
        show(written, as_json)
    else:
        out.print(written["text"], soft_wrap=True)


@app.command()
def replay(
    trajectory: Annotated[Path, typer.Argument(help="a trajectory file, or a run folder")],
    folder: Annotated[Path | None, typer.Option("--out", help="new folder for the tuned model")] = None,
    gguf: Annotated[Path | None, typer.Option("--gguf", help="new file for its LoRA adapter, for llama.cpp")] = None,
    base: Annotated[str | None, typer.Option(help="where the base is now, if it has moved")] = None,
    round_: Annotated[int | None, typer.Option("--round", help="number of rounds to replay; default all")] = None,
    merge: Annotated[bool, typer.Option("--merged", help="merge a LoRA adapter into its base")] = False,
) -> None:
    """Rebuild the tuned model from its base and its trajectory, bit for bit."""
    from . import inspection, terminal

    with terminal.waiting(err):
        state = inspection.exported(trajectory, folder, base, round_, merge, _say, gguf)
    written = " and ".join(str(path) for path in (folder, gguf) if path)
    out.print(
        f"{written}: the model after {state['rounds']} rounds, state digest {state['state_digest']}", soft_wrap=True
    )


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="a run folder or a trajectory file")], as_json: Json = False
) -> None:
    """Describe a run or a trajectory file: what was tuned, how it went, what to do next."""
    from . import inspection

    found = inspection.described(path)
    if as_json:
        show(found, as_json)
        return
    from . import tables

    for part in tables.describe(path, found):
        out.print(part, soft_wrap=isinstance(part, str))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="run folders")],
    accuracy: Annotated[
        float | None, typer.Option("--to-accuracy", help="what each run needed to this test accuracy, such as 0.8")
    ] = None,
    loss: Annotated[
        float | None, typer.Option("--to-loss", help="what each run needed to this test loss, such as 0.5")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs side by side, or by what each needed to reach a target."""
    from . import inspection, tables

    if accuracy is None and loss is None:
        rows, parts = inspection.compared(folders), tables.compare
    else:
        rows, parts = inspection.compared_at(folders, accuracy, loss), tables.at_target
    if as_json:
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    for part in parts(rows):
        out.print(part, soft_wrap=isinstance(part, str))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="run folders; runs that go on or were stopped too")],
    file: Annotated[
        Path | None, typer.Option("--out", help="HTML file; default RUN-report.html beside the first run")
    ] = None,
    probes: Annotated[
        list[Path] | None, typer.Option("--probe", help="what 'seedtune probe --out' wrote, shown too; may be repeated")
    ] = None,
) -> None:
    """Write one HTML page about a run, or several compared, that needs no network."""
    from .report import page

    path = page.write(folders, file, probes or ())
    runs = f"{len(folders)} runs" if len(folders) > 1 else "1 run"
    out.print(f"{path}: {runs}, {path.stat().st_size / 1000:.0f} kB; open it in a browser", soft_wrap=True)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="a run folder")],
    once: Annotated[bool, typer.Option("--once", help="show how it stands, and exit")] = False,
) -> None:
    """Watch a run that another process carries out; Ctrl-C stops only the watching."""
    from . import watching

    watching.watch(out, folder, once=once)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the known recipes and methods."""
    found = {kind: presets.names(kind) for kind in ("recipes", "methods")}
    if as_json:
        print(json.dumps(found, indent=2))
        return

    for kind, known in found.items():
        out.print(f"{kind}:")
        out.print(pairs(known))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this installation: versions, kernels, known answers, extras and packaged data."""
    from . import inspection

    found = inspection.health()
    if as_json:
        show(found, as_json)
    else:
        from . import tables

        for part in tables.health(found):
            out.print(part, soft_wrap=isinstance(part, str))
    if found["noise"] != "as known":
        raise SeedtuneError(f"noise: {found['noise']}; directions made here would not replay elsewhere")


@contextmanager
def _progress(num_rounds: int, folder: Path, events: Path | None, begun: int = 0, sent: int = 0) -> Iterator[Any]:
    """Shows a run while it goes, and writes event files if asked to; on Ctrl-C says how to go on and exits with 130."""
    from . import event_files, run_store, terminal

    try:
        with terminal.progress(out, num_rounds, sent) as show, ExitStack() as files:
            write = files.enter_context(event_files.listening(events, begun, sent)) if events else None
            yield lambda *news: [listen(*news) for listen in (show, write) if listen]
    except KeyboardInterrupt:
        kept = f"every whole round is kept: continue with 'seedtune resume {folder}'"
        err.print(f"stopped; {kept if run_store.is_run(folder) else 'no round was begun, nothing is kept'}")
        sys.exit(130)


def _driven_by(engine: str, num_nodes: int) -> tuple[Callable[..., dict], Callable[..., dict]]:
    """How a run is started and gone on with, over an engine; a package that is missing is said before anything else."""
    if engine == "flower-sim":
        from .flower_app import offline

        offline.prepare("ray")
        from .flower_app import simulation

        return partial(simulation.run, num_nodes=num_nodes), partial(simulation.resume, num_nodes=num_nodes)
    if engine != "in-process":
        raise ConfigError(unknown("engine", engine, ("in-process", "flower-sim")))
    if num_nodes:
        raise ConfigError(f"--nodes {num_nodes}: needs --engine flower-sim")
    from . import experiment

    return experiment.run, experiment.resume


def _say(note: str) -> None:
    out.print(note, soft_wrap=True)


def _say_after(notes: list[str]) -> Callable[..., None]:
    """Print notes before the first that follows: a run that is refused until then prints none of them."""

    def say(*more: str) -> None:
        for note in (*notes, *more):
            _say(note)
        notes.clear()

    return say


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    from .results import results

    for part in results(summary, folder):
        out.print(part, soft_wrap=True)
    if summary.get("outcome") == "diverged":
        raise typer.Exit(DIVERGED)
