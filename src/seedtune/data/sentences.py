"""GLUE's tasks on sentences and six older ones, as data: columns of their files and MeZO's prompts for masked models.

Files: GLUE's tsv and SNLI's jsonl as published; for TREC, MR, SST-5, Subj, CR and MPQA a csv of label and text without
a line of names, as LM-BFF and MeZO publish them; or the hub's. Prompts for causal models are ours but for the words,
since MeZO puts these tasks to masked models alone.
"""

from collections.abc import Callable, Mapping, Sequence

from .benchmark import Benchmark, Form
from .examples import ModelKind
from .files import Row

_WORDS = {
    "terrible": (" terrible", " great"),
    "five": (" terrible", " bad", " okay", " good", " great"),
    "correct": (" incorrect", " correct"),
    "subjective": (" subjective", " objective"),
    "yes": (" No", " Yes"),
    "follows": (" Yes", " Maybe", " No"),
}
_CSV = (("label", "text"),)
_BAD_GOOD = ("a terrible, boring and bad thing", "a great, moving and wonderful thing")


def with_stems(first: str, second: str) -> Callable[[Row], Row]:
    """How LM-BFF's code joins two sentences: the first without its last character, the second with a small first one.

    >>> with_stems("a", "b")({"a": "It rains.", "b": "It is wet."})["a_stem"]
    'It rains'
    """

    def prepared(row: Row) -> Row:
        if not all(isinstance(row.get(name), str) for name in (first, second)):
            return row
        one, two = row[first], row[second]
        return row | {f"{first}_stem": one[:-1], f"{second}_lower": two[:1].lower() + two[1:]}

    return prepared


def _one_sentence(column: str, end: str, words: tuple[str, ...]) -> Mapping[ModelKind, Form]:
    """A sentence, and a word that ends what is said of it."""
    return {
        "causal": Form(f"{{{column}}} {end}", column, words),
        "masked": Form(f"{{{column}}} {end} {{mask}}.", column, words),
        "classifier": Form(f"{{{column}}}", column),
    }


def _pair(
    asked: str, masked: str, body: tuple[str, str], plain: str, words: tuple[str, ...]
) -> Mapping[ModelKind, Form]:
    """Two sentences: a question about them, or a word between them."""
    return {
        "causal": Form(asked, body[0], tuple(word.strip() for word in words)),
        "masked": Form(masked, body[1], words),
        "classifier": Form(plain, body[0]),
    }


def _inference(hub: tuple[str, str | None], max_tokens: int, evaluated: str) -> Benchmark:
    """Three labels, in the hub's numbers; MNLI's and SNLI's own files spell them."""
    return Benchmark(
        hub=hub,
        labels=(("0", "entailment"), ("1", "neutral"), ("2", "contradiction")),
        label_columns=(("gold_label", 0), ("label", 0)),
        forms=_pair(
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
            "{premise_stem}? {mask}, {hypothesis_lower}",
            ("premise", "premise_stem"),
            "{premise}\n{hypothesis}",
            _WORDS["follows"],
        ),
        aliases=(("premise", "sentence1"), ("hypothesis", "sentence2")),
        max_tokens=max_tokens,
        descriptions=(
            "a claim that follows from the text: yes, true",
            "a claim about which the text says nothing: maybe, unknown",
            "a claim that the text contradicts: no, false",
        ),
        prepared=with_stems("premise", "hypothesis"),
        evaluated=evaluated,
    )


MNLI = _inference(("nyu-mll/glue", "mnli"), 256, "validation_matched")
SNLI = _inference(("stanfordnlp/snli", None), 256, "test")

QNLI = Benchmark(
    hub=("nyu-mll/glue", "qnli"),
    labels=(("0", "entailment"), ("1", "not_entailment")),
    forms=_pair(
        '{sentence}\nDoes this answer the question "{question}"? Yes or No?\n',
        "{question_stem}? {mask}, {sentence_lower}",
        ("sentence", "sentence_lower"),
        "{question}\n{sentence}",
        (" Yes", " No"),
    ),
    max_tokens=128,
    descriptions=("a sentence that answers the question", "a sentence that does not answer the question"),
    prepared=with_stems("question", "sentence"),
)

