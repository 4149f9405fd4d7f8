import math

from small_studies import measured, result, run

from seedtune.studies.measured import Result, Run, common_loss


def test_costs_are_sums_up_to_a_round():
    one = run(3.0, 2.0, 1.0)
    assert one.total("flops") == 2000 and one.total("forwards") == 20
    assert [one.until(row, "bytes_up") for row in one.rows] == [0, 50, 100]
    assert [one.until(one.rows[1], name) for name in ("rounds", "seconds")] == [1, 1.5]


def test_a_target_is_reached_at_the_first_evaluation_at_or_below_it():
    one = run(3.0, 2.0, 1.0, 1.5)
    assert one.reached(2.0)["rounds"] == 1 and one.reached(1.2)["rounds"] == 2 and one.reached(0.9) is None
    assert one.best["rounds"] == 2 and one.loss == 1.5


def test_rounds_between_evaluations_count_for_costs_only():
    one = run(3.0, 2.0, 1.0, 0.5)
    rows = [row if row["rounds"] != 1 else {name: row[name] for name in row if name != "loss"} for row in one.rows]
    sparse = Run(one.folder, one.recipe, tuple(rows), one.summary)
    assert [row["rounds"] for row in sparse.evaluated] == [0, 2, 3]
    assert sparse.until(sparse.evaluated[1], "flops") == 2000


def test_divergence_is_the_worst_loss():
    one = run(3.0, math.inf)
    assert one.loss == math.inf and one.best["rounds"] == 0 and one.stopped_by is None
    stopped = Run(one.folder, one.recipe, one.rows[:1], None)
    assert stopped.loss == math.inf and stopped.stopped_by == "divergence" and stopped.rounds == 0
    case = Result("a", "", None, (one, run(3.0, 1.0)))
    assert case.loss is None and case.num_diverged == 1 and case.final("bytes_up").mean == 50


def test_the_common_loss_is_one_that_every_run_reached():
    slow, fast = result("slow", 2.0, 1.8), result("fast", 1.0, 1.2)
    assert common_loss([slow, fast]) == 2.0
    assert slow.to_reach(2.0, "rounds").mean == 2 and fast.to_reach(1.1, "flops") is None
    assert common_loss([Result("a", "", None, (run(3.0, math.inf),))]) is None


def test_the_best_is_chosen_on_held_out_examples_where_there_are_any():
    one = run(3.0, 1.0, 2.0)
    held = tuple({**row, "heldout_loss": loss} for row, loss in zip(one.rows, (3.0, 2.0, 1.0), strict=True))
    best = Run(one.folder, one.recipe, held, one.summary)
    assert (one.best["rounds"], best.best["rounds"], best.lowest_loss) == (1, 2, 1.0)


def test_a_chosen_rate_at_the_end_of_its_grid_is_an_edge():
    grid = [run(3.0, loss, rate=rate) for rate, loss in ((0.1, 2.0), (0.3, 1.0), (1.0, 1.5))]
    assert not Result("a", "", None, (grid[1],), tuple(grid)).is_edge
    assert (
        Result("a", "", None, (grid[2],), tuple(grid)).is_edge
        and Result("a", "", None, (grid[0],), tuple(grid)).is_edge
    )
    assert not Result("a", "", None, (grid[0],)).is_edge


def test_cases_are_found_by_label():
    both = measured(result("a", 1.0), result("b", 2.0))
    assert both["b"].loss.mean == 2.0 and both["b"].final("accuracy").mean == 0.5
    assert both["b"].final("perplexity") is None


def test_what_was_spent_until_a_loss_is_linear_between_evaluations():
    """1,000 FLOPs a round; from 3 to 2 in the first, to 1 in the second."""
    one = run(3.0, 2.0, 1.0)
    assert [one.spent(loss, "flops") for loss in (3.5, 3.0, 2.75, 2.0, 1.25)] == [0, 0, 250, 1000, 1750]
    assert one.spent(0.5, "flops") is None
    assert run(3.0, math.inf, 1.0).spent(1.5, "flops") == 2000


def test_a_case_goes_by_its_last_loss_or_by_its_lowest():
    runs = run(3.0, 1.0, 2.0), run(3.0, 1.0, math.inf)
    last, best = Result("a", "", None, runs), Result("a", "", None, runs, judged_by="best")
    assert last.loss is None and last.num_diverged == 1
    assert best.loss.mean == 1.0 and best.num_diverged == 0


def test_what_a_model_says_once_its_training_loss_surged_is_not_its_best():
    one = run(3.0, 2.5, 0.5, surges=(2,))
    assert one.lowest_loss == one.judged("best") == 2.5 and one.loss == 0.5
    assert one.spent(2.0, "flops") is None and one.spent(2.5, "flops") == 1000
