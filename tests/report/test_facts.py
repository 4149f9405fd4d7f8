"""Facts: numbers with units that add up, and "not known" for what files do not say."""

import pytest
import run_folders

from seedtune.report import facts
from seedtune.report.reading import read


def run_of(folder, **options):
    (run,) = read([run_folders.save(folder, **options)])
    return run


def said(found):
    return {fact.name: (fact.value, fact.note) for fact in found}


def test_results_say_quality_and_cost(tmp_path):
    ended = {"backprop_accuracy": 0.75, "backprop_loss": None}
    assert said(facts.results(run_of(tmp_path / "run", ended=ended))) == {
        "test accuracy": ("56.2%", "from 30.0%; backpropagation 75.0%"), "test loss": ("1.286", "from 3"),
        "sent": ("2.6 kB", "720 B up, 1.9 kB down"), "forwards": ("48", ""), "FLOPs": ("24.00 G", ""),
        "time": ("4 s", "6 rounds"), "peak memory": ("500.0 MB", ""),
    }  # fmt: skip


def test_a_loss_that_is_not_known_is_said(tmp_path):
    found = said(facts.results(run_of(tmp_path / "run", lines=[])))
    assert found == {"test loss": ("not known", "no evaluation gave a finite loss")}


def test_traffic_says_what_a_message_took(tmp_path):
    lines = run_folders.rows(6, 4)
    lines[3] |= {"replied": 2, "dropped": [1], "failed": {"2": "late"}}
    found = said(facts.traffic(run_of(tmp_path / "run", lines=lines, ended={})))
    assert found == {
        "sent up": ("720 B", "33 B a client and round"), "sent down": ("1.9 kB", "80 B a client and round"),
        "replies that counted": ("22", "of 24 clients asked"), "dropped out": ("1", ""), "failed": ("1", ""),
        "trajectory file": ("1.2 kB", ""),
    }  # fmt: skip
    assert facts.traffic(run_of(tmp_path / "empty", lines=[])) == []


def test_shares_of_the_time_add_up(tmp_path):
    found = facts.time_shares(run_of(tmp_path / "run"))
    assert [share.seconds for share in found] == pytest.approx([2.4, 1.0, 0.6])
    assert sum(share.percent for share in found) == pytest.approx(100) and found[0].told == "rounds 60 %"
    assert facts.time_shares(run_of(tmp_path / "empty", lines=[])) == []


def test_the_pace_is_that_of_rounds(tmp_path):
    found = said(facts.pace(run_of(tmp_path / "run", ended={"flops_prefix": 6e9})))
    assert found == {
        "median round": ("400 ms", ""), "slowest round": ("400 ms", "the fastest 400 ms"),
        "forwards a second": ("20", ""), "FLOPs a second": ("10.00 G", ""),
        "block 1 of the split": ("25.0%", "of the FLOPs"),
    }  # fmt: skip


STATES = [
    ({"ended": {}}, "ended, 6 of 6 rounds"),
    ({"ended": {"stopped_by": "patience"}}, "ended early, 6 of 6 rounds"),
    ({"ended": {"stopped_by": "divergence"}}, "diverged, 6 of 6 rounds"),
    ({}, "not ended: 6 of 6 rounds so far, going on or interrupted"),
    ({"lines": []}, "stopped before its first round"),
]


@pytest.mark.parametrize("options, status", STATES)
def test_the_status_says_how_far_and_why(tmp_path, options, status):
    assert facts.status(run_of(tmp_path / "run", **options)) == status


def test_the_environment_is_known_once_a_run_has_ended(tmp_path):
    found = said(facts.environment(run_of(tmp_path / "run", ended={})))
    assert found["torch"] == ("2.13.0", "") and found["last round written"][0].endswith(" UTC")
    open_ = run_of(tmp_path / "open")
    (open_.folder / "manifest.json").unlink()
    found = said(facts.environment(open_))
    assert found["versions"] == ("not known", "a run says them when it ends")
    assert found["last round written"] == ("not known", "")


def test_a_digest_is_that_of_the_last_whole_round(tmp_path):
    assert facts.digest(run_of(tmp_path / "run")) == run_folders.DIGEST
    assert facts.digest(run_of(tmp_path / "empty", lines=[])) == ""
    assert facts.model(run_of(tmp_path / "open", model={"name": "/there/minilm"})) == "minilm"