QQP = Benchmark(
    hub=("nyu-mll/glue", "qqp"),
    labels=(("0", "not_duplicate"), ("1", "duplicate")),
    label_columns=(("is_duplicate", 0), ("label", 0)),
    forms=_pair(
        "{question1}\n{question2}\nDo these two questions mean the same? Yes or No?\n",
        "{question1}{mask}, {question2_lower}",
        ("question1", "question1"),
        "{question1}\n{question2}",
        _WORDS["yes"],
    ),
    max_tokens=128,
    descriptions=("two different questions", "the same question twice"),
    prepared=with_stems("question1", "question2"),
)

MRPC = Benchmark(
    hub=("nyu-mll/glue", "mrpc"),
    labels=(("0", "not_equivalent"), ("1", "equivalent")),
    label_columns=(("Quality", 0), ("label", 0)),
    forms=_pair(
        "{sentence1}\n{sentence2}\nDo these two sentences mean the same? Yes or No?\n",
        "{sentence1}{mask}, {sentence2_lower}",
        ("sentence1", "sentence1"),
        "{sentence1}\n{sentence2}",
        _WORDS["yes"],
    ),
    aliases=(("sentence1", "#1 String"), ("sentence2", "#2 String")),
    max_tokens=128,
    descriptions=("two sentences that differ in meaning", "two sentences that mean the same"),
    prepared=with_stems("sentence1", "sentence2"),
)

COLA = Benchmark(
    hub=("nyu-mll/glue", "cola"),
    labels=(("0", "unacceptable"), ("1", "acceptable")),
    forms=_one_sentence("sentence", "This is", _WORDS["correct"]),
    headers=(("source", "label", "mark", "sentence"),),
    max_tokens=64,
    descriptions=("a sentence that is not grammatical", "a grammatical sentence"),
)


def _rated(hub: tuple[str, str | None] | None, names: Sequence[str] = ("negative", "positive")) -> Benchmark:
    return Benchmark(
        hub=hub,
        labels=tuple((str(number), name) for number, name in enumerate(names)),
        forms=_one_sentence("text", "It was", _WORDS["terrible" if len(names) == 2 else "five"]),
        aliases=(("text", "sentence"),),
        headers=_CSV,
        max_tokens=128,
        descriptions=_BAD_GOOD if len(names) == 2 else tuple(f"a {name} review" for name in names),
        evaluated="test",
    )


MR = _rated(("cornell-movie-review-data/rotten_tomatoes", None))
CR = _rated(("SetFit/CR", None))
MPQA = _rated(None)
SST5 = _rated(("SetFit/sst5", None), ("very negative", "negative", "neutral", "positive", "very positive"))

SUBJ = Benchmark(
    hub=("SetFit/subj", None),
    labels=(("0", "subjective"), ("1", "objective")),
    label_columns=(("label_text", 0), ("label", 0)),  # the hub's numbers are not those of the csv
    forms=_one_sentence("text", "This is", _WORDS["subjective"]),
    headers=_CSV,
    max_tokens=128,
    descriptions=("an opinion on a film", "what happens in a film"),
    evaluated="test",
)

_TREC_HUB = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
"""The hub's numbers of TREC's classes, which are not those of LM-BFF's csv."""


def _coarse(row: Row) -> Row:
    """The hub's coarse class by its name."""
    number = row.get("coarse_label", "")
    return row | {"label": _TREC_HUB[int(number)]} if number.isdigit() and int(number) < len(_TREC_HUB) else row


TREC = Benchmark(
    hub=("CogComp/trec", None),
    labels=(("0", "DESC"), ("1", "ENTY"), ("2", "ABBR"), ("3", "HUM"), ("4", "LOC"), ("5", "NUM")),
    forms={
        "causal": Form(
            "{text}\nType:", "text", (" Description", " Entity", " Expression", " Human", " Location", " Number")
        ),
        "masked": Form(
            "{mask}: {text}", "text", (" Description", " Entity", " Expression", " Human", " Location", " Number")
        ),
        "classifier": Form("{text}", "text"),
    },
    headers=_CSV,
    max_tokens=128,
    descriptions=(
        "a question for a description or a reason", "a question for a thing", "a question what letters stand for",
        "a question who", "a question where", "a question how many or when",
    ),
    prepared=_coarse,
    evaluated="test",
)  # fmt: skip

SENTENCES = {
    "mnli": MNLI, "snli": SNLI, "qnli": QNLI, "qqp": QQP, "mrpc": MRPC, "cola": COLA,
    "trec": TREC, "mr": MR, "sst5": SST5, "subj": SUBJ, "cr": CR, "mpqa": MPQA,
}  # fmt: skip
