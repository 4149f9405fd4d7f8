"""`seedtune report` as a user meets it: over runs as they are made, with errors of one line."""

import pytest
import run_folders
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import experiment, run_store
from seedtune.report import page


@pytest.fixture
def report(seedtune):
    """Runs the command in `tmp_path`; gives exit code, output and errors."""

    def command(*arguments):
        found = seedtune("report", *arguments)
        return found.code, found.out, found.err

    return command


def test_a_run_that_ended_and_one_that_was_stopped_are_reported(report, tiny_recipe, tmp_path):
    experiment.run(tiny_recipe(), MACHINE, tmp_path / "runs/done", NOTHING)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny_recipe(), MACHINE, tmp_path / "runs/stopped", StopAfter(2))
    code, out, err = report("runs/done")
    assert (code, err) == (0, "") and out.startswith("runs/done-report.html: 1 run, ")
    assert out.endswith(" kB; open it in a browser\n")
    text = (tmp_path / "runs/done-report.html").read_text(encoding="utf-8")
    summary = run_store.summary_of(tmp_path / "runs/done")
    assert summary["state_digest"] in text and "ended, 3 of 3 rounds" in text
    code, out, err = report("runs/done", "runs/stopped", "--out", "both.html")
    assert (code, err) == (0, "") and out.startswith("both.html: 2 runs, ")
    assert "not ended: 2 of 3 rounds so far" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_a_run_that_another_process_holds_is_reported(report, tmp_path):
    folder = run_folders.save(tmp_path / "held")
    with run_store.open_run(folder):
        before = sorted(path.name for path in folder.iterdir())
        assert report("held")[0] == 0
        assert sorted(path.name for path in folder.iterdir()) == before


def test_reporting_changes_nothing_in_the_run(report, tmp_path):
    folder = run_folders.save(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert report("run")[0] == 0 and {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert report("run")[0] == 0


def test_findings_are_shown_beside_the_run(report, tmp_path):
    folder = run_folders.keep(run_folders.save(tmp_path / "run"), run_folders.findings())
    (tmp_path / "before.json").write_text((folder / "probes/effective-rank.json").read_text())
    code, out, err = report("run", "--probe", "before.json")
    assert (code, err) == (0, "") and out.startswith("run-report.html: 1 run, ")
    text = (tmp_path / "run-report.html").read_text(encoding="utf-8")
    assert "before.json" in text and "heterogeneity" in text
    refused(
        report("run", "--probe", "gone.json"),
        "--probe gone.json: holds no finding; 'seedtune probe ... --out FILE' writes one",
    )


def refused(result, reason):
    assert result == (2, "", f"error: {reason}\n")


def test_what_cannot_be_reported_is_one_line(report, tmp_path):
    refused(report("gone"), "run folder gone: holds no run (no recipe.json); 'seedtune run' makes one")
    run_folders.save(tmp_path / "run")
    (tmp_path / "notes.txt").write_text("mine")
    unsafe = "report notes.txt: is a file, and no report that may be replaced; choose another with --out"
    refused(report("run", "--out", "notes.txt"), unsafe)
    (tmp_path / "run/recipe.json").write_text("{")
    reason = "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    refused(report("run"), f"run run: recipe.json: cannot be read: {reason}")
    (tmp_path / "run/recipe.json").write_text('{"split": {"no": 1}}')
    code, _, err = report("run")
    assert code == 2 and err.startswith("error: run run: recipe.json: unknown key 'no'") and err.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "mine" and not page.beside([tmp_path / "run"]).exists()
