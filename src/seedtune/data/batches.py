"""Batches: what an objective consumes. Right-padded tokens, the positions to score, and what to predict there.

Positions are gathered before the vocabulary is touched, so nobody needs logits of a whole [batch, time, vocabulary]
tensor. Which examples make a batch is decided elsewhere (`keyed.client_batch_indices`). Batches are made on the CPU;
whoever makes one for a model that is elsewhere sends it there (`Batch.to`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .encoding import Encoded, EncodedSet


@dataclass(frozen=True, eq=False)
class FrozenOutputs:
    """Outputs of a model's frozen layers for one batch, handed to its forward in place of computing them.

    values: [S, T, d] in the model's dtype, zeros at padding. num_layers: how many layers they stand for.
    num_flops: floating-point operations that an evaluation would spend on these layers.
    num_new_flops: operations spent on them when the batch was made.
    note_use: is called with `num_flops` by each evaluation that is spared the layers.
    """

    values: torch.Tensor
    num_layers: int
    num_flops: int
    num_new_flops: int
    note_use: Callable[[int], None]


@dataclass(frozen=True)
class Batch:
    """S sequences of T tokens, n scored positions, B examples. All tensors are int64.

    | task | S | n | targets | candidates | labels |
    |---|---|---|---|---|---|
    | choice, every answer one token | B | B | None | [C] | [B] |
    | choice, longer answers (causal) | B * C, sequence b * C + c | their tokens | [n] | None | [B] |
    | choice, classifier | B | B | None | None | [B] |
    | choice, each example's own | their sum | their tokens | [n] | None | [B] |
    | text | B | tokens to be learned | [n] | None | None |

    `columns[i]` is the position in sequence `rows[i]` whose logits predict `targets[i]` (causal models: the position
    before the token; masked models: the mask; classifiers: position 0, to be ignored by models that pool).
    `num_choices`: of each example, int64 [B], where each has its own; sequences are in the order of examples.
    `frozen`: what the model's frozen layers give for it, where that is known (`seedtune.zo.kept_activations`).
    """

    input_ids: torch.Tensor  # [S, T], right-padded
    attention_mask: torch.Tensor  # [S, T]
    rows: torch.Tensor  # [n]
    columns: torch.Tensor  # [n]
    targets: torch.Tensor | None  # [n]
    candidates: torch.Tensor | None  # [C]
    labels: torch.Tensor | None  # [B]
    num_examples: int
    frozen: FrozenOutputs | None = None
    num_choices: torch.Tensor | None = None  # [B]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with all its tensors on `device`; those that are there are not copied."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)


def batch_of(encoded: EncodedSet, indices: Sequence[int] | np.ndarray) -> Batch:
    """The batch of `indices`, in that order, padded to its longest sequence.

    Cost: about 0.1 ms for 16 examples.
    """
    chosen = [encoded.examples[i] for i in indices]
    if chosen and chosen[0].label is None:
        return _text_batch(encoded, chosen)
    if chosen and chosen[0].choices:
        return _own_choices_batch(encoded, chosen)
    if any(len(answer) > 1 for answer in encoded.answers):
        return _long_answer_batch(encoded, chosen)
    return _label_batch(encoded, chosen)


def eval_order(encoded: EncodedSet) -> np.ndarray:
    """The examples in the order of `eval_batches`, longest first: int64 [N]."""
    lengths = np.array([len(e.prompt) + len(e.answer) for e in encoded.examples])
    return np.argsort(-lengths, kind="stable")


def eval_batches(encoded: EncodedSet, batch_size: int) -> Iterator[Batch]:
    """All examples in batches of like length, longest first, so that little is padding; the same at every call."""
    order = eval_order(encoded)
    for start in range(0, len(order), batch_size):
        yield batch_of(encoded, order[start : start + batch_size])


def _label_batch(encoded: EncodedSet, chosen: list[Encoded]) -> Batch:
    """One sequence and one scored position an example."""
    offset = {"causal": -1, "masked": 0, "classifier": None}[encoded.kind]
    columns = [0 if offset is None else e.answer_at + offset for e in chosen]
    candidates = np.concatenate(encoded.answers) if encoded.answers else None
    return _batch([e.prompt for e in chosen], encoded, np.arange(len(chosen)), np.array(columns, np.int64),
                  candidates=candidates, labels=_labels(chosen), num_examples=len(chosen))  # fmt: skip


def _long_answer_batch(encoded: EncodedSet, chosen: list[Encoded]) -> Batch:
    """A sequence for each example and answer; the answer's tokens are scored."""
    pairs = [(e.prompt, answer) for e in chosen for answer in encoded.answers]
    return _scored_batch(pairs, encoded, labels=_labels(chosen), num_examples=len(chosen))


def _own_choices_batch(encoded: EncodedSet, chosen: list[Encoded]) -> Batch:
    """A sequence for each example and choice of its own; the choice's tokens are scored."""
    pairs = [(e.prompt, choice) for e in chosen for choice in e.choices]
    batch = _scored_batch(pairs, encoded, labels=_labels(chosen), num_examples=len(chosen))
    return replace(batch, num_choices=torch.tensor([len(e.choices) for e in chosen]))


def _text_batch(encoded: EncodedSet, chosen: list[Encoded]) -> Batch:
    return _scored_batch([(e.prompt, e.answer) for e in chosen], encoded, num_examples=len(chosen))


def _scored_batch(pairs: list[tuple[np.ndarray, np.ndarray]], encoded: EncodedSet, **rest: Any) -> Batch:
    """Sequences prompt + answer with every answer token scored; without a prompt nothing predicts the first one."""
    pairs = [(prompt, answer) if len(prompt) else (answer[:1], answer[1:]) for prompt, answer in pairs]
    sequences = [np.concatenate((prompt, answer[:-1])) for prompt, answer in pairs]
    counts = np.array([len(answer) for _, answer in pairs])
    before = np.array([len(prompt) - 1 for prompt, _ in pairs])
    rows = np.repeat(np.arange(len(pairs)), counts)
    columns = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(before, counts)
    targets = np.concatenate([answer for _, answer in pairs])
    return _batch(sequences, encoded, rows, columns, targets=targets, **rest)


def _labels(chosen: list[Encoded]) -> np.ndarray:
    return np.array([e.label for e in chosen], np.int64)


def _batch(
    sequences: list[np.ndarray], encoded: EncodedSet, rows: np.ndarray, columns: np.ndarray, *, num_examples: int,
    targets: np.ndarray | None = None, candidates: np.ndarray | None = None, labels: np.ndarray | None = None,
) -> Batch:  # fmt: skip
    lengths = np.array([len(s) for s in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, encoded.pad_token, np.int64)
    ids[mask] = np.concatenate(sequences)
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(rows),
        torch.from_numpy(columns), _tensor(targets), _tensor(candidates), _tensor(labels), num_examples,
    )  # fmt: skip


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)
