"""What a model answered on the test examples: kept with a run, before its first round and after its last one.

Test examples only, which lie where the run is: nothing here reads what clients train on.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .assembly import Experiment
from .data import metrics
from .data.batches import batch_of
from .data.encoding import ANSWER_RESERVE
from .models.evaluation import Evaluation, accuracy_by_group
from .models.generate import generate
from .models.objective import labels_of, scores
from .progress import phase
from .space import bind
from .verdict import outcome

MOST_SAMPLES, MOST_CLASSES, MOST_LETTERS = 8, 50, 400
"""Kept of a run: examples shown with their answers, classes of a confusion matrix, letters of an example."""


def describe(experiment: Experiment, evaluation: Evaluation) -> dict[str, Any]:
    """`evaluation` of the experiment's present weights as plain data.

    test_examples: their number. For choices also accuracy_by_domain: by the examples' group, where they have one;
    labels: their names; confusion: int [C][C], how many examples of each
    label (row) were given which (column), left out beyond `MOST_CLASSES`; samples: `MOST_SAMPLES` test examples,
    evenly through the set, each {"text", "truth", "predicted"}. Cost: one forward of the samples.
    """
    found: dict[str, Any] = {"test_examples": evaluation.num_examples}
    if domains := accuracy_by_group(experiment.task.test, evaluation):
        found["accuracy_by_domain"] = domains
    if evaluation.confusion is None:
        return found
    found["labels"] = list(experiment.task.label_names)
    if len(evaluation.confusion) <= MOST_CLASSES:
        found["confusion"] = [list(row) for row in evaluation.confusion]
    return found | {"samples": _samples(experiment)}


def conclude(
    experiment: Experiment, last: Evaluation | None, first: Mapping[str, Any], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run's summary says beside its numbers: its outcome, and answers before and after.

    last: the evaluation of the present weights, None: it is made anew; first: the row before round 0; summary: the
    numbers. A sample has "before" and "after" where that row has samples. Cost: one forward of the samples; tasks with
    reference answers are also generated.
    """
    found = describe(experiment, last or experiment.evaluate()) | score_written(experiment)
    if domains := first.get("accuracy_by_domain"):
        found["zero_shot_accuracy_by_domain"] = domains
    if samples := found.get("samples"):
        before = [sample["predicted"] for sample in first.get("samples", ())]
        found["samples"] = [
            {"text": sample["text"], "truth": sample["truth"], "before": old, "after": sample["predicted"]}
            for sample, old in zip(samples, before, strict=False)
        ]
    return {"outcome": outcome({**summary, **found}), **found}


def score_written(experiment: Experiment) -> dict[str, float]:
    """token_f1 and exact_match of the present weights' answers, where the task has references; means over examples.

    Cost: at most 50 new tokens a test example, one forward each.
    """
    examples = experiment.task.test
    if not any(example.references for example in examples):
        return {}
    bind(experiment.model.module, experiment.site.replica.weights)
    prompts = [encoded.prompt.tolist() for encoded in experiment.test.examples]
    with phase("writing answers to test examples"):
        tokens = generate(experiment.model, prompts, ANSWER_RESERVE)
    answers = [str(experiment.model.tokenizer.decode(ids)).split("\n")[0] for ids in tokens]
    scored = [(answer, example.references) for answer, example in zip(answers, examples, strict=True)]
    return {
        "token_f1": float(np.mean([metrics.token_f1(*pair) for pair in scored])),
        "exact_match": float(np.mean([metrics.exact_match(*pair) for pair in scored])),
    }


@torch.no_grad()
def _samples(experiment: Experiment) -> list[dict[str, str]]:
    """Test examples, evenly through the set, with what the model answers now."""
    count, size = min(MOST_SAMPLES, len(experiment.test)), len(experiment.test)
    places = [i * size // count for i in range(count)]
    batch = experiment.prepare(batch_of(experiment.test, places))
    chosen, names = scores(experiment.model, batch).argmax(1).tolist(), experiment.task.label_names
    texts = [_cut(experiment.task.test[place].prompt) for place in places]
    return [
        {"text": text, "truth": names[label], "predicted": names[answer]}
        for text, label, answer in zip(texts, labels_of(batch).tolist(), chosen, strict=True)
    ]


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_LETTERS else line[: MOST_LETTERS - 1] + "…"
