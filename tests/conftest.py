"""Fixtures for all rooms: where the shared data sets and models lie, a tiny model, table and recipe."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client: tests ask no network

import small_federation
import tiny_runs

from seedtune import assembly, experiment
from seedtune.config import Recipe

ROOT = Path(__file__).resolve().parents[1]


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
def small_runs(monkeypatch):
    """Lets runs be of the small federation, without a model, and not wait for the disk."""
    monkeypatch.setattr(experiment, "assemble", small_federation.without_a_model)
    monkeypatch.setattr(assembly, "base_weights", lambda made: small_federation.site(made.recipe).replica.weights)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
