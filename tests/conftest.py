"""Fixtures for all rooms: shared data sets and models, a tiny model, table and recipe, one thread, the command line."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client: tests ask no network

import hypothesis
import small_federation
import tiny_runs
import torch

from seedtune import assembly, cli, experiment, terminal
from seedtune.config import Recipe

ROOT = Path(__file__).resolve().parents[1]
hypothesis.settings.register_profile("untimed", deadline=None)  # no test times anything
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests begin first, so that no process has one left when all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets (`tasks/`) and small real models (`models/`); without it the test is skipped."""
    path = Path(os.environ.get("SEEDTUNE_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip("no shared data: set SEEDTUNE_SHARED_DATA to the folder with tasks/ and models/")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The folder of a tiny causal model with its tokenizer."""
    return tiny_runs.save_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory) -> Path:
    """A table for a custom task with three answers."""
    return tiny_runs.save_task(tmp_path_factory.mktemp("tiny") / "things.csv")


@pytest.fixture
def tiny_recipe(tiny_model, tiny_table) -> Callable[..., Recipe]:
    """Makes a recipe over the tiny model and table: three rounds of four clients, with sections laid over it."""
    return partial(tiny_runs.recipe, tiny_model, tiny_table)


@pytest.fixture
def ended(tiny_recipe, tmp_path) -> Path:
    """The folder of a run of the tiny recipe that has ended; some of its examples were cut."""
    experiment.run(tiny_recipe(task={"max_tokens": 5}), tiny_runs.MACHINE, tmp_path / "run", tiny_runs.NOTHING)
    return tmp_path / "run"


@pytest.fixture
def small_runs(monkeypatch):
    """Lets runs be of the small federation, without a model, and not wait for the disk."""
    monkeypatch.setattr(experiment, "assemble", small_federation.without_a_model)
    monkeypatch.setattr(assembly, "base_weights", lambda made: small_federation.site(made.recipe).replica.weights)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine, waking threads for tiny products takes far longer than the products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seedtune(tmp_path, capsys, monkeypatch) -> Callable[..., SimpleNamespace]:
    """Runs a command in `tmp_path`; gives exit code, output and errors, without the lines that only time brings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "SILENCE", 1e6)

    def command(*arguments) -> SimpleNamespace:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["seedtune", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return command
