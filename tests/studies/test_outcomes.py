"""Figures and plain data from made-up runs."""

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from small_studies import STUDY, measured, result, run

from seedtune.studies.measured import Measured, Result
from seedtune.studies.outcomes import panels
from seedtune.studies.study import View

OVER_ROUNDS = View()


def shown(*results: Result, view: View = OVER_ROUNDS):
    return panels(Measured(replace(STUDY, views=(view,)), results, len(results[0].runs)))[0]


def test_curves_are_means_with_bands_over_rounds():
    panel = shown(result("a", 1.0, 2.0, 3.0), result("b", 1.0, 1.0, 1.0))
    line = panel.lines[0]
    assert (line.label, list(line.x), list(line.y)) == ("a", [0.0, 1.0, 2.0], [3.0, 2.5, 2.0])
    assert line.high[2] - line.y[2] == pytest.approx(1.686, abs=1e-3) == line.y[2] - line.low[2]
    assert (panel.x_label, panel.y_label) == ("rounds", "test loss (nats)")


def test_curves_may_go_over_costs():
    panel = shown(result("a", 1.0, cost=3.0), view=View("flops"))
    assert list(panel.lines[0].x) == [0.0, 3000.0, 6000.0] and panel.x_label == "FLOPs"


def test_one_seed_has_no_band():
    assert shown(result("a", 1.0)).lines[0].low is None
    assert shown(result("a", 1.0), view=View("cases")).lines[0].low is None


def test_seeds_that_stopped_early_are_averaged_where_all_have_values():
    one = Result("a", "", None, (run(3.0, 2.0, 1.0), run(3.0, 1.0)))
    assert list(shown(one).lines[0].y) == [3.0, 1.5]


def test_what_diverged_is_a_gap():
    line = shown(Result("a", "", None, (run(3.0, math.inf, 1.0),))).lines[0]
    assert math.isnan(line.y[1]) and line.y[2] == 1.0
    assert math.isnan(shown(result("a", math.inf), view=View("cases")).lines[0].y[0])


def test_final_values_over_the_axis_are_a_line_a_series():
    cases = [result(f"{s}{x}", 1.0 * x, x=x, series=s) for s in ("weights", "scalars") for x in (8, 16)]
    panel = shown(*cases, view=View("axis"))
    assert [(line.label, list(line.x), list(line.y)) for line in panel.lines] == [
        ("weights", [8, 16], [8.0, 16.0]), ("scalars", [8, 16], [8.0, 16.0]),
    ]  # fmt: skip
    assert list(panel.ticks) == [(8, "8"), (16, "16")] and panel.log_x
    assert shown(*cases, view=View("axis", y="bytes_up")).y_label == "bytes sent up, whole run"


def test_final_values_side_by_side_have_the_cases_names():
    panel = shown(result("IID", 1.0), result("natural", 2.0), view=View("cases"))
    assert list(panel.ticks) == [(0, "IID"), (1, "natural")] and not panel.joined
    assert list(panel.lines[0].y) == [1.0, 2.0] and panel.y_label == "test loss (nats), last round"


def test_cases_are_named_in_the_figure_of_every_view():
    from seedtune.report import figure

    views = (View("rounds"), View("axis"), View("cases"))
    results = tuple(result(f"H = {x}", 1.0, 2.0, x=x) for x in (1, 2))
    drawn = [figure.draw("Which?", "One.", panels(Measured(replace(STUDY, views=views), results, 2))) for _ in range(2)]
    assert drawn[0] == drawn[1] and ElementTree.fromstring(drawn[0]).tag.endswith("svg")


def test_measured_cases_keep_their_order():
    assert [one.label for one in measured(result("b", 1.0), result("a", 1.0)).results] == ["b", "a"]


def test_where_the_best_round_counts_curves_show_the_lowest_loss_so_far():
    one = Result("a", "", None, (run(3.0, 1.0, math.inf, 0.5),), judged_by="best")
    study = replace(STUDY, views=(OVER_ROUNDS, View("cases")), judged_by="best")
    curve, ends = panels(Measured(study, (one,), 1))
    assert list(curve.lines[0].y) == [3.0, 1.0, 1.0, 0.5] and curve.y_label == "test loss (nats), lowest so far"
    assert ends.y_label == "test loss (nats), best round"
