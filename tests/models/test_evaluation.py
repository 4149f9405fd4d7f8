"""Evaluations: what each example was predicted as, by class and by group."""

import numpy as np
import pytest

from seedtune.assembly import assemble
from seedtune.config import Machine
from seedtune.data.batches import batch_of
from seedtune.data.examples import Example
from seedtune.models.evaluation import Evaluation, accuracy_by_group
from seedtune.models.objective import scores


def example(label: int | None, group: str) -> Example:
    return Example("", "x", "", "", label, group)


def test_predictions_are_in_the_order_of_the_examples(tiny_recipe):
    experiment = assemble(tiny_recipe(), Machine())
    found = experiment.evaluate()
    one_by_one = [batch_of(experiment.test, [i]) for i in range(len(experiment.test))]
    alone = [int(scores(experiment.model, batch).argmax()) for batch in one_by_one]
    assert list(found.predictions) == alone and len(set(alone)) > 1
    labels = [each.label for each in experiment.task.test]
    assert found.accuracy == np.mean(np.equal(alone, labels))


def test_accuracy_by_group_counts_each_groups_own():
    examples = [example(0, "b"), example(1, "a"), example(1, "b"), example(0, "b")]
    evaluation = Evaluation(1.0, 0.5, 4, predictions=(0, 0, 0, 0))
    assert accuracy_by_group(examples, evaluation) == {"a": 0.0, "b": pytest.approx(2 / 3)}
    assert list(accuracy_by_group(examples, evaluation)) == ["a", "b"]


def test_there_is_no_accuracy_by_group_without_groups_or_for_texts():
    assert accuracy_by_group([example(0, "")], Evaluation(1.0, 1.0, 1, predictions=(0,))) == {}
    assert accuracy_by_group([example(None, "a")], Evaluation(1.0, None, 1)) == {}
