"""A run folder in which one file is another: read as it is, or refused in one line by everything that reads it.

Files are those of small runs, one that ended, one that was stopped, one whose clients upload weights. One of them is
altered, cut, replaced, removed, or a folder has its name.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fuzzed import fuzzed, json_junk, no_foreign_error, spoiled, torn, wild_json
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_federation import recipe, without_a_model
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import experiment, inspection, results, run_store, tables, watching
from seedtune.errors import SeedtuneError
from seedtune.metrics import History, result_of
from seedtune.report import page, reading
from seedtune.studies import folders

pytestmark = pytest.mark.usefixtures("one_thread")

JSON_FILES = (run_store.RECIPE, run_store.MANIFEST, run_store.SUMMARY)
Files = dict[str, bytes]


def _run(folder: Path, stop: int = 0, **over: Any) -> Files:
    """The files of a run of four rounds, stopped after some of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "assemble", without_a_model)
        patch.setattr(os, "fsync", lambda descriptor: None)
        settings = recipe(**{"federation": {"num_rounds": 4}, "run": {"eval_every": 2}} | over)
        with suppress(KeyboardInterrupt):
            experiment.run(settings, MACHINE, folder, StopAfter(stop) if stop else NOTHING)
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Files]:
    at = tmp_path_factory.mktemp("runs")
    weights = {"federation": {"num_rounds": 4, "upload": "weights"}}
    return [_run(at / "ended"), _run(at / "stopped", 2), _run(at / "weights", 3, **weights)]


@st.composite
def altered(draw: st.DrawFn, name: str, data: bytes) -> bytes:
    """A file's bytes: torn, other JSON, or one of its lines spoiled."""
    if name == run_store.METRICS:
        lines = data.splitlines()
        place = draw(st.integers(0, len(lines) - 1))
        line = draw(_json_text(json.loads(lines[place])) | torn(lines[place]))
        return b"\n".join([*lines[:place], line, *lines[place + 1 :]]) + b"\n"
    if name in JSON_FILES:
        return draw(_json_text(json.loads(data)) | torn(data))
    return draw(torn(data))


def _json_text(tree: Any) -> st.SearchStrategy[bytes]:
    return spoiled(tree, json_junk).map(lambda value: json.dumps(value).encode()) | wild_json(tree)


def lay(folder: Path, files: Files, data: st.DataObject) -> str:
    """Writes the files with one of them altered; its name. The manifest counts what metrics.jsonl has become."""
    shutil.rmtree(folder, ignore_errors=True)
    name = data.draw(st.sampled_from(sorted(files)))
    how = data.draw(st.sampled_from(["altered"] * 8 + ["removed", "folder"]))
    changed = dict(files)
    if how == "altered":
        changed[name] = data.draw(altered(name, files[name]))
        if name in (run_store.METRICS, run_store.TRAJECTORY):
            counts = json.loads(files[run_store.MANIFEST])
            counts[{run_store.METRICS: "metrics_bytes"}.get(name, "trajectory_bytes")] = len(changed[name])
            changed[run_store.MANIFEST] = json.dumps(counts).encode()
    for each, content in changed.items():
        path = folder / each
        path.parent.mkdir(parents=True, exist_ok=True)
        if each != name or how == "altered":
            path.write_bytes(content)
        elif how == "folder":
            path.mkdir()
    return name


def printed(*parts: Any) -> None:
    console = Console(file=io.StringIO(), width=100)
    for part in parts:
        console.print(part)


def resumed_rows(folder: Path) -> None:
    """What a run that goes on reads back from its folder."""
    state, rows = run_store.trajectory_of(folder), run_store.metrics_of(folder)
    History.of(run_store.recipe_of(folder), rows)
    for record, row in zip(state.records, rows[1:], strict=True):
        result_of(record, row)


def recovered(folder: Path) -> None:
    with run_store.open_run(folder) as store:
        store.recover()
        store.run_id()


READERS: dict[str, Callable[[Path], Any]] = {
    "inspect": lambda at: printed(*tables.describe(at, inspection.described(at))),
    "compare": lambda at: printed(*tables.compare(inspection.compared([at]))),
    "compare to a target": lambda at: printed(*tables.at_target(inspection.compared_at([at], loss=1.0))),
    "watch": lambda at: printed(watching.picture(watching.sight(at))),
    "watch line by line": lambda at: [watching.line(row, 9) for row in watching.sight(at).rows],
    "results": lambda at: printed(*results.results(run_store.summary_of(at) or inspection.compared([at]), at)),
    "resume's rows": resumed_rows,
    "resume's folder": recovered,
    "snapshot": lambda at: run_store.snapshot_of(at, 2),
    "study": lambda at: _judged(folders.ended(at)),
}


def _judged(run: Any) -> Any:
    return run and (run.loss, run.lowest_loss, run.rounds, run.best, run.stopped_by, run.total("flops"))


@fuzzed(120)
@given(st.integers(0, 2), st.data())
def test_a_folder_in_which_a_file_is_another(runs, tmp_path_factory, which, data):
    folder = tmp_path_factory.getbasetemp() / "altered"
    lay(folder, runs[which], data)
    for name, read in READERS.items():
        with no_foreign_error(name):
            read(folder)


@fuzzed(25)
@given(st.integers(0, 2), st.data())
def test_the_report_of_a_folder_in_which_a_file_is_another(runs, tmp_path_factory, which, data):
    folder = tmp_path_factory.getbasetemp() / "reported"
    lay(folder, runs[which], data)
    with no_foreign_error("report"):
        page.html(reading.read([folder]))


@fuzzed(40)
@given(st.integers(0, 2), st.data())
def test_a_run_goes_on_from_a_folder_in_which_a_file_is_another(runs, tmp_path_factory, which, data):
    """Where it does, it comes to the end that it would have come to, or its recipe is another."""
    folder = tmp_path_factory.getbasetemp() / "resumed"
    name = lay(folder, runs[which], data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "assemble", without_a_model)
        patch.setattr(os, "fsync", lambda descriptor: None)
        with no_foreign_error("resume"):
            if name != run_store.RECIPE:  # whose settings would be a run of any size
                experiment.resume(folder, MACHINE, NOTHING)


def test_what_is_altered_is_read_otherwise(runs, tmp_path):
    for files in runs:
        for name, content in files.items():
            (tmp_path / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "whole" / name).write_bytes(content)
        for read in (READERS["inspect"], READERS["watch"], READERS["resume's rows"]):
            read(tmp_path / "whole")
        (tmp_path / "whole" / run_store.MANIFEST).write_text("{}")
        with pytest.raises(SeedtuneError):
            READERS["watch"](tmp_path / "whole")
        shutil.rmtree(tmp_path / "whole")
