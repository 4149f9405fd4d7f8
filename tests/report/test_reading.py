"""Reading runs: whole, unfinished, altered by someone; what is no run is said in one line."""

import math

import numpy as np
import pytest
import run_folders

from seedtune.errors import RunStoreError
from seedtune.report.reading import MOST_LETTERS, labels, number, read, text


def test_a_run_is_read_up_to_its_last_whole_round(tmp_path):
    folder = run_folders.save(tmp_path / "going-on")
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"rounds": 7, "half a li')
    (run,) = read([folder])
    assert (run.label, run.num_rounds, run.has_ended) == ("going-on", 6, False)
    assert run.total("bytes_up") == 6 * 4 * 30 and run.column("loss")[0] == 3.0


def test_a_run_that_was_stopped_before_its_first_round_has_no_rows(tmp_path):
    folder = run_folders.save(tmp_path / "run")
    (folder / "manifest.json").unlink()
    (run,) = read([folder])
    assert (run.num_rounds, len(run.rows), run.total("forwards")) == (0, 0, None)


def test_a_folder_named_twice_is_read_once(tmp_path):
    folder = run_folders.save(tmp_path / "run")
    assert len(read([folder, folder, tmp_path / "run" / ".." / "run"])) == 1


def test_names_tell_runs_apart(tmp_path):
    folders = [tmp_path / "a" / "seed-0", tmp_path / "b" / "seed-0", tmp_path / "a" / "demo"]
    assert labels(folders) == ["a/seed-0", "b/seed-0", "demo"]


def test_values_of_another_type_are_not_known(tmp_path):
    lines = run_folders.rows(2, 4)
    lines[1] |= {"train_loss": "high", "losses": [1, 2], "flops": None, "bytes_up": True}
    lines[2] |= {"losses": {"0": 1.5, "1": "x", "-2": 1.0, "99": 1.0, "zwei": 2.0, "3": None}}
    (run,) = read([run_folders.save(tmp_path / "run", 2, lines=lines)])
    assert np.isnan(run.column("train_loss")[1]) and run.total("flops") is None and run.total("bytes_up") is None
    assert list(run.by_client("losses")) == [(2, {0: 1.5})]


@pytest.mark.parametrize("value", [None, "1", True, [], {}, math.nan, math.inf, 10**400])
def test_what_is_no_finite_number_is_none(value):
    assert math.isnan(number(value))


def test_texts_are_one_line_and_not_endless():
    assert text("two\nlines\tof  text") == "two lines of text" and text(3) == ""
    assert len(text("x" * 10_000)) == MOST_LETTERS and "10000 characters, some left out" in text("x" * 10_000)
    assert text("\x1b[31mred \u202e") == "\\x1b[31mred \\u202e"


def refused(folder, reason):
    with pytest.raises(RunStoreError) as error:
        read([folder])
    assert str(error.value) == reason


def test_what_is_no_run_is_said(tmp_path):
    refused(tmp_path, f"run folder {tmp_path}: holds no run (no recipe.json); 'seedtune run' makes one")


def test_damaged_files_are_said(tmp_path):
    folder = run_folders.save(tmp_path / "rows", lines=[{"rounds": 0}, [1, 2]])
    refused(
        folder,
        f"run {folder}: metrics.jsonl line 2 is damaged (it is no JSON object but a list): the run cannot be continued",
    )
    folder = run_folders.save(tmp_path / "summary")
    (folder / "summary.json").write_text("[]")
    again = f"delete it and 'seedtune resume {folder}'"
    refused(folder, f"run {folder}: summary.json is damaged (it is no JSON object but a list): {again}")
    (folder / "summary.json").write_text("[" * 100_000)
    refused(folder, f"run {folder}: summary.json is damaged (nested too deeply): {again}")
    (folder / "summary.json").unlink()
    (folder / "summary.json").mkdir()
    refused(folder, f"run {folder}: summary.json cannot be read: Is a directory: take a fresh copy")
