"""Counts of examples: by class, cut, left out, and what is doubtful."""

from seedtune.data.counts import Counts, count_examples, describe_counts, doubts
from seedtune.data.encoding import encode
from seedtune.data.examples import Example, LeftOut, Task


def films(train, test, left_out=()) -> Task:
    train, test = (
        tuple(Example("", text, " It was", " great", label) for text, label in part) for part in (train, test)
    )
    return Task("films", "choice", (" terrible", " great"), ("bad", "good"), train, test, 12, left_out=left_out)


def test_examples_are_counted_by_class_cut_and_left_out(bpe):
    long = "the film was great " * 9
    left = (
        LeftOut("without a label", "row 3"),
        LeftOut("with an empty 'text'", "row 4"),
        LeftOut("without a label", "row 5"),
    )
    task = films([(long, 0), ("the story", 1), ("the film", 1)], [("the film", 1), ("it was", 0)], left)
    train, test = (encode(task, part, bpe, "causal") for part in (task.train, task.test))
    counts = count_examples(task, train, test)
    assert counts == Counts(
        num_train=3,
        num_test=2,
        classes=(("bad", 1, 1), ("good", 2, 1)),
        num_cut=1,
        left_out=(("without a label", 2, "row 3"), ("with an empty 'text'", 1, "row 4")),
        num_shared=1,
    )
    assert describe_counts(counts) == (
        "3 training and 2 test examples (bad 1 + 1, good 2 + 1); 1 of them cut to fit; 2 rows left out without a label "
        "(the first: row 3); 1 rows left out with an empty 'text' (the first: row 4); 1 test prompts are also training "
        "prompts"
    )


def test_classes_without_examples_and_a_single_test_example_are_said():
    counts = count_examples(films([("the film", 1)], [("it was", 1)]))
    assert counts.num_cut is None
    assert doubts(counts) == (
        "no training example of class bad",
        "no test example of class bad",
        "a single test example: accuracy can only be 0 or 100 %",
    )


def test_many_classes_are_not_listed():
    classes = tuple((f"c{i}", 1, int(i > 0)) for i in range(20))
    assert describe_counts(Counts(20, 19, classes, None, (), 0)) == (
        "20 training and 19 test examples of 20 classes; no test example of class c0"
    )


def test_texts_have_no_classes():
    example = Example("", "", "", "once upon a time", None)
    assert describe_counts(count_examples(Task("t", "text", (), (), (example,), (example,) * 3, 8))) == (
        "1 training and 3 test examples"
    )
