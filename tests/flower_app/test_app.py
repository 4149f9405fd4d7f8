"""The app: what Flower starts on both ends, its bundle, and that the client loads no model."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fake_grid import FakeGrid
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.config import validate_fields_in_config
from grid_runs import in_one_process, nodes_of, small_federation

import seedtune.flower_app
from seedtune import run_store
from seedtune.engines.frames import RECORD, Parcel
from seedtune.errors import ConfigError, RunStoreError
from seedtune.experiment import resolved
from seedtune.flower_app import offline
from seedtune.flower_app.client import app as client_app
from seedtune.flower_app.server import go_on

BUNDLE = Path(seedtune.flower_app.__file__).parent / "bundle"


def test_the_bundle_is_one_that_flower_takes():
    config = tomllib.loads((BUNDLE / "pyproject.toml").read_text())
    is_valid, errors, warnings = validate_fields_in_config(config)
    assert (is_valid, errors, warnings) == (True, [], [])


def test_flowers_client_process_loads_neither_torch_nor_transformers():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(BUNDLE / "client_app.py")], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_node_without_a_worker_says_what_is_missing():
    FakeGrid({})  # names the process to Flower
    message = Message(RecordDict({RECORD: ConfigRecord(Parcel("00", (), ()).plain())}), 1, "train")
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(1, 1, {}, RecordDict(), {})
    with pytest.raises(ConfigError, match="needs worker-socket=PATH"):
        client_app()(message, context)


def test_the_server_begins_resumes_and_has_ended_with_the_run_in_its_folder(small_runs, tmp_path):
    recipe, folder, said = resolved(small_federation.recipe(run={"num_threads": 1})), tmp_path / "run", []
    folder.mkdir()
    (folder / run_store.RECIPE).write_text(recipe.model_dump_json())
    config = {"folder": str(folder), "patience": 1.0, "device": "cpu", "kernel": "auto"}
    summary = go_on(FakeGrid(nodes_of(tmp_path, ((0, 1), (2, 3)))), config, said.append)
    assert summary["state_digest"] == in_one_process(recipe, tmp_path / "twin")["state_digest"]
    assert go_on(FakeGrid({}), config, said.append)["state_digest"] == summary["state_digest"]
    assert any(note.startswith("round 1, train loss") for note in said)
    with pytest.raises(ConfigError, match="the app needs a run folder"):
        go_on(FakeGrid({}), {"folder": ""}, said.append)
    with pytest.raises(RunStoreError, match="holds no run"):
        go_on(FakeGrid({}), {"folder": str(tmp_path / "none")}, said.append)


def test_a_package_that_is_missing_is_named_with_what_brings_it():
    with pytest.raises(ConfigError, match=r"'flwr_of_old' is not installed: pip install '\.\[flower\]'"):
        offline.prepare("flwr_of_old")
