import json
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_federation import recipe, site, without_a_model
from tiny_runs import MACHINE, NOTHING
from whole_files import first_row, row, summary

from seedtune import experiment, run_folder, run_store
from seedtune.errors import ConfigError, RunStoreError, TrajectoryError
from seedtune.models.evaluation import Evaluation
from seedtune.run_store import (
    MANIFEST,
    METRICS,
    RECIPE,
    SUMMARY,
    TRAJECTORY,
    RunStore,
    create,
    findings_of,
    is_run,
    keep_finding,
    log_bytes,
    metrics_of,
    open_run,
    recipe_of,
    snapshot_of,
    summary_of,
    trajectory_of,
)  # fmt: skip
from seedtune.zo.trajectory import RoundRecord

SETTINGS = recipe()
HEADER = site(SETTINGS).header
NUM_ROUNDS = 2


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """What is asked of the disk is tested, not the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def record(round_: int) -> RoundRecord:
    scalars = np.full((4, 1, 2), 0.5 + round_, np.float32)
    return RoundRecord(round_, (0, 1, 2, 3), scalars, np.full(4, 0.25), bytes([round_] * 16))


def play(folder: Path, snapshots: bool = False) -> None:
    """What a run does to its folder: begun or gone on with, to its end."""
    if is_run(folder):
        with open_run(folder) as store:
            manifest = store.recover()
            done = manifest.num_rounds if manifest else begun(store)
            finish(store, done, snapshots)
    else:
        with create(folder, replace=True) as store:
            finish(store, begun(store), snapshots)


def begun(store: RunStore) -> int:
    store.begin(SETTINGS, HEADER, first_row())
    return 0


def finish(store: RunStore, done: int, snapshots: bool) -> None:
    for round_ in range(done, NUM_ROUNDS):
        if snapshots:
            store.keep_snapshot(round_, {"w": torch.full((3,), float(round_))}, others=())
        store.append(record(round_), row(round_ + 1))
    store.finish(summary())


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Crash(BaseException):
    """The machine is gone."""


class Operations:
    """Counts what is done to the disk, and crashes before the k-th of them, or in the middle of a write."""

    def __init__(self, monkeypatch, crash_at: int = -1):
        self.count, self.crash_at = 0, crash_at
        append = RunStore._append
        for owner, name in ((os, "fsync"), (os, "truncate"), (Path, "replace"), (Path, "unlink"), (Path, "write_text")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))
        monkeypatch.setattr(RunStore, "_append", self.torn(append))
        monkeypatch.setattr(run_store, "save_file", self.half_saved(run_store.save_file))

    def counted(self, operation):
        def call(*args, **options):
            self.step()
            return operation(*args, **options)

        return call

    def torn(self, append):
        def call(store, name, data):
            try:
                self.step()
            except Crash:
                with open(store.folder / name, "ab") as file:
                    file.write(data[: len(data) // 2])
                raise
            return append(store, name, data)

        return call

    def half_saved(self, save_file):
        def call(tensors, path):
            try:
                self.step()
            except Crash:
                path.write_bytes(b"half a file")
                raise
            save_file(tensors, path)

        return call

    def step(self):
        self.count += 1
        if self.count - 1 == self.crash_at:
            raise Crash


@pytest.mark.parametrize("snapshots", [False, True])
def test_a_crash_at_any_operation_loses_no_whole_round(tmp_path, snapshots):
    play(tmp_path / "whole", snapshots)
    with pytest.MonkeyPatch.context() as patch:
        operations = Operations(patch)
        play(tmp_path / "counted", snapshots)
    assert contents(tmp_path / "counted") == contents(tmp_path / "whole") and operations.count > 20
    for k in range(operations.count):
        folder = tmp_path / f"crashed-{k}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
            Operations(patch, k)
            play(folder, snapshots)
        before = RunStore(folder).manifest().num_rounds if (folder / MANIFEST).exists() else 0
        assert before == 0 or len(trajectory_of(folder).records) == before == len(metrics_of(folder)) - 1
        assert not (snapshots and before) or snapshot_of(folder, before - 1)["w"].tolist() == [before - 1] * 3
        play(folder, snapshots)
        assert contents(folder) == contents(tmp_path / "whole"), f"crashed at operation {k}"


def test_a_run_is_read_back(tmp_path):
    play(tmp_path / "run")
    state = trajectory_of(tmp_path / "run")
    assert state.header.base_digest == HEADER.base_digest and [r.round for r in state.records] == [0, 1]
    assert state.records[1].scalars.tolist() == record(1).scalars.tolist()
    assert metrics_of(tmp_path / "run") == [first_row(), row(1), row(2)]
    assert recipe_of(tmp_path / "run") == SETTINGS and summary_of(tmp_path / "run") == summary()


def test_only_the_last_snapshots_are_kept_unless_all_are_wanted(tmp_path):
    with create(tmp_path / "run") as store:
        for round_ in range(4):
            store.keep_snapshot(round_, {"w": torch.full((3,), float(round_))}, others=())
    assert snapshot_of(tmp_path / "run", 3)["w"].tolist() == [3, 3, 3]
    assert snapshot_of(tmp_path / "run", 2)["w"].tolist() == [2, 2, 2]  # if round 3 never becomes whole
    with pytest.raises(RunStoreError, match=r"the weights after round 1 were not kept; set run.keep_snapshots = 'all'"):
        snapshot_of(tmp_path / "run", 1)


def test_a_folder_that_never_begins_is_not_left_behind(tmp_path):
    with pytest.raises(KeyError), create(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []

    play(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(KeyError), create(tmp_path / "run", replace=True):
        raise KeyError
    assert contents(tmp_path / "run") == before


def test_a_run_is_replaced_only_when_asked(tmp_path):
    play(tmp_path, snapshots=True)
    with pytest.raises(RunStoreError) as error, create(tmp_path):
        pass
    assert str(error.value) == (
        f"run folder {tmp_path}: holds a run already; continue it with 'seedtune resume {tmp_path}', choose another "
        f"with --out, or add --replace"
    )
    with create(tmp_path, replace=True) as store:
        store.begin(SETTINGS, HEADER, first_row())
    assert trajectory_of(tmp_path).records == () and summary_of(tmp_path) is None
    assert set(contents(tmp_path)) == {RECIPE, TRAJECTORY, METRICS, MANIFEST}


def test_findings_are_kept_beside_a_run_and_go_with_it(tmp_path):
    with create(tmp_path) as store:
        begun(store)
        keep_finding(tmp_path, "rank", "first")
        path = keep_finding(tmp_path, "rank", "second")
    (path.parent / "mine.txt").write_text("mine")
    assert findings_of(tmp_path) == [path] and path.read_text() == "second"
    with open_run(tmp_path) as store:
        finish(store, store.recover().num_rounds, snapshots=False)
    assert len(trajectory_of(tmp_path).records) == NUM_ROUNDS and findings_of(tmp_path) == [path]
    with create(tmp_path, replace=True) as store:
        assert findings_of(tmp_path) == [path]
        begun(store)
    assert findings_of(tmp_path) == [] and (path.parent / "mine.txt").exists()
    with pytest.raises(RunStoreError, match="holds no run"):
        keep_finding(tmp_path / "gone", "rank", "third")


def test_a_half_cleared_run_is_no_run_and_can_be_replaced(tmp_path):
    play(tmp_path)
    (tmp_path / RECIPE).unlink()
    with pytest.raises(RunStoreError, match=r"holds no run \(no recipe.json\); 'seedtune run' makes one"), \
            open_run(tmp_path):  # fmt: skip
        pass
    with create(tmp_path, replace=True) as store:
        store.begin(SETTINGS, HEADER, {})
    assert is_run(tmp_path)


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path, replace):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunStoreError, match=r"holds other files than a run's, such as thesis.tex; choose an empty"), \
            create(tmp_path, replace):  # fmt: skip
        pass
    assert contents(tmp_path) == {"thesis.tex": b"precious"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunStoreError, match=r"file: is a file; choose another with --out"), create(tmp_path / "file"):
        pass
    with pytest.raises(RunStoreError, match=r"file/run: cannot be written: Not a directory; choose another"), \
            create(tmp_path / "file" / "run"):  # fmt: skip
        pass


def test_a_folder_that_cannot_be_made_is_refused():
    refused = r"^run folder /proc/1/run: cannot be written: .*; choose another with --out$"
    with pytest.raises(RunStoreError, match=refused), create(Path("/proc/1/run")):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def read_only(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(run_folder, "sync", read_only)
    with pytest.raises(RunStoreError, match=r"cannot be written: Read-only file system"), create(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(RunStoreError) as error, create(tmp_path / "run", needed_bytes=5 * 2**20):
        pass
    assert str(error.value) == (
        f"run folder {tmp_path / 'run'}: its disk has 3 MiB free, this run may need 6; make room or choose another "
        f"with --out"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    refused = r"No space left on device; make room, then 'seedtune resume .*run' goes on after the last whole round$"
    with pytest.raises(RunStoreError, match=refused), create(tmp_path / "run") as store:
        store.begin(SETTINGS, HEADER, {})
        monkeypatch.setattr(os, "fsync", full)
        store.append(record(0), {})
    monkeypatch.undo()
    play(tmp_path / "run")
    assert len(trajectory_of(tmp_path / "run").records) == 2


def test_a_folder_in_use_is_refused(tmp_path):
    play(tmp_path)
    with open_run(tmp_path):
        for attempt in (open_run(tmp_path), create(tmp_path, replace=True)):
            with pytest.raises(RunStoreError, match=r"is in use by another process; wait for it, or choose another"), \
                    attempt:  # fmt: skip
                pass
    with open_run(tmp_path):
        pass


def test_expected_bytes_cover_what_is_written(tmp_path):
    play(tmp_path)
    written = sum(len(contents(tmp_path)[name]) for name in (TRAJECTORY, METRICS))
    assert written < log_bytes(recipe(federation={"num_rounds": NUM_ROUNDS})) < 10 * written
    assert log_bytes(recipe(federation={"num_rounds": 10**6, "local_steps": 100})) > 3 * 10**9


@pytest.mark.parametrize("upload", ["scalars", "weights"])
@pytest.mark.parametrize("num_clients, policy", [(2, "fixed"), (200, "model-diff")])
def test_expected_bytes_cover_a_real_run_of_many_clients(
    tmp_path, small_runs, monkeypatch, upload, num_clients, policy
):
    """Each client's loss, signal and evaluation are in the rows; nobody evaluates in small runs, so it is done here."""
    held = {client: Evaluation(1 / 3 + client, 1 / 3, 3) for client in range(num_clients)}
    monkeypatch.setattr(experiment, "assemble", partial(without_a_model, evaluate_clients=lambda: held))
    settings = recipe(
        partition={"num_clients": num_clients, "heldout_fraction": 0.1}, federation={"upload": upload},
        personalise={"policy": policy}, run={"eval_every": 1},
    )  # fmt: skip
    experiment.run(settings, MACHINE, tmp_path / "run", NOTHING)
    written = sum((tmp_path / "run" / name).stat().st_size for name in (TRAJECTORY, METRICS))
    assert written < log_bytes(settings) < 3 * written, (written, log_bytes(settings))


