"""Runs over a grid that is only played, and their twins in one process; small ones, or with a tiny model."""

from collections.abc import Callable
from pathlib import Path

import small_federation
from fake_grid import FakeGrid, FakeNode

from seedtune.config import Machine, Recipe
from seedtune.engines.bench import Benches, Options
from seedtune.engines.flower_grid import FlowerGrid, Waiting, hello_of
from seedtune.engines.node import Node
from seedtune.engines.node_state import NodeState
from seedtune.experiment import resume, run

MACHINE = Machine()


def quiet(*told) -> None:
    """Hears everything and says nothing."""


def nodes_of(
    folder: Path, serving: tuple[tuple[int, ...], ...], make=small_federation.without_a_model
) -> dict[int, FakeNode]:
    """Nodes that each have a folder and a model of their own, numbered from 1."""

    def maker(number: int, clients: tuple[int, ...]) -> Callable[[], Node]:
        given = Options(clients, recipe_paths=True)
        return lambda: Node(NodeState(folder / f"node{number}"), given, Benches(make))

    return {i: FakeNode(maker(i, clients), f"site-{i}") for i, clients in enumerate(serving, 1)}


def over(grid: FakeGrid, said: list | None = None, **waiting):
    """An engine over `grid`; `said` gathers what it says."""
    seconds = {"patience": 5.0, "resend": 20.0, "finish": 30.0, **waiting}

    def make(made, store, say):
        tell = say if said is None else said.append
        hello = hello_of(made, store.run_id())
        return FlowerGrid(grid, made.recipe, hello, tell, Waiting(**seconds), clock=grid.clock, sleep=grid.sleep)

    return make


def in_one_process(recipe: Recipe, folder: Path) -> dict:
    return run(recipe, MACHINE, folder, quiet)


def on_grid(recipe: Recipe, folder: Path, grid: FakeGrid, listen=quiet, said: list | None = None, **waiting) -> dict:
    return run(recipe, MACHINE, folder, listen, engine=over(grid, said, **waiting))


def resumed(folder: Path, grid: FakeGrid, listen=quiet, said: list | None = None, **waiting) -> dict:
    return resume(folder, MACHINE, listen, engine=over(grid, said, **waiting))
