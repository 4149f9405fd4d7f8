"""Examples as tokens: one rule for what is kept of an example that is longer than the window.

The rule. A prompt is `head + body + tail`, tokenised as one text. Where it is too long, tokens of the body are dropped
from its end, so that the question and its form survive; a token that reaches into the tail belongs to the tail. In
choice tasks nothing else is ever cut: a prompt whose head and tail alone do not fit is an error. In text tasks the
answer may take all the room that the prompt does not need, and at least half of the window; what is longer is cut at
its end and loses its end-of-text token. Where a text task's head and tail do not fit either, first the head loses its
end, then the tail its start. A text example that is evaluated reserves a fixed number of tokens in place of its own
answer's, so that its prompt says nothing of the answer.

With `task.cut = "left"` a prompt that is too long loses its start instead, head or not, as in MeZO's published code.

The tokenizer is a fast tokenizer of `transformers`, handed in: this module imports none and changes none.
Padding and batches are in `batches`.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import DataError
from .examples import Example, ModelKind, Task
from .prompts import MASK_SLOT

_PLAIN = {
    "add_special_tokens": False, "truncation": False, "padding": False, "verbose": False,
    "return_attention_mask": False, "return_token_type_ids": False,
}  # fmt: skip


ANSWER_RESERVE = 50
"""Tokens that a text example's prompt leaves to its answer in evaluation: as many as MeZO generates for SQuAD."""


@dataclass(frozen=True)
class Encoded:
    """One example as tokens (int64 arrays). `answer` is empty in choice tasks.

    `choices` are the answers of an example that has its own, `accepted` those that are right beside `label`.

    `answer_at` is the index in `prompt` where the mask token stands (masked models), else `len(prompt)`.
    """

    prompt: np.ndarray
    answer: np.ndarray
    label: int | None
    answer_at: int
    choices: tuple[np.ndarray, ...] = ()
    accepted: tuple[int, ...] = ()


@dataclass(frozen=True)
class EncodedSet:
    """Examples as tokens with what is needed to batch them.

    `answers` has the tokens of each label's answer (int64 arrays; none for text tasks and classifiers), `pad_token`
    the id that fills short rows, `num_truncated` the number of examples that lost tokens.
    """

    examples: tuple[Encoded, ...]
    answers: tuple[np.ndarray, ...]
    kind: ModelKind
    pad_token: int
    num_truncated: int

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "EncodedSet":
        """The examples of `indices`, in that order; `num_truncated` stays that of the whole."""
        return replace(self, examples=tuple(self.examples[i] for i in indices))


def encode(
    task: Task,
    examples: Sequence[Example],
    tokenizer,
    kind: ModelKind,
    window: int = 0,
    evaluated: Container[int] = (),
) -> EncodedSet:
    """`examples` (`task.train`, `task.test` or some of them) as tokens for a model of `kind`.

    `evaluated`: the places of those that the model is judged on, whose prompts do not depend on their answers.

    At most `task.max_tokens` tokens are kept of an example, and no more than the model's `window` (0: no limit). A
    causal model's prompt begins with what the tokenizer puts before a text (often a beginning-of-text token, often
    nothing) and never ends in what it puts behind; the other kinds get both.

    Raises:
        DataError: answers that the model cannot tell apart or say (see `answer_tokens`), a window too small for a
            prompt's head and tail, a prompt for a masked model without exactly one `{mask}`, an example with nothing
            to be learned, a text task for a model that is not causal.
    """
    if task.kind == "text" and kind != "causal":
        raise DataError(
            f"task {task.name!r} is to write text, which a {kind} model cannot: choose model.kind = 'causal'"
        )
    answers, choices = answer_tokens(task, tokenizer, kind), _own_choices(task, examples, tokenizer, kind)
    before, after = _special_tokens(tokenizer, kind)
    limit = min(size for size in (task.max_tokens, window, 2**62) if size)
    room = limit - len(before) - len(after) - max((len(a) - 1 for a in answers), default=0)
    shown = [_with_mask(e, tokenizer) for e in examples] if kind == "masked" else examples
    prompts = tokenise(tokenizer, [e.prompt for e in shown])
    learned = _text_answers(task, examples, tokenizer)
    budgets = [_budget(ANSWER_RESERVE if a and i in evaluated else len(a), room) for i, a in enumerate(learned)]
    budgets = [budget - _longest(own) for budget, own in zip(budgets, choices, strict=True)]
    kept = _fitted_prompts(task, shown, prompts, budgets, tokenizer)
    answered = [answer[: max(room - len(prompt), 0)] for prompt, answer in zip(kept, learned, strict=True)]
    _check_learnable(task, examples, kept, answered, bool(before))
    encoded = tuple(
        _encoded(e, np.array(before + prompt + after, np.int64), answer, own, kind, tokenizer)
        for e, prompt, answer, own in zip(shown, kept, answered, choices, strict=True)
    )
    sizes = zip(prompts, kept, learned, answered, strict=True)
    num_truncated = sum(len(k) < len(p) or len(b) < len(a) for p, k, a, b in sizes)
    return EncodedSet(encoded, answers, kind, _pad_token(tokenizer), num_truncated)