def damage(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "name, data, read, message",
    [
        (MANIFEST, b"{", trajectory_of, "manifest.json is damaged (not JSON: "),
        (
            MANIFEST,
            b"[]",
            metrics_of,
            "manifest.json is damaged (it is no JSON object but a list): the run cannot be continued",
        ),
        (MANIFEST, b'{"format": 9}', trajectory_of, "manifest.json has format 9, which is not ours, 2"),
        (TRAJECTORY, b"short", trajectory_of, "trajectory.seedtune has 5 bytes where manifest.json counts"),
        (METRICS, b"", metrics_of, "metrics.jsonl has 0 bytes where manifest.json counts"),
        (METRICS, b"x" * 9999, metrics_of, "metrics.jsonl is damaged or was altered since it was written"),
        (RECIPE, b"\xff", recipe_of, "recipe.json is damaged"),
        (SUMMARY, b"{", summary_of, "summary.json is damaged (not JSON: Expecting property name"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, read, message):
    play(tmp_path)
    damage(tmp_path, name, data)
    with pytest.raises(RunStoreError) as error:
        read(tmp_path)
    assert message in str(error.value) and str(error.value).startswith(f"run {tmp_path}: ")


def test_files_that_lost_counted_bytes_are_not_continued(tmp_path):
    play(tmp_path)
    damage(tmp_path, TRAJECTORY, (tmp_path / TRAJECTORY).read_bytes()[:-1])
    with open_run(tmp_path) as store, pytest.raises(RunStoreError, match="it was cut off or replaced"):
        store.recover()


def test_an_altered_trajectory_is_recognised(tmp_path):
    play(tmp_path)
    data = bytearray((tmp_path / TRAJECTORY).read_bytes())
    data[-40] ^= 1
    damage(tmp_path, TRAJECTORY, bytes(data))
    with pytest.raises(TrajectoryError, match="truncated or altered after 1 whole rounds"):
        trajectory_of(tmp_path)


def test_a_damaged_snapshot_is_named(tmp_path):
    play(tmp_path, snapshots=True)
    damage(tmp_path / "snapshots", "round-00000001.safetensors", b"nonsense")
    with pytest.raises(RunStoreError, match=r"snapshot round-00000001.safetensors is damaged .* take a fresh copy"):
        snapshot_of(tmp_path, 1)


def test_a_recipe_of_another_version_is_refused(tmp_path):
    play(tmp_path)
    (tmp_path / RECIPE).write_text(json.dumps({"local": {"temperature": 1}}))
    with pytest.raises(ConfigError, match=r"recipe.json: unknown key 'temperature'"):
        recipe_of(tmp_path)


def test_a_run_without_rounds_yet_says_so(tmp_path):
    with create(tmp_path / "run") as store:
        run_folder.replace_text(store.folder / RECIPE, SETTINGS.model_dump_json())
    with pytest.raises(RunStoreError, match="was stopped before its first round: it holds no trajectory yet"):
        trajectory_of(tmp_path / "run")
    assert metrics_of(tmp_path / "run") == []
