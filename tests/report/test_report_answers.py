"""Answers as a run kept them: matrices, samples and levels of guessing; what does not fit is left out."""

import pytest
import run_folders

from seedtune.report.answers import SHADES, confusions, guides, samples, story
from seedtune.report.reading import read


def run_of(folder, **options):
    (run,) = read([run_folders.save(folder, **options)])
    return run


def test_matrices_are_those_of_the_end_and_of_the_start(tmp_path):
    after, before = confusions(run_of(tmp_path / "run", **run_folders.of_two_classes()))
    assert (after.when, before.when) == ("after tuning", "before tuning")
    assert after.labels == run_folders.LABELS and after.shares == ["95% of 100", "85% of 100"]
    assert [[cell.count for cell in row] for row in before.rows] == [[40, 60], [50, 50]]
    assert after.rows[0][0].shade == SHADES and after.rows[0][0].is_right and not after.rows[0][1].is_right


def test_samples_have_both_answers_once_a_run_has_ended(tmp_path):
    options = run_folders.of_two_classes()
    (first, _), (early, _) = (
        samples(run_of(tmp_path / name, **each))
        for name, each in (("ended", options), ("going-on", options | {"ended": None}))
    )
    assert (first.truth, first.before, first.after) == ("positive", "positive", "negative")
    assert (early.before, early.after) == ("positive", None)


def test_guesses_are_by_classes_and_by_the_most_frequent(tmp_path):
    options = run_folders.of_two_classes()
    options["ended"]["confusion"] = [[60, 10], [20, 10]]
    assert guides(run_of(tmp_path / "run", **options)) == {"chance": 0.5, "the most frequent class": 0.7}
    assert guides(run_of(tmp_path / "text", ended={})) == {}


DAMAGED = [
    {"confusion": [[1, 2]]}, {"confusion": [[1], [2]]}, {"confusion": [[1, -2], [3, 4]]}, {"confusion": "no"},
    {"confusion": [[1, 2.5], [3, 4]]}, {"confusion": [[True, 2], [3, 4]]}, {"labels": ["one"]}, {"labels": 7},
    {"labels": [str(i) for i in range(60)]},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_what_is_no_matrix_is_left_out(tmp_path, damage):
    options = run_folders.of_two_classes()
    options["ended"] |= damage
    assert [matrix.when for matrix in confusions(run_of(tmp_path / "run", **options))] == ["before tuning"]


def test_samples_that_are_none_are_left_out(tmp_path):
    options = run_folders.of_two_classes()
    options["ended"]["samples"] = [7, {"text": 1, "truth": "a"}, {"text": "x", "truth": "a", "before": [], "after": 1}]
    (kept,) = samples(run_of(tmp_path / "run", **options))
    assert (kept.text, kept.before, kept.after) == ("x", None, None)


@pytest.mark.parametrize("damage", [{"test_examples": "many"}, {"accuracy": 7.0}, {"loss": True}, {"rounds": [1]}])
def test_a_story_is_told_of_whatever_a_summary_holds(tmp_path, damage):
    options = run_folders.of_two_classes()
    options["ended"] |= damage
    assert story(run_of(tmp_path / "run", **options))[0].startswith("4 clients tuned starter on stdlib-topics by ")
