"""Which examples train and which test: by the files' names, else by a hash of each example's text.

A hash keeps identical texts on one side and gives the same split in every run, on every machine.
"""

from collections.abc import Iterable, Mapping

from .examples import Example
from .stdlib import stable_fraction

TEST_FRACTION = 0.2

TrainTest = tuple[tuple[Example, ...], tuple[Example, ...]]


def split_by_hash(examples: Iterable[Example], texts: Iterable[str] | None = None) -> TrainTest:
    """(train, test): an example whose text has `stable_fraction` below 0.2 is for testing.

    The text is its prompt, or its answer where the prompt is empty, or the given one of `texts`.
    """
    examples = tuple(examples)
    texts = [e.prompt or e.answer for e in examples] if texts is None else texts
    is_test = [stable_fraction(text) < TEST_FRACTION for text in texts]
    sides = tuple(zip(examples, is_test, strict=True))
    return tuple(e for e, test in sides if not test), tuple(e for e, test in sides if test)


def train_and_test(splits: Mapping[str, tuple[Example, ...]]) -> TrainTest:
    """(train, test) from the splits that `files.split_files` tells apart.

    Tests are the validation rows where there are any, else the test rows. Without training files, validation trains
    and test tests. A single split of any name is divided by hash.
    """
    order = ("train", "validation", "test", "all")
    found = [splits[name] for name in order if splits.get(name)]
    if len(found) < 2:
        return split_by_hash(found[0]) if found else ((), ())
    return found[0], found[1]
