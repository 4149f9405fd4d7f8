"""What a batch's loss is: one function for causal LMs, masked LMs and classifiers, choices and texts.

A choice is learned by cross-entropy over the scores of its candidates: logits of single-token answers,
length-normalised log-likelihoods of longer ones (MeZO, arXiv 2305.17333), or a classification head's logits. A text is
learned by the mean negative log-likelihood of its tokens. Softmax is always float32.

Cost: one forward over [S, T], with output logits at the n scored positions only (see `seedtune.models.answer_head`),
less the frozen layers where the batch brings their outputs (`Batch.frozen`).
An autograd graph is built only where the caller lets parameters require gradients; `load` lets none.
Batches are right-padded; the attention mask keeps real tokens blind to padding, so no position ids are passed.
Not here: accuracy, answer metrics, perturbation.
"""

import torch
from torch.nn.functional import cross_entropy

from ..data.batches import Batch
from ..errors import ModelError
from .answer_head import Selection, answering_at
from .frozen import handing_on
from .load import Tuned


def loss(model: Tuned, batch: Batch) -> torch.Tensor:
    """The training loss of a batch: scalar float32, the mean over examples (choices) or scored tokens (texts).

    Raises:
        ModelError: a text (or multi-token) batch for a model that scores whole examples only.
    """
    if batch.labels is None:
        return _target_losses(model, batch).mean()
    return cross_entropy(scores(model, batch), batch.labels)


def example_losses(model: Tuned, batch: Batch) -> torch.Tensor:
    """The loss of each example by itself, float32 [B]: for texts the mean over its own scored tokens.

    Their mean is `loss` for choices, up to rounding; for texts `loss` weighs examples by their tokens.

    Guarantee: where one example's loss is not finite, the others' are what they would be without it.

    Raises:
        ModelError: as `loss`.
    """
    if batch.targets is None:
        return cross_entropy(scores(model, batch), labels_of(batch), reduction="none")
    belongs = torch.arange(len(batch.input_ids), device=batch.rows.device)[:, None] == batch.rows[None, :]
    own = torch.where(belongs, _target_losses(model, batch), 0.0)  # no product, in which 0 times infinity spreads
    means = own.sum(1) / belongs.sum(1)
    if batch.labels is None:
        return means
    return cross_entropy(_by_example(-means, batch), batch.labels, reduction="none")


def scores(model: Tuned, batch: Batch) -> torch.Tensor:
    """One score for each choice of each example: float32 [B, C]; the argmax is the prediction.

    Where examples have choices of their own, C is the largest number of them, and the others' scores are -inf.

    Raises:
        ModelError: the batch is of a text task, or holds multi-token answers for a masked LM.
    """
    labels_of(batch)
    if model.kind == "classifier":
        with handing_on(batch):
            return model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    if batch.candidates is not None:
        return answer_logits(model, batch)
    return _length_normalised(-_target_losses(model, batch), batch)


def labels_of(batch: Batch) -> torch.Tensor:
    """The label of each example, int64 [B].

    Raises:
        ModelError: the batch is of a text task.
    """
    if batch.labels is None:
        raise ModelError("scores of a text batch were asked for: only choice tasks have scores; use token_loss_sum")
    return batch.labels


def answer_logits(model: Tuned, batch: Batch) -> torch.Tensor:
    """Logits at the scored positions of a language model: float32 [n, C] of the candidates, or [n, vocabulary].

    Row i belongs to sequence `rows[i]` at position `columns[i]`: for causal models the position before the target, for
    masked models the mask token itself.
    """
    options = {"use_cache": False} if model.kind == "causal" else {}
    with answering_at(Selection(batch.rows, batch.columns, batch.candidates)), handing_on(batch):
        output = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
    return output.logits[0].float()


def token_loss_sum(model: Tuned, batch: Batch) -> tuple[float, int]:
    """(sum of the targets' negative log-likelihoods in nats, number of targets): perplexity is exp(sums / counts).

    Summed in float64, without an autograd graph.

    Raises:
        ModelError: the model is not causal, or the batch holds no target tokens.
    """
    with torch.no_grad():
        losses = _target_losses(model, batch)
    return losses.double().sum().item(), len(losses)


def _target_losses(model: Tuned, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of each target token, float32 [n]."""
    if model.kind != "causal":
        raise ModelError(
            f"a {model.kind} model was given a batch of texts or of answers longer than one token: only a causal model "
            "can score these; use one, or choose answers that are single tokens"
        )
    if batch.targets is None:
        raise ModelError("a batch without target tokens has no loss per token: it is scored by its candidates")
    return cross_entropy(answer_logits(model, batch), batch.targets, reduction="none")


def _length_normalised(log_likelihoods: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean log-likelihood of each sequence's targets, [B, C]; a product, as scattered sums vary on CUDA."""
    sequences = torch.arange(len(batch.input_ids), device=batch.rows.device)
    belongs = (sequences[:, None] == batch.rows[None, :]).float()
    return _by_example(belongs @ log_likelihoods / belongs.sum(1), batch)


def _by_example(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Values of sequences, [S], by example and choice, [B, C]; -inf where an example has fewer choices than others."""
    counts = batch.num_choices
    if counts is None:
        return values.view(batch.num_examples, -1)
    places = torch.arange(int(counts.max()), device=counts.device).expand(len(counts), -1)
    first = (counts.cumsum(0) - counts)[:, None]
    is_choice = places < counts[:, None]
    return torch.where(is_choice, values[torch.where(is_choice, first + places, 0)], -torch.inf)
