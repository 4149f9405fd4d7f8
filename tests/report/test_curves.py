"""Curves: totals on the x axis, nothing lost of a peak, few points however long the run."""

import numpy as np
import pytest
import run_folders

from seedtune.report.curves import FEWEST_POINTS, MOST_POINTS, curves, kept_rows, thinned
from seedtune.report.reading import read


def curves_of(folder, num_runs=1, **options):
    (run,) = read([run_folders.save(folder, **options)])
    return curves(run, num_runs)


def test_x_values_are_totals_and_evaluations_stand_where_they_were(tmp_path):
    found = curves_of(tmp_path / "run", num_rounds=4)
    assert found["x"] == {
        "rounds": [0, 1, 2, 3, 4], "forwards": [0, 8, 16, 24, 32], "flops": [0, 4e9, 8e9, 12e9, 16e9],
        "bytes": [0, 440, 880, 1320, 1760], "seconds": [1, 1.5, 2, 2.5, 3],
    }  # fmt: skip
    assert found["y"]["loss"] == [3, None, 1.66667, None, 1.4] and found["y"]["heldout_loss"] is None
    assert found["y"]["bytes_up"] == [0, 120, 240, 360, 480] and not found["is_thinned"]


def test_what_was_not_counted_in_every_round_is_no_axis(tmp_path):
    lines = run_folders.rows(3, 4)
    del lines[2]["flops"]
    found = curves_of(tmp_path / "run", num_rounds=3, lines=lines)
    assert found["x"]["flops"] is None and found["x"]["forwards"] == [0, 8, 16, 24]


def test_a_run_without_rows_has_no_curve(tmp_path):
    found = curves_of(tmp_path / "run", lines=[])
    assert all(values is None for values in (*found["x"].values(), *found["y"].values()))


@pytest.mark.parametrize("num_rows", [1, 7, 599, 600, 601, 10_001])
def test_thinning_keeps_ends_and_extremes(num_rows):
    values = np.sin(np.arange(num_rows) * 1.7) + np.arange(num_rows) / 1000
    kept = kept_rows([values], num_rows, MOST_POINTS)
    assert kept[0] == 0 and kept[-1] == num_rows - 1 and (np.diff(kept) > 0).all()
    assert values[kept].max() == values.max() and values[kept].min() == values.min()
    assert len(kept) <= MOST_POINTS + 2 and (num_rows > MOST_POINTS or len(kept) == num_rows)


def test_values_that_are_not_finite_are_not_kept():
    assert thinned(np.array([np.nan, 1.0, np.inf, 2.0]), 2).tolist() == [1, 3]


def test_ten_thousand_rounds_are_few_points_and_keep_their_peak(tmp_path):
    lines = run_folders.rows(10_000, 1, eval_every=50)
    lines[7_777]["train_loss"] = 99.0
    found = curves_of(tmp_path / "run", num_rounds=10_000, num_clients=1, lines=lines)
    assert found["is_thinned"] and 99 in found["y"]["train_loss"] and 7_777 in found["x"]["rounds"]
    assert len(found["x"]["rounds"]) <= 3 * MOST_POINTS + 2


def test_many_runs_get_fewer_points_each(tmp_path):
    found = curves_of(tmp_path / "run", num_runs=1_000, num_rounds=1_000, num_clients=1)
    assert len(found["x"]["rounds"]) <= 3 * FEWEST_POINTS + 2
