"""`seedtune study` as a user meets it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs

from seedtune import run_store
from seedtune.studies import runner
from seedtune.studies.catalogue import STUDIES


@pytest.fixture
def tiny(tiny_model, tiny_table) -> list[str]:
    """The options that put a study to the tiny model and table."""
    values = tiny_runs.values(tiny_model, tiny_table, federation={"local_steps": 3, "num_rounds": 2})
    values |= {"run": {"eval_every": 1}, "partition": {}}
    settings = {f"{section}.{key}": value for section in values for key, value in values[section].items()}
    del settings["model.name"], settings["task.name"]
    text = (f"--set={name}={tiny_runs._toml(value)}" for name, value in settings.items())
    return ["--model", str(tiny_model), "--task", "custom", *text]


def test_studies_are_listed_without_loading_torch():
    code = "import sys; from seedtune.cli import main; main(); assert not {'torch', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "study", "--list"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES) and lines[0].rstrip().endswith("?")


def test_studies_are_listed_as_json(seedtune):
    assert list(json.loads(seedtune("study", "--list", "--json").out)) == list(STUDIES)


def test_a_study_is_run_and_told(seedtune, tiny, tmp_path):
    result = seedtune("study", "local-steps", *tiny, "--seeds", 1, "--jobs", 1, "--out", "here")
    assert (result.code, result.err) == (0, "") and "\x1b" not in result.out
    lines = result.out.splitlines()
    assert lines[0].startswith("1/3  H = 1, seed 0  test loss ") and lines[0].endswith("  2 rounds in 0 s")
    assert lines[-2] == (tmp_path / "here/finding.txt").read_text().strip() and lines[-2].startswith("On one seed, ")
    assert lines[-1] == "here: results.csv, curves.csv, figure.svg, finding.txt, and the runs in runs/"
    again = seedtune("study", "local-steps", *tiny, "--seeds", 1, "--jobs", 1, "--out", "here", "--json")
    assert again.err == "3 of 3 runs are there already\n"
    told = json.loads(again.out)
    assert told["finding"] == lines[-2] and [case["case"] for case in told["cases"]] == ["H = 1", "H = 3", "H = 5"]
    assert told["cases"][0]["loss"]["half_width"] is None and told["seeds"] == [0]


def test_a_quick_study_has_a_folder_of_its_own(seedtune, tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "carry_out", lambda plan, folder, *_: asked.append(folder))
    monkeypatch.setattr("seedtune.studies.display.show", lambda *_: None)
    assert seedtune("study", "local-steps", *tiny, "--quick").code == seedtune("study", "local-steps", *tiny).code == 0
    assert asked == [Path("runs/studies/local-steps-quick"), Path("runs/studies/local-steps")]


ARGUMENTS = {
    "local-step": "unknown study 'local-step': did you mean 'local-steps'? Known: " + ", ".join(sorted(STUDIES)),
    "": "study: give the name of a study, or --list to see them all",
    "batch --set federation.batch_size=2": "study batch: sets federation.batch_size itself; leave it out of --set",
    "batch --set local.learn_rate=2": "study batch: unknown key 'learn_rate': did you mean 'learning_rate'? Known: ",
    "single-client --set partition.num_clients=2": "study single-client: sets partition.num_clients itself; leave it "
    "out of --set",
    "batch --seeds 0": "Invalid value for '--seeds': 0 is not in the range x>=1.",
    "batch --task sst-2": "unknown task 'sst-2': did you mean 'sst2'? Known: ",
    "batch --model ./gone": "model './gone': there is no such folder or file; give a folder, a GGUF file, a hub id or "
    "one of 'starter', 'smollm2-135m-instruct'",
}


@pytest.mark.parametrize("line", ARGUMENTS)
def test_what_cannot_be_run_is_one_line_and_leaves_nothing(seedtune, line, tmp_path):
    result = seedtune("study", *shlex.split(line))
    assert (result.code, result.out) == (2, "") and result.err.count("\n") == 1
    assert result.err.startswith(f"error: {ARGUMENTS[line]}") and os.listdir(tmp_path) == []


def test_ctrl_c_says_how_to_go_on(seedtune, tiny, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "carry_out", interrupted)
    result = seedtune("study", "local-steps", *tiny)
    again = shlex.join(["seedtune", "study", "local-steps", *tiny])
    assert (result.code, result.err) == (130, f"stopped; every whole round is kept: go on with '{again}'\n")


def test_ctrl_c_ends_the_processes_and_the_command_goes_on(tiny, tmp_path):
    arguments = ["study", "single-client", *tiny, "--set", "federation.num_rounds=40", "--jobs", "2", "--seeds", "1"]
    child = tiny_runs.child(arguments, tmp_path, tmp_path)
    metrics = tmp_path / "runs/studies/single-client/runs/forward-only/seed-0/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
        assert child.is_alive() and time.monotonic() < deadline, (tmp_path / "stderr").read_text()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    assert child.exitcode == 130 and "stopped; every whole round is kept: go on" in (tmp_path / "stderr").read_text()
    before = len(run_store.metrics_of(metrics.parent))
    with run_store.open_run(metrics.parent):  # no process holds it any more
        assert 2 <= before <= 41  # three rows were there, the last perhaps without its record
    again = tiny_runs.child([*arguments, "--jobs", "1"], tmp_path, tmp_path)
    again.join(120)
    assert again.exitcode == 0 and (metrics.parents[3] / "figure.svg").exists()
