"""How good a model is on examples it was not tuned on.

Choices by accuracy and cross-entropy, texts by the mean loss a token and its exponential, the perplexity. It runs
forwards on whatever weights the model is bound to; it moves and perturbs nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..data.batches import Batch, eval_batches, eval_order
from ..data.encoding import EncodedSet
from ..data.examples import Example
from .load import Tuned
from .objective import labels_of, scores, token_loss_sum


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over examples (choices) or tokens (texts), in nats; accuracy in [0, 1], None for texts.

    predictions: for choices, the label that each example was given, in the order of the examples.
    confusion: for choices, how many examples of each label (row) were given which (column), int [C, C]; None where
    each example has choices of its own.
    """

    loss: float
    accuracy: float | None
    num_examples: int
    predictions: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    confusion: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False, compare=False)

    @property
    def perplexity(self) -> float | None:
        return None if self.accuracy is not None else math.exp(min(self.loss, 700.0))


@torch.no_grad()
def evaluate(
    model: Tuned,
    encoded: EncodedSet,
    batch_size: int = 64,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """The evaluation over all of `encoded`. Cost: one forward a batch of `batch_size`, in order of length.

    `prepare` is given each batch on the model's device, and may add outputs of frozen layers to it. `advance` is called
    with the number of examples of each batch once it is done.
    """
    batches = _counted((prepare(batch.to(model.device)) for batch in eval_batches(encoded, batch_size)), advance)
    if encoded.examples[0].label is None:
        sums = [token_loss_sum(model, batch) for batch in batches]
        return Evaluation(sum(s for s, _ in sums) / sum(n for _, n in sums), None, len(encoded))
    loss, given, num_choices = 0.0, [], 0
    for batch in batches:
        values, labels = scores(model, batch), labels_of(batch)
        loss += cross_entropy(values, labels, reduction="sum").item()
        given.append(values.argmax(1).cpu().numpy())
        num_choices = values.shape[1]
    predictions = np.empty(len(encoded), np.int64)
    predictions[eval_order(encoded)] = np.concatenate(given)
    truth = np.array([example.label for example in encoded.examples])
    if encoded.examples[0].choices:
        predictions = _accepted(encoded, predictions)
        right = float((truth == predictions).mean())
        return Evaluation(loss / len(encoded), right, len(encoded), tuple(predictions.tolist()))
    return _choice_evaluation(loss / len(encoded), truth, predictions, num_choices)


def _accepted(encoded: EncodedSet, predictions: np.ndarray) -> np.ndarray:
    """The predictions, the label where another choice that is right too was given."""
    pairs = zip(encoded.examples, predictions, strict=True)
    return np.array([example.label if given in example.accepted else given for example, given in pairs], np.int64)


def _choice_evaluation(loss: float, labels: np.ndarray, predictions: np.ndarray, num_choices: int) -> Evaluation:
    pairs = np.bincount(labels * num_choices + predictions, minlength=num_choices**2)
    confusion = tuple(map(tuple, pairs.reshape(num_choices, -1).tolist()))
    accuracy = int((labels == predictions).sum()) / len(labels)
    return Evaluation(loss, accuracy, len(labels), tuple(predictions.tolist()), confusion)


def accuracy_by_group(examples: Sequence[Example], evaluation: Evaluation) -> dict[str, float]:
    """The share of each group's examples that were predicted right, by group name in sorted order.

    `examples` are those that were evaluated, in their order. Empty for texts, which have no accuracy, and where no
    example has a group.
    """
    if evaluation.predictions is None or not any(example.group for example in examples):
        return {}
    right: dict[str, list[bool]] = {}
    for example, prediction in zip(examples, evaluation.predictions, strict=True):
        right.setdefault(example.group, []).append(example.label == prediction)
    return {group: sum(each) / len(each) for group, each in sorted(right.items())}


def _counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    """The batches; each is reported to `advance` when the next one is asked for."""
    for batch in batches:
        yield batch
        advance(batch.num_examples)


@torch.no_grad()
def predict_probabilities(model: Tuned, encoded: EncodedSet, batch_size: int = 64) -> np.ndarray:
    """The probability of each choice for each example of a choice task, float32 [N, C], in the examples' order.

    Where each has choices of its own, C is the largest number of them, and the rest have probability 0.

    They are the softmax that training lowers the cross-entropy of; labels are not looked at. Cost: one forward a batch.
    """
    batches = (batch.to(model.device) for batch in eval_batches(encoded, batch_size))
    values = _stacked([scores(model, batch).softmax(1).cpu().numpy() for batch in batches])
    found = np.empty_like(values)
    found[eval_order(encoded)] = values
    return found


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several arrays, those with fewer columns filled up with zeros."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])
