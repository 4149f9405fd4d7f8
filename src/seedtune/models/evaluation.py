"""How good a model is on examples it was not tuned on.

Choices by accuracy and cross-entropy, texts by the mean loss a token and its exponential, the perplexity. It runs
forwards on whatever weights the model is bound to; it moves and perturbs nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy

from ..data.batches import Batch, eval_batches
from ..data.encoding import EncodedSet
from .load import Tuned
from .objective import labels_of, scores, token_loss_sum


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over examples (choices) or tokens (texts), in nats; accuracy in [0, 1], None for texts.

    confusion: for choices, how many examples of each label (row) were given which (column), int [C, C].
    """

    loss: float
    accuracy: float | None
    num_examples: int
    confusion: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False, compare=False)

    @property
    def perplexity(self) -> float | None:
        return None if self.accuracy is not None else math.exp(min(self.loss, 700.0))


@torch.no_grad()
def evaluate(
    model: Tuned, encoded: EncodedSet, batch_size: int = 64, advance: Callable[[int], None] = lambda count: None
) -> Evaluation:
    """The evaluation over all of `encoded`. Cost: one forward a batch of `batch_size`, in order of length.

    `advance` is called with the number of examples of each batch once it is done.
    """
    batches = _counted((batch.to(model.device) for batch in eval_batches(encoded, batch_size)), advance)
    if encoded.examples[0].label is None:
        sums = [token_loss_sum(model, batch) for batch in batches]
        return Evaluation(sum(s for s, _ in sums) / sum(n for _, n in sums), None, len(encoded))
    loss, confusion = 0.0, torch.zeros((), dtype=torch.int64)
    for batch in batches:
        values, labels = scores(model, batch), labels_of(batch)
        loss += cross_entropy(values, labels, reduction="sum").item()
        pairs = (labels * values.shape[1] + values.argmax(1)).bincount(minlength=values.shape[1] ** 2)
        confusion = confusion + pairs.view(values.shape[1], -1).cpu()
    accuracy = int(confusion.trace()) / len(encoded)
    return Evaluation(loss / len(encoded), accuracy, len(encoded), tuple(map(tuple, confusion.tolist())))


def _counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    """The batches; each is reported to `advance` when the next one is asked for."""
    for batch in batches:
        yield batch
        advance(batch.num_examples)
