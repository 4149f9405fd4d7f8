"""Examples as tokens: one rule for what is kept of an example that is longer than the window.

The rule. A prompt is `head + body + tail`, tokenised as one text. Where it is too long, only tokens of the body are
dropped, from its end; a token that reaches into the tail belongs to the tail. A text answer may take all the room that
the body does not need, and at least half of what head and tail leave; then it is cut at its end and loses its
end-of-text token. Answers of choice tasks are never cut. A prompt whose head and tail alone do not fit is an error.

The tokenizer is a fast tokenizer of `transformers`, handed in: this module imports none and changes none.
Padding and batches are in `batches`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from .examples import Example, ModelKind, Task
from .prompts import MASK_SLOT


@dataclass(frozen=True)
class Encoded:
    """One example as tokens (int64 arrays). `answer` is empty in choice tasks.

    `answer_at` is the index in `prompt` where the mask token stands (masked models), else `len(prompt)`.
    """

    prompt: np.ndarray
    answer: np.ndarray
    label: int | None
    answer_at: int


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


def encode(task: Task, examples: Sequence[Example], tokenizer, kind: ModelKind, window: int = 0) -> EncodedSet:
    """`examples` (`task.train`, `task.test` or some of them) as tokens for a model of `kind`.

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
    answers = answer_tokens(task, tokenizer, kind)
    limit = min(size for size in (task.max_tokens, window, 2**62) if size)
    frame = _Frame(tokenizer, kind, limit - max([len(a) for a in answers], default=1) + 1, task)
    texts = [_with_mask(e, tokenizer) for e in examples] if kind == "masked" else examples
    prompts = tokenise(tokenizer, [e.prompt for e in texts])
    learned = _text_answers(task, examples, tokenizer)
    fitted = [frame.fit(i, *parts) for i, parts in enumerate(zip(texts, prompts, learned, strict=True))]
    cut = sum(was_cut for _, was_cut in fitted)
    return EncodedSet(tuple(e for e, _ in fitted), answers, kind, _pad_token(tokenizer), cut)


def tokenise(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens and without truncation."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)["input_ids"]


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
        DataError: two answers begin with the same token; or, for a masked model, an answer is not one token; or an
            answer has no tokens.
    """
    if task.kind == "text" or kind == "classifier":
        return ()
    tokens = continuations(tokenizer, task.answers)
    first: dict[int, str] = {}
    for answer, ids in zip(task.answers, tokens, strict=True):
        if not ids:
            raise DataError(f"answer {answer!r} of task {task.name!r} has no tokens: choose another word")
        if kind == "masked" and len(ids) > 1:
            raise DataError(
                f"answer {answer!r} of task {task.name!r} is {len(ids)} tokens, but a masked model fills in one: "
                f"choose a word that is a single token"
            )
        if ids[0] in first:
            raise DataError(
                f"answers {first[ids[0]]!r} and {answer!r} of task {task.name!r} begin with the same token "
                f"{tokenizer.convert_ids_to_tokens(ids[0])!r} ({ids[0]}): choose words that differ from the start"
            )
        first[ids[0]] = answer
    return tuple(np.array(ids, np.int64) for ids in tokens)


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


class _Frame:
    """The window of one task and tokenizer: special tokens around a prompt and the room between them."""

    def __init__(self, tokenizer, kind: ModelKind, limit: int, task: Task):
        self.tokenizer, self.kind, self.limit, self.task = tokenizer, kind, limit, task
        self.before, self.after = _special_tokens(tokenizer)
        if kind == "causal":
            self.after = []

    def fit(self, index: int, example: Example, prompt: list[int], answer: list[int]) -> tuple[Encoded, bool]:
        """The example within the window, and whether it lost tokens."""
        room = self.limit - len(self.before) - len(self.after)
        fits = len(prompt) + len(answer) <= room
        if not fits:
            prompt, answer = self._cut(index, example, prompt, answer, room)
        if self.task.kind == "text" and len(self.before) + len(prompt) + len(answer) < 2:
            raise DataError(
                f"example {index} of task {self.task.name!r} has nothing to be learned: its answer is "
                f"{example.answer[:40]!r}; leave it out"
            )
        ids = np.array(self.before + prompt + self.after, np.int64)
        return Encoded(ids, np.array(answer, np.int64), example.label, self._answer_at(ids, example)), not fits

    def _cut(self, index: int, example: Example, prompt: list[int], answer: list[int], room: int):
        num_head, num_tail = self._fixed(example)
        num_body, free = len(prompt) - num_head - num_tail, room - num_head - num_tail
        if free < min(1, len(answer)):
            raise DataError(
                f"example {index} of task {self.task.name!r}: its prompt without the longest part takes "
                f"{num_head + num_tail} tokens, but the window leaves {room}: raise task.max_tokens "
                f"or shorten the template"
            )
        kept = min(num_body, max(free - len(answer), free // 2))
        last = len(prompt) - num_tail
        return prompt[: num_head + kept] + prompt[last:], answer[: free - kept]

    def _fixed(self, example: Example) -> tuple[int, int]:
        """Number of tokens that belong to the head and to the tail."""
        spans = self.tokenizer(
            example.prompt, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )["offset_mapping"]
        head_end = len(example.head)
        body_end = head_end + len(example.body)
        num_head = sum(start < head_end for start, _ in spans)
        num_tail = sum(end > body_end for _, end in spans)
        return num_head, min(num_tail, len(spans) - num_head)

    def _answer_at(self, ids: np.ndarray, example: Example) -> int:
        if self.kind != "masked":
            return len(ids)
        masks = np.flatnonzero(ids == self.tokenizer.mask_token_id)
        return int(masks[0 if self.tokenizer.mask_token in example.head else -1])


def _special_tokens(tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    plain, dressed = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for start in range(len(dressed) - len(plain) + 1):
        if dressed[start : start + len(plain)] == plain:
            return dressed[:start], dressed[start + len(plain) :]
    return [], []
