"""Greedy generation, for tasks whose answers are read as text (SQuAD).

Why not `transformers.generate`: it mixes a checkpoint's own generation settings (sampling, repetition penalties) into
what is asked for, and an evaluation should not depend on them. Not here: decoding to text and answer metrics; beams
and sampling.
"""

from collections.abc import Sequence
from itertools import groupby

import torch

from ..errors import ModelError
from .answer_head import Selection, answering_at
from .load import Tuned


@torch.no_grad()
def generate(
    model: Tuned, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int = 16
) -> list[list[int]]:
    """The most likely token, again and again, after each prompt: at most `max_new_tokens`, without the end token.

    Prompts of one length make a batch, so there is no padding to be blind to. A prompt whose answer would leave the
    model's window gets fewer tokens. Cost: a forward over the prompts and one over each new token (keys and values are
    kept), with logits at the last position only.

    Raises:
        ModelError: the model is not causal, or a prompt is empty or fills the window.
    """
    if model.kind != "causal":
        raise ModelError(f"a {model.kind} model was asked to write text: choose a causal model")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for length, same in groupby(order, key=lambda i: len(prompts[i])):
        indices, room = list(same), _room(model, length, max_new_tokens)
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            for i, answer in zip(chosen, _continued(model, [list(prompts[i]) for i in chosen], room), strict=True):
                answers[i] = answer
    return answers


def _room(model: Tuned, length: int, max_new_tokens: int) -> int:
    if length == 0 or 0 < model.window <= length:
        raise ModelError(
            f"a prompt of {length} tokens was given to write on from: the model takes 1 to {model.window - 1} of them; "
            "cut it to fit"
        )
    return min(max_new_tokens, model.window - length) if model.window else max_new_tokens


def _continued(model: Tuned, prompts: list[list[int]], room: int) -> list[list[int]]:
    """Greedy continuations of prompts of one length."""
    ends = torch.tensor(sorted(_end_tokens(model)), dtype=torch.int64)
    fed = torch.tensor(prompts, device=model.device)
    rows = torch.arange(len(prompts), device=fed.device)
    made: list[torch.Tensor] = []
    ended, cache = torch.zeros(len(prompts), dtype=torch.bool), None
    while len(made) < room and not ended.all():
        with answering_at(Selection(rows, torch.full_like(rows, fed.shape[1] - 1))):
            output = model.module(input_ids=fed, past_key_values=cache, use_cache=True)
        best, cache = output.logits[0].argmax(-1), output.past_key_values
        fed = best[:, None]
        made.append(best.cpu())
        ended |= torch.isin(made[-1], ends)
    written = torch.stack(made, 1).tolist() if made else [[] for _ in prompts]
    return [_before(tokens, set(ends.tolist())) for tokens in written]


def _end_tokens(model: Tuned) -> set[int]:
    """The tokenizer's end token and those that the checkpoint's generation settings name."""
    named = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in (*listed, model.tokenizer.eos_token_id) if token is not None}


def _before(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
