"""An output head that computes logits only where an answer is scored, and only of the tokens that can be the answer.

A language model's logits over [sequences, time, vocabulary] are its largest activation by far, and an objective reads
only a few positions of them. `install` turns the model's own output head into an `AnswerHead`: the same parameters
under the same names, tied or not, so that checkpoints, PEFT and saving see no difference. While `answering_at` holds a
selection, its forward picks the selected hidden states first and, where candidates are given, multiplies only by their
rows of the weight. What a model does to its logits afterwards (soft-capping, scales) still applies.

All uses of the head's parameters happen inside its own `forward`, which is what a perturbed evaluation intercepts; the
head reads the selection from a context variable, so nothing is patched or restored while it runs.

Not here: what the logits are compared with (`seedtune.models.objective`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, linear

from ..errors import ModelError
from .source import Network


@dataclass(frozen=True)
class Selection:
    """Positions [rows[i], columns[i]] (int64 [n] each) and the tokens scored there: `candidates` (int64 [C]) or all."""

    rows: torch.Tensor
    columns: torch.Tensor
    candidates: torch.Tensor | None = None


_selection: ContextVar[Selection | None] = ContextVar("selection", default=None)
_directions: ContextVar[int | None] = ContextVar("directions", default=None)


@contextmanager
def answering_at(selection: Selection) -> Iterator[None]:
    """Within it (and this thread), every `AnswerHead` returns the selected logits alone: [1, n, C or vocabulary]."""
    token = _selection.set(selection)
    try:
        yield
    finally:
        _selection.reset(token)


@contextmanager
def directions(num: int) -> Iterator[None]:
    """Within it (and this thread), sequences come Q times over, and heads select the same positions in each: [Q, n, C].

    Candidates are then looked up for each direction, so that all that a head's weight meets has rows for it.
    """
    token = _directions.set(num)
    try:
        yield
    finally:
        _directions.reset(token)


class AnswerHead(torch.nn.Linear):
    """A linear output head, [S, T, d] -> [S, T, vocabulary]; within `answering_at`: [S, T, d] -> [1, n, C]."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        selection = _selection.get()
        if selection is None:
            return linear(hidden, self.weight, self.bias)
        if (num := _directions.get()) is not None:
            return self._of_each(hidden.unflatten(0, (num, -1))[:, selection.rows, selection.columns], selection)
        hidden = hidden[selection.rows, selection.columns].unsqueeze(0)
        if selection.candidates is None:
            return linear(hidden, self.weight, self.bias)
        bias = None if self.bias is None else self.bias[selection.candidates]
        return linear(hidden, embedding(selection.candidates, self.weight), bias)

    def _of_each(self, hidden: torch.Tensor, selection: Selection) -> torch.Tensor:
        """[Q, n, d] -> [Q, n, C]."""
        if selection.candidates is None:
            return linear(hidden, self.weight, self.bias)
        candidates = selection.candidates.expand(len(hidden), -1)
        logits = hidden @ embedding(candidates, self.weight).transpose(1, 2)
        return logits if self.bias is None else logits + embedding(candidates, self.bias.unsqueeze(1)).transpose(1, 2)


def install(module: Network) -> None:
    """Makes the output head of a causal or masked language model an `AnswerHead`, in place.

    Raises:
        ModelError: the model has no output head, or one that is not a plain linear layer over the vocabulary (for
            example one that LoRA adapts).
    """
    head = module.get_output_embeddings()
    if type(head) is AnswerHead:
        return
    if type(head) is not torch.nn.Linear:
        raise ModelError(
            f"output head of {type(module).__name__} is {type(head).__name__}: only a plain Linear can be evaluated at "
            f"single positions; choose another model, or leave the head out of model.lora_targets"
        )
    vocabulary = module.get_input_embeddings().weight.shape[0]
    if head.weight.shape[0] != vocabulary:
        raise ModelError(
            f"output head of {type(module).__name__} has {head.weight.shape[0]} rows but the vocabulary has "
            f"{vocabulary}: such a model cannot be evaluated at single positions; choose another"
        )
    head.__class__ = AnswerHead
