"""What a benchmark is: its prompts, answer words and the columns of its files, as data.

The tasks themselves are in `benchmarks`, `superglue` and `sentences`; reading their files is in `labelled`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .examples import ModelKind
from .files import Row


@dataclass(frozen=True)
class Form:
    """A template, the column of it that may be cut, and the answer word of each label."""

    template: str
    body: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """One task as its authors and the Hugging Face hub publish it.

    `hub` is data set and configuration (None: it is on no hub), `evaluated` its split to test on. `aliases` maps a
    template's column to other names of it in files, `labels` has the spellings of each label (its number, its name,
    others), `label_columns` the columns that may hold it with the number of the first label there, `headers` the
    columns of files without a line of names. `expanded` makes the rows of a file's row that holds several, `prepared`
    makes one ready for the template. `choices` gives the answers of a row that has its own, and `right` the indices of
    those that are right. A task with neither labels nor choices is a text task.
    """

    hub: tuple[str, str | None] | None
    forms: Mapping[ModelKind, Form]
    max_tokens: int
    labels: tuple[tuple[str, ...], ...] = ()
    label_columns: tuple[tuple[str, int], ...] = (("label", 0),)
    aliases: tuple[tuple[str, str], ...] = ()
    descriptions: tuple[str, ...] = ()
    headers: tuple[tuple[str, ...], ...] = ()
    group: str = ""
    prepared: Callable[[Row], Row] = dict
    expanded: Callable[[Row], Sequence[Row]] | None = None
    choices: Callable[[Row], tuple[str, ...]] | None = None
    right: Callable[[Row], tuple[int, ...]] | None = None
    evaluated: str = "validation"

    @property
    def is_choice(self) -> bool:
        return bool(self.labels or self.choices)
