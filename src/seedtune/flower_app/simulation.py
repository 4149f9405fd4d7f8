"""A run over Flower's simulation: nodes that Ray's processes play on this machine, over the messages of a deployment.

Each process holds one model and computes with the recipe's number of threads, so a run ends with the digest that it has
in one process. Run folder, progress, summary and resuming are those of any run. While a run is unfinished, what its
nodes keep lies in the run folder, under `nodes`.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from .. import experiment, run_store
from ..assembly import Experiment
from ..config import Machine, Recipe
from ..engines.engine import RunEngine
from ..engines.flower_grid import Waiting
from ..errors import EngineError
from ..experiment import Listener, MakeEngine, Say
from ..run_store import RunStore
from . import offline
from .client import Simulated
from .client import app as client_app
from .server import over

NAME = "flower-sim"
NODES = "nodes"
_START_SECONDS = 300.0


def run(
    recipe: Recipe, machine: Machine, folder: Path, listen: Listener, replace_run: bool, say: Say, num_nodes: int
) -> dict[str, Any]:
    """As `experiment.run`. num_nodes: 0: one a client."""
    experiment.check_data_is_here(recipe)
    with _simulating(machine, folder, num_nodes) as engine:
        return experiment.run(recipe, machine, folder, listen, replace_run, say, engine)


def resume(folder: Path, machine: Machine, listen: Listener, say: Say, num_nodes: int) -> dict[str, Any]:
    """As `experiment.resume`."""
    experiment.check_data_is_here(run_store.recipe_of(folder))
    with _simulating(machine, folder, num_nodes) as engine:
        return experiment.resume(folder, machine, listen, say, engine)


@contextmanager
def _simulating(machine: Machine, folder: Path, num_nodes: int) -> Iterator[MakeEngine]:
    """An engine that starts the simulation once a run needs it; stopped when the context ends."""
    running = _Running()

    def engine(made: Experiment, store: RunStore, say: Say) -> RunEngine:
        grid, count = running.start(made.recipe, machine, folder / NODES, num_nodes)
        waiting = Waiting(num_nodes=count, poll=(0.005, 0.1), look=0.1)
        return over(grid, waiting, NAME, check=running.check)(made, store, say)

    try:
        yield engine
    finally:
        running.stop()
        if run_store.is_run(folder) and run_store.summary_of(folder) is not None:
            shutil.rmtree(folder / NODES, ignore_errors=True)


class _Running:
    """Flower's simulation in a thread beside the run; its server app does nothing but lend the grid."""

    def __init__(self) -> None:
        self._grids: Queue[Grid] = Queue()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, recipe: Recipe, machine: Machine, folder: Path, num_nodes: int) -> tuple[Grid, int]:
        """The grid, and the number of nodes.

        Raises:
            EngineError: the simulation did not start.
        """
        num_clients = recipe.partition.num_clients
        count = min(num_nodes or num_clients, num_clients)
        plain = tuple(sorted(machine.model_dump().items()))
        client = client_app(Simulated(str(folder.absolute()), num_clients, plain))
        config = _resources(recipe, machine, count)
        self._thread = threading.Thread(target=self._simulate, args=(client, count, config), daemon=True)
        self._thread.start()
        try:
            return self._grids.get(timeout=_START_SECONDS), count
        except Empty:
            raise EngineError(f"Flower's simulation did not start in {_START_SECONDS:g} s: {self._error}") from None

    def check(self) -> None:
        """
        Raises:
            EngineError: the simulation has stopped underneath the run.
        """
        if self._thread is not None and not self._thread.is_alive():
            raise EngineError(f"Flower's simulation has stopped: {self._error}; every whole round is kept")

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def _simulate(self, client: Any, count: int, config: dict[str, Any]) -> None:
        server = ServerApp()

        @server.main()
        def lend(grid: Grid, context: Context) -> None:
            self._grids.put(grid)
            self._ended.wait()

        offline.silence()
        try:
            run_simulation(server, client, count, backend_config=config)
        except BaseException as error:  # also what Flower makes of an exit
            self._error = error


def _resources(recipe: Recipe, machine: Machine, num_nodes: int) -> dict[str, Any]:
    """What Ray shares out: a process with the recipe's threads for as many nodes at a time as there are cores."""
    threads = recipe.run.num_threads
    cores = max(threads, min(len(os.sched_getaffinity(0)), threads * num_nodes))
    each: dict[str, float] = {"num_cpus": threads}
    if machine.device.startswith("cuda"):
        each["num_gpus"] = threads / cores
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    return {"init_args": {"num_cpus": cores, **quiet}, "client_resources": each}