def _encoded(
    example: Example, prompt: np.ndarray, answer: list[int], choices: list[list[int]], kind: ModelKind, tokenizer
) -> Encoded:
    answer_at = len(prompt)
    if kind == "masked":
        masks = np.flatnonzero(prompt == tokenizer.mask_token_id)
        answer_at = int(masks[0 if tokenizer.mask_token in example.head else -1])
    own = tuple(np.array(choice, np.int64) for choice in choices)
    return Encoded(prompt, np.array(answer, np.int64), example.label, answer_at, own, example.accepted)


def _own_choices(task: Task, examples: Sequence[Example], tokenizer, kind: ModelKind) -> list[list[list[int]]]:
    """Tokens of each example's own choices; none where the task has answers for all."""
    texts = [choice for example in examples for choice in example.choices]
    if texts and kind != "causal":
        raise DataError(
            f"task {task.name!r} has choices of each example's own, which a {kind} model cannot score: choose "
            f"model.kind = 'causal'"
        )
    tokens = iter(continuations(tokenizer, texts))
    found = [[next(tokens) for _ in example.choices] for example in examples]
    for i, own in enumerate(found):
        if not all(own):
            raise DataError(f"example {i} of task {task.name!r} has a choice without tokens: mend it or leave it out")
    return found


def _longest(choices: list[list[int]]) -> int:
    """Tokens that an example's choices need beside its prompt: all but the last one of the longest."""
    return max((len(choice) - 1 for choice in choices), default=0)


def _budget(num_answer: int, room: int) -> int:
    """Most tokens that a prompt may have beside an answer: all but the answer's, and at least half."""
    return max(room - num_answer, room // 2)


def _fitted_prompts(task: Task, examples: Sequence[Example], prompts: list[list[int]], budgets: list[int], tokenizer):
    """The prompts, those above their budget cut by the rule."""
    too_long = [i for i, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)) if len(prompt) > budget]
    if not too_long:
        return prompts
    kept = list(prompts)
    if task.cut == "left":
        for i in too_long:
            _check_left(task, i, examples[i], budgets[i], tokenizer)
            kept[i] = prompts[i][-budgets[i] :]
        return kept
    spans = _spans(tokenizer, [examples[i].prompt for i in too_long])
    for i, span in zip(too_long, spans, strict=True):
        num_head, num_tail = _fixed(examples[i], span)
        if task.kind == "choice" and max(num_head + num_tail, 1) > budgets[i]:
            raise DataError(
                f"example {i} of task {task.name!r}: its prompt without the part that may be cut takes "
                f"{num_head + num_tail} tokens, but the window leaves {budgets[i]}: raise task.max_tokens or shorten "
                f"the template"
            )
        last = max(len(prompts[i]) - num_tail, len(prompts[i]) - budgets[i])
        kept[i] = prompts[i][: budgets[i] - (len(prompts[i]) - last)] + prompts[i][last:]
    return kept


def _check_left(task: Task, i: int, example: Example, budget: int, tokenizer) -> None:
    if budget < 1:
        raise DataError(
            f"example {i} of task {task.name!r}: its answers alone fill the window: raise task.max_tokens or leave it "
            f"out"
        )
    if tokenizer.mask_token and tokenizer.mask_token in example.head:
        raise DataError(
            f"task.cut = 'left' would take the mask of task {task.name!r}, which stands first: use task.cut = 'body'"
        )


