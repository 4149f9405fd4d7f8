"""Flower's side of the server: goes on with the run in a folder, over the grid that Flower gives it.

The folder holds a recipe to begin with or a run to resume (`run_store`), so it does not matter how often this process
is started: it goes on after the last whole round, and nodes say where they stand.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .. import experiment, run_store
from ..assembly import Experiment
from ..config import Machine
from ..engines.flower_grid import FlowerGrid, Say, Waiting, hello_of
from ..errors import ConfigError, SeedtuneError
from ..experiment import MakeEngine
from ..foreign_text import MOST_MESSAGE, describe, sanitize
from ..run_store import RunStore


def app() -> ServerApp:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        say = _saying(str(context.run_config.get("log", "")))
        try:
            summary = go_on(grid, dict(context.run_config), say)
        except Exception as error:
            say(f"error: {error}" if isinstance(error, SeedtuneError) else describe(error))
            raise
        say(f"the run has ended after {summary['rounds']} rounds, state digest {summary['state_digest']}")

    return server


def go_on(grid: Grid, config: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """The summary of the run in `config["folder"]`, once it has ended; at once where it had.

    config: "folder", "log"; "device" and "kernel" (`config.Machine`); "patience", "resend" and "finish", in seconds
    (`flower_grid.Waiting`).

    Raises:
        SeedtuneError: no run there, in use, or as `experiment.resume` says.
    """
    if not config.get("folder"):
        raise ConfigError("the app needs a run folder: flwr run ... --run-config 'folder=\"PATH\"'")
    folder = Path(str(config["folder"]))
    summary = run_store.summary_of(folder)
    if summary is not None:
        return summary
    seconds: dict[str, Any] = {name: float(config[name]) for name in ("patience", "resend", "finish") if name in config}
    machine = Machine(**{name: config[name] for name in ("device", "kernel") if name in config})
    engine = over(grid, replace(Waiting(), **seconds), "flower")
    return experiment.resume(folder, machine, _lines(say), say, engine)


def over(grid: Grid, waiting: Waiting, name: str, **options: Any) -> MakeEngine:
    """What makes a run's engine over a grid; `options` are those of `FlowerGrid`."""

    def make(made: Experiment, store: RunStore, say: Say) -> FlowerGrid:
        return FlowerGrid(grid, made.recipe, hello_of(made, store.run_id()), say, waiting, name, **options)

    return make


def _lines(say: Say) -> experiment.Listener:
    """A line a round: a log, not a display."""

    def listen(num_rounds, result, evaluation) -> None:
        parts = [f"round {num_rounds}"]
        if result is not None:
            parts += [f"train loss {result.train_loss:.4f}", f"{len(result.record.clients)} replies"]
            parts += [f"left out: client {client} ({reason})" for client, reason in sorted(result.failed.items())]
        if evaluation is not None:
            parts.append(f"test loss {evaluation.test.loss:.4f}")
        say(", ".join(parts))

    return listen


def _saying(log: str) -> Say:
    """Prints lines, which Flower keeps with its own, and adds them to a file where one is given."""

    def say(note: str) -> None:
        note = sanitize(note, MOST_MESSAGE)
        print(note, flush=True)
        if log:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{note}\n")

    return say
