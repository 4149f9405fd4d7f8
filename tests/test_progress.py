"""Phases of work and signs of life: what is told, to whom, and that nobody is disturbed by it."""

import io
import threading

import pytest
from rich.console import Console
from test_terminal import piped, result

from seedtune import terminal
from seedtune.heartbeat import Heartbeat, Pace
from seedtune.metrics import Evaluated
from seedtune.models.evaluation import Evaluation
from seedtune.progress import Watch, phase, watching


def test_phases_are_seen_by_who_watches_them_and_by_nobody_else():
    with phase("unseen", 3) as told:
        told.advance()
    with watching() as outer:
        assert outer.innermost is None
        with phase("evaluating", 200) as told, phase("encoding"):
            told.advance(64)
            assert str(outer.innermost) == "encoding"
            with watching() as inner, phase("within"):
                assert str(inner.innermost) == "within" and str(outer.innermost) == "encoding"
        assert outer.innermost is None and str(told) == "evaluating 64/200"


def test_a_phase_ends_also_where_its_work_fails():
    with watching() as watch:
        with pytest.raises(ZeroDivisionError), phase("failing"):
            raise ZeroDivisionError
        assert watch.innermost is None


def test_another_thread_has_no_part_in_it():
    with watching() as watch, phase("here"):
        other = threading.Thread(target=lambda: phase("elsewhere").__enter__())
        other.start()
        other.join()
        assert str(watch.innermost) == "here"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_time_left_is_the_median_of_the_last_rounds_times_those_left():
    clock = Clock()
    pace = Pace(10, clock)
    assert pace.left() == "" and pace.seconds_left() is None
    pace.note(0, False)
    for done, took in enumerate((2.0, 4.0, 100.0, 4.0), start=1):
        clock.now += took
        pace.note(done, True)
    assert pace.seconds_left() == 24.0 and pace.left() == "about 24 s left" and pace.so_far() == "1 min 50 s so far"
    clock.now += 3.0
    assert pace.seconds_left() == 21.0
    clock.now += 50.0  # a round that takes longer than any: five others are left for sure
    assert pace.seconds_left() == 20.0 and pace.left(30.0) == ""


def test_where_nothing_was_said_for_ten_seconds_a_line_says_what_goes_on():
    clock, console = Clock(), piped()
    with terminal.progress(console, 20, clock=clock) as listen, phase("loading model m"):
        for now in (3.0, 9.9, 10.0, 19.0, 20.0):
            clock.now = now
            listen.beat()
    lines = console.file.getvalue().splitlines()
    assert lines == [f"round 0/20  loading model m  {n} s so far" for n in (10, 20)]


def test_a_line_in_a_long_round_says_how_much_is_left():
    clock, console = Clock(), piped()
    with terminal.progress(console, 20, clock=clock) as listen:
        listen(0, None, Evaluated(Evaluation(2.0, 0.5, 10), {}))
        clock.now = 30.0
        listen(1, result(0), None)
        clock.now = 42.0
        listen.beat()
        with phase("evaluating test examples", 200) as told:
            told.advance(64)
            clock.now = 55.0
            listen.beat()
    assert console.file.getvalue().splitlines()[1:] == [
        "round 1/20  train loss 0.250  sent 1.0 kB  about 9 min 30 s left",
        "round 1/20  round 2 goes on  42 s so far  about 9 min 18 s left",
        "round 1/20  evaluating test examples 64/200  55 s so far  about 9 min 5 s left",
    ]


def test_a_heart_beats_in_a_thread_of_its_own_until_the_work_ends():
    beats, enough = [], threading.Event()

    def beat():
        beats.append(threading.current_thread().name)
        if len(beats) >= 3:
            enough.set()

    heart = Heartbeat(beat, 0.001)
    with heart.beating():
        assert enough.wait(30)
    count = len(beats)
    assert set(beats) == {"heartbeat"} and not heart.is_lost
    heart.check()
    assert len(beats) == count and not any(thread.name == "heartbeat" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file"), SystemExit(1)])
def test_a_beat_that_cannot_be_written_ends_the_work_where_the_next_line_is_said(error):
    tried = threading.Event()

    def beat():
        tried.set()
        raise error

    heart = Heartbeat(beat, 0.001)
    with heart.beating():
        assert tried.wait(30)
    with pytest.raises(BrokenPipeError):
        heart.check()


def test_the_work_may_be_interrupted_between_beats():
    heart = Heartbeat(lambda: None, 60.0)
    with pytest.raises(KeyboardInterrupt), heart.beating():
        raise KeyboardInterrupt
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_the_bar_shows_a_phase_that_lasts():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    watch = Watch()
    state = terminal._State(watch)
    with terminal.Progress(state, console=console) as bar:
        bar.add_task("rounds", total=3, state="train 0.250")
        (task,) = bar.tasks
        assert str(state.render(task)) == "train 0.250"
        with watching() as watch_, phase("evaluating", 9) as told:
            state._watch = watch_
            assert str(state.render(task)) == "train 0.250"  # for a moment
            told.began -= 1
            assert str(state.render(task)) == "evaluating 0/9"


def test_work_without_rounds_says_nothing_while_it_is_quick():
    console = piped()
    with terminal.waiting(console), phase("evaluating", 9):
        pass
    assert console.file.getvalue() == ""
