"""Counts of a task's examples, to be said before anything runs: by class, cut, left out, and what is doubtful.

Pure functions of a task and its tokens; nothing is read and nothing printed here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .encoding import EncodedSet
from .examples import Example, Task

MOST_CLASSES = 12
"""As many are listed one by one in a line."""


@dataclass(frozen=True)
class Counts:
    """How many examples a task has.

    classes: (name, training examples, test examples) of each label; empty for texts. num_cut: examples that lost
    tokens, None where no tokenizer was given. left_out: (reason, rows, place of the first). num_shared: test examples
    whose prompt is also a training example's.
    """

    num_train: int
    num_test: int
    classes: tuple[tuple[str, int, int], ...]
    num_cut: int | None
    left_out: tuple[tuple[str, int, str], ...]
    num_shared: int


def count_examples(task: Task, train: EncodedSet | None = None, test: EncodedSet | None = None) -> Counts:
    """Count the examples of `task`; `train` and `test` are the same as tokens. Cost: a pass over the texts."""
    encoded = [part for part in (train, test) if part is not None]
    prompts = {example.prompt for example in task.train if example.prompt}
    return Counts(
        num_train=len(task.train),
        num_test=len(task.test),
        classes=_count_classes(task),
        num_cut=sum(part.num_truncated for part in encoded) if encoded else None,
        left_out=_count_left_out(task),
        num_shared=sum(example.prompt in prompts for example in task.test),
    )


def _count_classes(task: Task) -> tuple[tuple[str, int, int], ...]:
    train, test = (_labels(examples) for examples in (task.train, task.test))
    return tuple((name, train[i], test[i]) for i, name in enumerate(task.label_names))


def _labels(examples: Sequence[Example]) -> Counter:
    return Counter(example.label for example in examples)


def _count_left_out(task: Task) -> tuple[tuple[str, int, str], ...]:
    counts = Counter(row.reason for row in task.left_out)
    first = {row.reason: row.place for row in reversed(task.left_out)}
    return tuple((reason, count, first[reason]) for reason, count in counts.most_common())


def describe_counts(counts: Counts) -> str:
    """Put the counts into one line, with what is doubtful about them.

    >>> describe_counts(Counts(8, 2, (("no", 5, 1), ("yes", 3, 1)), 4, (), 0))
    '8 training and 2 test examples (no 5 + 1, yes 3 + 1); 4 of them cut to fit'
    """
    parts = [f"{counts.num_train:,} training and {counts.num_test:,} test examples{_describe_classes(counts)}"]
    if counts.num_cut:
        parts.append(f"{counts.num_cut:,} of them cut to fit")
    return "; ".join([*parts, *doubts(counts)])


def _describe_classes(counts: Counts) -> str:
    if not counts.classes:
        return ""
    if len(counts.classes) > MOST_CLASSES:
        return f" of {len(counts.classes)} classes"
    return f" ({', '.join(f'{name} {train:,} + {test:,}' for name, train, test in counts.classes)})"


def doubts(counts: Counts) -> tuple[str, ...]:
    """List what a result on these examples would suffer from, each in a few words; none where nothing was found."""
    found = [f"{count:,} rows left out {reason} (the first: {place})" for reason, count, place in counts.left_out]
    for split, place in (("training", 1), ("test", 2)):
        missing = [row[0] for row in counts.classes if not row[place]]
        if missing:
            names = ", ".join(missing[:MOST_CLASSES]) + (", ..." if len(missing) > MOST_CLASSES else "")
            found.append(f"no {split} example of class {names}")
    if counts.num_test == 1:
        found.append("a single test example: accuracy can only be 0 or 100 %")
    if counts.num_shared:
        found.append(f"{counts.num_shared:,} test prompts are also training prompts")
    return tuple(found)
