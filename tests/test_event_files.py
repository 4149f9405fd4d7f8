"""Event files hold what the run's own metrics hold, across an interruption."""

import struct
import sys

import pytest
from tiny_runs import MACHINE, StopAfter

from seedtune import run_store
from seedtune.errors import ConfigError, RunStoreError
from seedtune.event_files import listening
from seedtune.experiment import resume, run

pytest.importorskip("tensorboardX")
from tensorboardX.proto import event_pb2

pytestmark = pytest.mark.usefixtures("small_runs")


def events(folder) -> dict[str, dict[int, float]]:
    """By tag and round, as TensorBoard reads them: a later file takes back what it begins before."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            if event.HasField("session_log"):
                found = {tag: {s: v for s, v in steps.items() if s < event.step} for tag, steps in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


class Both:
    def __init__(self, *listeners):
        self.listeners = listeners

    def __call__(self, *news):
        for listen in self.listeners:
            listen(*news)


def test_a_run_and_its_resumption_are_told_once(tiny_recipe, tmp_path):
    folder, recipe = tmp_path / "run", tiny_recipe(federation={"num_rounds": 4}, run={"eval_every": 2})
    with pytest.raises(KeyboardInterrupt), listening(tmp_path / "events", 0) as listen:
        run(recipe, MACHINE, folder, Both(listen, StopAfter(2)))
    before = run_store.metrics_of(folder)
    sent = sum(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in before)
    with listening(tmp_path / "events", len(before) - 1, sent) as listen:
        resume(folder, MACHINE, listen)
    found, rows = events(tmp_path / "events"), run_store.metrics_of(folder)
    assert found["train/loss"] == pytest.approx({row["rounds"]: row["train_loss"] for row in rows[1:]})
    assert found["test/loss"] == pytest.approx({row["rounds"]: row["loss"] for row in rows if "loss" in row})
    total = sum(row["bytes_up"] + row["bytes_down"] for row in rows[1:])
    assert found["sent/bytes"][4] == total


def test_the_command_writes_them(seedtune, tiny_recipe, tmp_path):
    (tmp_path / "mine.toml").write_text("[federation]\nnum_rounds = 2\n[partition]\nnum_clients = 4\n")
    done = seedtune("run", "mine.toml", "--out", "run", "--tensorboard", "events")
    assert done.code == 0 and set(events(tmp_path / "events")["train/loss"]) == {1, 2}


def test_what_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunStoreError, match=r"--tensorboard .*file: cannot be written"),
        listening(tmp_path / "file", 0),
    ):
        pass
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="needs tensorboardX"), listening(tmp_path / "events", 0):
        pass
