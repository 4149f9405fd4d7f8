"""A run watched from beside it: begun, going on, ended, with news; on a terminal and through a pipe."""

import io
import threading

import pytest
from rich.console import Console
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import watching
from seedtune.experiment import resume, run
from seedtune.watching import curve, line, picture, sight, watch

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture
def stopped(tiny_recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(federation={"num_rounds": 6}), MACHINE, tmp_path / "run", StopAfter(2))
    return tmp_path / "run"


def drawn(folder) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(sight(folder)))
    return console.file.getvalue()


def test_a_run_that_goes_on_is_drawn_without_touching_it(stopped):
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    shown = drawn(stopped)
    assert "rounds      2 of 6, " in shown and " left; the last " in shown and "train loss" in shown
    assert "test loss" in shown and "accuracy" in shown and " up, " in shown
    assert {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before


def test_a_run_that_has_ended(stopped):
    resume(stopped, MACHINE, NOTHING)
    assert "rounds      6 of 6, ended after " in drawn(stopped)


def test_a_run_before_its_first_round(tiny_recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(), MACHINE, tmp_path / "run", StopAfter(0))
    assert "0 of 3, none has ended yet, " in drawn(tmp_path / "run")


def test_news_are_told(stopped):
    rows = [dict(row) for row in sight(stopped).rows]
    rows[1]["failed"] = {"2": "EngineError: no answer"}
    rows[2] |= {"surge": "the loss rose", "back_to": None}
    seen = watching.Sight(stopped, sight(stopped).recipe, rows, False, 3.0)
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(seen))
    shown = console.file.getvalue()
    assert "1 replies not usable, last that of client 2 in round 1: EngineError: no answer" in shown
    assert "loss surge in round 2: the loss rose" in shown
    assert line(rows[2], 6).endswith("SURGE: the loss rose")


def test_through_a_pipe_each_round_is_told_once_until_the_end(stopped, monkeypatch):
    waits = iter([lambda: None, lambda: resume(stopped, MACHINE, NOTHING)])
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: next(waits)())
    console = Console(file=io.StringIO(), width=200)
    watch(console, stopped)
    told = console.file.getvalue().splitlines()
    assert [text.split("  ")[0] for text in told] == [f"round {number}/6" for number in range(7)]


def test_on_a_terminal_it_is_drawn_again(stopped, monkeypatch):
    resumed = threading.Event()

    def sleep(seconds):
        assert not resumed.is_set()
        resume(stopped, MACHINE, NOTHING)
        resumed.set()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    watch(console, stopped)
    assert "2 of 6" in console.file.getvalue() and "6 of 6, ended after" in console.file.getvalue()


def test_the_command(seedtune, stopped, tmp_path):
    shown = seedtune("watch", stopped, "--once")
    assert shown.code == 0 and "2 of 6" in shown.out
    refused = seedtune("watch", tmp_path / "nothing", "--once")
    assert refused.code == 2 and "holds no run" in refused.err


def test_long_curves_are_means_of_rounds():
    assert len(curve(list(range(1000)))) == 40 and curve([1.0, 1.0]) == "▁▁"
    assert curve([0, 0, 7, 7], width=2) == "▁█"
