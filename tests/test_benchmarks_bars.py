"""The table of bars reads the benchmarks' own results, and says where one was missed or not measured."""

import json

from benchmarks.__main__ import NAMES, rows
from benchmarks._bars import BARS, Bar, measured
from benchmarks._report import Spread, report
from seedtune.zo.noise import Distribution

BAR = Bar("a step", "step", "step", {"dtype": "float32", "tokens": 512}, "rademacher", 1.1, 1.03)


def results(cell: object) -> dict:
    return {"step": {"step": [{"dtype": "bfloat16", "tokens": 512}, {**BAR.where, "rademacher": cell}]}}


def test_a_figure_is_found_by_its_row_whatever_stands_in_the_cell():
    assert measured(BAR, results({"median": 1.02, "low": 1.0, "high": 1.25})) == (1.02, "1.02 (1.00 to 1.25)")
    assert measured(BAR, results(1.234)) == (1.234, "1.23")
    assert measured(BAR, {}) == measured(BAR, {"step": {"step": [BAR.where]}}) == (None, "")


def test_a_bar_is_kept_up_to_its_value(monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.BARS", (BAR,))
    kept = [rows(results(value))[0]["kept"] for value in (1.1, 1.11)]
    assert kept == ["yes", "no"] and rows({})[0]["kept"] == rows({})[0]["measured"] == ""


def test_every_bar_is_of_a_benchmark_that_runs_and_has_a_name_of_its_own():
    assert {bar.benchmark for bar in BARS} <= set(NAMES)
    assert len({bar.figure for bar in BARS}) == len(BARS) and all(bar.aim <= bar.most for bar in BARS)
    assert {bar.column for bar in BARS if bar.table == "step"} == set(Distribution)


def test_what_a_benchmark_writes_is_what_a_bar_reads(tmp_path, capsys):
    report({"step": [{**BAR.where, "rademacher": Spread(1.0, 0.5, 2.0)}]}, tmp_path / "step.json")
    found = {"step": json.loads((tmp_path / "step.json").read_text())}
    assert measured(BAR, found) == (1.0, "1.00 (0.50 to 2.00)") and "float32" in capsys.readouterr().out
