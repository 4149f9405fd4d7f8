"""Events: all that happened, rounds in a row as one, few however many there were."""

import pytest
import run_folders

from seedtune.report.events import ENDS, MOST_EVENTS, Event, events, surges
from seedtune.report.reading import read


def events_of(folder, **options):
    (run,) = read([run_folders.save(folder, **options)])
    return events(run)


def test_surges_failures_and_skips_are_told(tmp_path):
    found, more = events_of(tmp_path / "run", num_rounds=12, lines=run_folders.eventful(), ended={})
    assert more == 0 and found == [
        Event("failed", 3, 4, "client 2: TimeoutError: no answer"),
        Event("skipped", 5, 5, "3 local steps a round were skipped: a loss was not finite"),
        Event("surge", 8, 8, run_folders.SURGE + "; taken back to round 6, on at half the rate"),
    ]
    assert found[0].rounds == "3-4" and found[1].rounds == "5"


def test_surges_are_marked_where_they_were(tmp_path):
    (run,) = read([run_folders.save(tmp_path / "run", 12, lines=run_folders.eventful())])
    assert surges(run) == [8]


@pytest.mark.parametrize("reason", ENDS)
def test_an_early_end_is_told(tmp_path, reason):
    found, _ = events_of(tmp_path / "run", ended={"stopped_by": reason})
    assert found == [Event("end", 6, 6, ENDS[reason])]


def test_a_better_round_than_the_last_is_told(tmp_path):
    lines = run_folders.rows(6, 4)
    lines[2]["loss"] = 0.5
    found, _ = events_of(tmp_path / "run", lines=lines, ended={})
    assert found == [Event("best", 2, 2, "lowest test loss, 0.5 (replay --round 2)")]


def test_a_run_that_goes_on_is_told(tmp_path):
    assert events_of(tmp_path / "run")[0][-1].kind == "open"
    assert [event.kind for event in events_of(tmp_path / "empty", lines=[])[0]] == ["open"]


def test_of_many_events_the_first_are_told_and_the_rest_counted(tmp_path):
    lines = run_folders.rows(1_000, 1)
    for n in range(1, 1_001):
        lines[n]["failed"] = {"0": f"Error: {n}"}
    found, more = events_of(tmp_path / "run", num_rounds=1_000, num_clients=1, lines=lines, ended={})
    assert (len(found), more) == (MOST_EVENTS, 1_000 - MOST_EVENTS)


def test_events_of_another_type_are_left_out(tmp_path):
    lines = run_folders.rows(2, 4)
    lines[1] |= {"failed": ["x"], "surge": 3, "skipped_steps": "many", "back_to": []}
    assert events_of(tmp_path / "run", num_rounds=2, lines=lines, ended={"stopped_by": ["x"]}) == ([], 0)


def test_what_was_measured_before_the_first_round_is_told(tmp_path):
    asked = {"local": {"learning_rate": "auto"}, "auto": {"learning_rate": 0.02}}
    (first, *_), _ = events_of(tmp_path / "run", ended={}, **asked)
    assert first == Event("measured", 0, 0, "measured: learning rate of the first round 0.02")
