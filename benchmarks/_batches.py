"""Batches of classification, for the benchmarks that measure it."""

import torch

from seedtune.data.batches import Batch


def choice_batch(vocabulary: int, num_sequences: int, num_tokens: int, is_causal: bool) -> Batch:
    """Sequences of one length with one of two answers each: the next token, or a label."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, vocabulary, (num_sequences, num_tokens), generator=generator)
    rows, candidates = torch.arange(num_sequences), torch.tensor([5, 6]) if is_causal else None
    columns = torch.full_like(rows, num_tokens - 1 if is_causal else 0)
    return Batch(ids, torch.ones_like(ids), rows, columns, None, candidates, rows % 2, num_sequences)
