"""What is printed while a study runs, and in the end."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from small_studies import measured, result, run

from seedtune.studies import display
from seedtune.studies.jobs import wanted
from seedtune.studies.measured import Result, Run
from seedtune.studies.outcomes import Outcome
from seedtune.studies.plan import planned
from seedtune.studies.runner import News


def console(**options) -> Console:
    """As the command line makes it where nobody looks at a terminal."""
    return Console(file=io.StringIO(), markup=False, emoji=False, highlight=False, **({"width": 10_000} | options))


@pytest.fixture
def plan(request_of):
    return planned(request_of())


def printed(to: Console, plan, *news: News) -> str:
    with display.progress(to, plan) as listen:
        for one in news:
            listen(one)
    return to.file.getvalue()


def test_a_line_for_each_run_that_ended(plan):
    one, other = wanted(plan, {})
    ended, diverged = run(3.0, 2.0, 1.5), run(3.0, math.inf)
    rose = run(3.0, 1.0, 1.5)
    stopped = Run(rose.folder, rose.recipe, rose.rows, {"stopped_by": "patience"})
    text = printed(
        console(), plan, News(0, 3), News(0, 3, one, 1), News(1, 3, one, 2, ended), News(2, 3, other, 2, stopped),
        News(3, 3, other, 1, diverged), News(3, 3, other, error="MemoryError: [no] room"),
    )  # fmt: skip
    assert text.splitlines() == [
        "1/3  H = 1, seed 7  test loss 1.500  2 rounds in 2 s",
        "2/3  H = 2, seed 7  test loss 1.500, lowest 1.000  2 rounds in 2 s  stopped by patience",
        "3/3  H = 2, seed 7  diverged  1 rounds in 2 s",
        "3/3  H = 2, seed 7  failed: MemoryError: [no] room",
    ]


def test_what_is_there_already_left_out_or_to_be_known_comes_first(plan):
    noted = replace(plan, left_out={"natural": "no groups"}, notes=("mind the rate",))
    lines = printed(console(), noted, News(2, 3)).splitlines()
    assert lines == ["mind the rate", "left out: natural: no groups", "2 of 3 runs are there already"]


def test_a_terminal_shows_a_bar_over_runs_and_their_parts(plan):
    job = wanted(plan, {})[0]
    bar = console(force_terminal=True, width=80, color_system=None)
    text = printed(bar, plan, News(0, 2), News(0, 2, job, 2), News(1, 2, job, 3, run(3.0, 2.0)))
    assert "1/2 runs  H = 1, seed 7: round 3/3" in text and "H = 1, seed 7  test loss 2.000" in text


def test_results_are_a_table_then_the_sentence_then_the_place(plan):
    to = console()
    found = measured(result("a", 1.0, 2.0, 3.0), Result("b", "", None, (run(3.0, math.inf),) * 3))
    display.show(to, Outcome(Path("runs/x"), plan, found, "Nothing was found."))
    lines = [" ".join(line.split()) for line in to.file.getvalue().splitlines()]
    assert lines[0] == "case rate test loss accuracy rounds forwards sent up"
    assert lines[1] == "a 0.1 2.000 ± 1.686 50.0% 2 20 100" and lines[2] == "b 0.1 diverged 50.0% 1 10 50"
    assert lines[3:] == [
        "Nothing was found.", "runs/x: results.csv, curves.csv, figure.svg, finding.txt, and the runs in runs/",
    ]  # fmt: skip
