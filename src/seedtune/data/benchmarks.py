"""The tasks that zeroth-order methods are measured on, as data: prompts, answer words and the columns of their files.

Prompts are MeZO's published templates (arXiv 2305.17333); those marked "ours" are not in the paper. Those for masked
models are as its code fills them, which is LM-BFF's (arXiv 2012.15723): a first sentence loses its last character,
where a full stop stands, and a second one begins in lower case. Reading the files is in `labelled`.
"""

from .benchmark import Benchmark, Form
from .files import Row
from .sentences import SENTENCES, with_stems
from .superglue import QUESTIONS


def _asked(row: Row) -> Row:
    """BoolQ's question as a question: first letter upper-cased, "?" at its end."""
    question = row.get("question", "")
    return row | {"question": question[:1].upper() + question[1:].removesuffix("?") + "?"}


def _titled(row: Row) -> Row:
    """AG News' title and description as one text, as the hub has it."""
    names = {name.lower(): name for name in row}
    if "text" in row or not {"title", "description"} <= names.keys():
        return row
    return row | {"text": f"{row[names['title']]} {row[names['description']]}"}


_FALSE_TRUE = (("0", "false", "f", "no"), ("1", "true", "t", "yes"))
_FOLLOWS = ("a claim that follows from the text: yes, true", "a claim that does not follow from the text: no, false")
_TOPICS = (" world", " sports", " business", " technology")

SST2 = Benchmark(
    hub=("nyu-mll/glue", "sst2"),
    labels=(("0", "negative"), ("1", "positive")),
    forms={
        "causal": Form("{sentence} It was", "sentence", (" terrible", " great")),
        "masked": Form("{sentence} It was {mask}.", "sentence", (" terrible", " great")),
        "classifier": Form("{sentence}", "sentence"),
    },
    aliases=(("sentence", "text"),),
    max_tokens=64,
    descriptions=("a terrible, boring and bad movie", "a great, moving and wonderful movie"),
)

RTE = Benchmark(
    hub=("nyu-mll/glue", "rte"),
    labels=(("0", "entailment"), ("1", "not_entailment")),
    forms={
        "causal": Form('{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n', "premise", ("Yes", "No")),
        "masked": Form("{premise_stem}? {mask}, {hypothesis_lower}", "premise_stem", (" Yes", " No")),
        "classifier": Form("{premise}\n{hypothesis}", "premise"),
    },
    aliases=(("premise", "sentence1"), ("hypothesis", "sentence2")),
    max_tokens=256,
    descriptions=_FOLLOWS,
    prepared=with_stems("premise", "hypothesis"),
)

CB = Benchmark(
    hub=("aps/super_glue", "cb"),
    labels=(("0", "entailment"), ("1", "contradiction"), ("2", "neutral")),
    forms={
        "causal": Form(
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
            "premise",
            ("Yes", "No", "Maybe"),
        ),
        "masked": Form(  # ours, after RTE
            "{premise_stem}? {mask}, {hypothesis_lower}", "premise_stem", (" Yes", " No", " Maybe")
        ),
        "classifier": Form("{premise}\n{hypothesis}", "premise"),
    },
    max_tokens=256,
    descriptions=(*_FOLLOWS, "a claim about which the text says nothing: maybe, unknown"),
    prepared=with_stems("premise", "hypothesis"),
)

BOOLQ = Benchmark(
    hub=("aps/super_glue", "boolq"),
    labels=_FALSE_TRUE,
    label_columns=(("label", 0), ("answer", 0)),
    forms={
        "causal": Form("{passage} {question}\n", "passage", ("No", "Yes")),
        "classifier": Form("{passage}\n{question}", "passage"),
    },
    max_tokens=256,
    descriptions=("a question whose answer is no", "a question whose answer is yes"),
    prepared=_asked,
)

WIC = Benchmark(
    hub=("aps/super_glue", "wic"),
    labels=_FALSE_TRUE,
    forms={
        "causal": Form(
            'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
            "sentence1",
            ("No", "Yes"),
        ),
        "classifier": Form("{word}\n{sentence1}\n{sentence2}", "sentence1"),
    },
    max_tokens=128,
    descriptions=("a word with two different meanings", "a word with the same meaning twice"),
)

AG_NEWS = Benchmark(
    hub=("fancyzhx/ag_news", None),
    labels=(("0", "World"), ("1", "Sports"), ("2", "Business"), ("3", "Sci/Tech")),
    label_columns=(("label", 0), ("class", 1), ("Class Index", 1)),
    forms={  # ours
        "causal": Form("{text}\nThis news is about", "text", _TOPICS),
        "masked": Form("{text}\nThis news is about {mask}.", "text", _TOPICS),
        "classifier": Form("{text}", "text"),
    },
    max_tokens=128,
    descriptions=(
        "world news: politics, governments, wars and elections",
        "sports: games, teams, players, matches and championships",
        "business: companies, markets, stocks, oil prices and the economy",
        "science and technology: computers, software, the internet, space and research",
    ),
    headers=(("text", "label"), ("class", "title", "description")),
    prepared=_titled,
    evaluated="test",
)

SQUAD = Benchmark(
    hub=("rajpurkar/squad", None),
    forms={"causal": Form("Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:", "context")},
    max_tokens=384,
    group="title",
)

BENCHMARKS: dict[str, Benchmark] = {
    "sst2": SST2, "rte": RTE, "cb": CB, "boolq": BOOLQ, "wic": WIC, "ag_news": AG_NEWS, "squad": SQUAD,
    **QUESTIONS, **SENTENCES,
}  # fmt: skip