def _spans(tokenizer, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Where each token begins and ends in its text."""
    return tokenizer(list(texts), return_offsets_mapping=True, **_PLAIN)["offset_mapping"]


def _fixed(example: Example, spans: list[tuple[int, int]]) -> tuple[int, int]:
    """Number of tokens that belong to the head and to the tail."""
    head_end = len(example.head)
    body_end = head_end + len(example.body)
    num_head = sum(start < head_end for start, _ in spans)
    return num_head, sum(start >= head_end and end > body_end for start, end in spans)


def tokenise(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens and without truncation."""
    if not texts:
        return []
    return tokenizer(list(texts), **_PLAIN)["input_ids"]


def continuations(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text where it continues another one.

    SentencePiece tokenizers put a space before whatever begins a text, so each text is tokenised behind an anchor
    (a letter, or a line end where the text does not begin with a space), whose own tokens are then taken off.
    """
    anchors = ["a" if text[:1].isspace() else "\n" for text in texts]
    stems = dict(zip("a\n", tokenise(tokenizer, ["a", "\n"]), strict=True))
    joined = tokenise(tokenizer, [a + text for a, text in zip(anchors, texts, strict=True)])
    alone = tokenise(tokenizer, texts)
    return [
        ids[len(stems[a]) :] if ids[: len(stems[a])] == stems[a] else plain
        for a, ids, plain in zip(anchors, joined, alone, strict=True)
    ]


def answer_tokens(task: Task, tokenizer, kind: ModelKind) -> tuple[np.ndarray, ...]:
    """The tokens of each label's answer, int64 arrays; none for text tasks and classifiers.

    Raises:
        DataError: two answers begin with the same token (a token of mere white space apart); or, for a masked model,
            an answer is not one token; or an answer has no tokens or unknown ones.
    """
    if task.kind == "text" or kind == "classifier" or not task.answers:
        return ()
    tokens = continuations(tokenizer, task.answers)
    first: dict[int, str] = {}
    for answer, ids in zip(task.answers, tokens, strict=True):
        _check_answer(f"answer {answer!r} of task {task.name!r}", ids, tokenizer, kind)
        start = next((token for token in ids if tokenizer.decode([token]).strip()), ids[0])
        if start in first:
            raise DataError(
                f"answers {first[start]!r} and {answer!r} of task {task.name!r} begin with the same token "
                f"{tokenizer.convert_ids_to_tokens(start)!r} ({start}): choose words that differ from the start"
            )
        first[start] = answer
    return tuple(np.array(ids, np.int64) for ids in tokens)


def _check_answer(answer: str, ids: list[int], tokenizer, kind: ModelKind) -> None:
    if not ids:
        raise DataError(f"{answer} has no tokens: choose another word")
    if tokenizer.unk_token_id in ids:
        raise DataError(f"{answer} is unknown to the tokenizer: choose another word")
    if kind == "masked" and len(ids) > 1:
        raise DataError(
            f"{answer} is {len(ids)} tokens, but a masked model fills in one: choose a word that is a single token"
        )


def _text_answers(task: Task, examples: Sequence[Example], tokenizer) -> list[list[int]]:
    """Tokens to be learned of each example, with the end-of-text token; empty in choice tasks."""
    if task.kind == "choice":
        return [[]] * len(examples)
    answers = [e.answer for e in examples]
    has_prompt = any(e.prompt for e in examples)
    tokens = continuations(tokenizer, answers) if has_prompt else tokenise(tokenizer, answers)
    end = [tokenizer.eos_token_id] if task.ends and tokenizer.eos_token_id is not None else []
    return [ids + end for ids in tokens]


def _with_mask(example: Example, tokenizer) -> Example:
    if tokenizer.mask_token is None:
        raise DataError("the tokenizer has no mask token, so its model is not a masked one: choose another model.kind")
    if (example.head + example.tail).count(MASK_SLOT) != 1:
        raise DataError(
            f"a masked model needs exactly one {MASK_SLOT} in the template; the prompt was {example.prompt[:80]!r}"
        )
    head, tail = (part.replace(MASK_SLOT, tokenizer.mask_token) for part in (example.head, example.tail))
    return Example(head, example.body, tail, example.answer, example.label, example.group)


def _pad_token(tokenizer) -> int:
    """The tokenizer's own padding token, else end-of-text, else 0: padding is masked out and must not add a row."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def _special_tokens(tokenizer, kind: ModelKind) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text; nothing goes between a causal model's prompt and answer."""
    plain, dressed = tokenise(tokenizer, ["a"])[0], tokenizer("a")["input_ids"]
    starts = [i for i in range(len(dressed)) if dressed[i : i + len(plain)] == plain]
    if not starts:
        return [], []
    return dressed[: starts[0]], [] if kind == "causal" else dressed[starts[0] + len(plain) :]


def _check_learnable(task: Task, examples: Sequence[Example], prompts, answers, has_start: bool) -> None:
    """Every example must leave a token to be predicted, and one before it to predict from."""
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        starts = bool(prompt) or has_start
        if task.kind == "choice" and not starts:
            raise DataError(f"example {i} of task {task.name!r} has an empty prompt: leave it out")
        if task.kind == "text" and len(answer) < (1 if starts else 2):
            raise DataError(
                f"example {i} of task {task.name!r} has nothing to be learned: its answer {examples[i].answer[:40]!r} "
                f"has {len(answer)} tokens within the window; leave it out or raise task.max_tokens"
            )
