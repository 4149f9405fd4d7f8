"""What a task is, before any tokenizer: examples as text, their answers and their natural clients.

Only types. Reading files is in `files`, known tasks in `tasks`, tokens in `encoding`.
"""

from dataclasses import dataclass
from typing import Literal

ModelKind = Literal["causal", "masked", "classifier"]
"""How a model reads a task: by its next token, by a masked token, or by a classification head."""


@dataclass(frozen=True)
class Example:
    """One example. The model reads `head + body + tail`; only `body` is ever cut, at its end, to fit a window.

    `answer` is the text to be learned (choice tasks: `Task.answers[label]`), `label` an index into `Task.label_names`
    (None in text tasks), `group` the natural client ("" where the data has none), `references` all accepted answers
    where a generated text is judged (default: none). `choices` are the answers of an example that has its own, in
    place of the task's; `label` is then an index into them, and `accepted` has others that are right too.
    """

    head: str
    body: str
    tail: str
    answer: str
    label: int | None
    group: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    accepted: tuple[int, ...] = ()

    @property
    def prompt(self) -> str:
        return self.head + self.body + self.tail


@dataclass(frozen=True)
class LeftOut:
    """A row that is no example: why ("without a label"), and where it stands ("task 'sst2', train row 3")."""

    reason: str
    place: str


@dataclass(frozen=True)
class Task:
    """Examples to train and to test on, and how their answers are judged.

    `kind` is "choice" (pick one of `answers`) or "text" (write `Example.answer`). `answers`, `label_names` and
    `label_descriptions` have one text a label and are empty for text tasks; `answers` is empty for classifiers, and
    `label_descriptions` where nobody wrote any. Where examples have choices of their own, all three are empty.
    `max_tokens` is the window of an example. `ends` says whether a text answer is followed by the tokenizer's end-of-
    text token, `is_balanced` whether limits on the number of examples keep equally many of each group. `cut` says what
    a prompt that is too long loses: the end of its body or its start. `left_out` are the rows of its files that are no
    examples.
    """

    name: str
    kind: Literal["choice", "text"]
    answers: tuple[str, ...]
    label_names: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    max_tokens: int
    label_descriptions: tuple[str, ...] = ()
    ends: bool = True
    is_balanced: bool = False
    left_out: tuple[LeftOut, ...] = ()
    cut: Literal["body", "left"] = "body"
