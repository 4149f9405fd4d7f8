"""SuperGLUE's questions and DROP, as data: their nested files made flat, and prompts of MeZO's published templates.

A row of SuperGLUE's own files may hold a passage with many questions; the hub has a row a question. Both are read.
COPA and ReCoRD have choices of each row's own. MeZO trains these two on the right one as a text; here all tasks with
choices are trained by cross-entropy over them, and all are judged by length-normalised log-likelihood as MeZO does.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import DataError
from .benchmark import Benchmark, Form
from .files import Row, text_of

_NO_YES = (("0", "false", "f", "no"), ("1", "true", "t", "yes"))
_CONJUNCTIONS = {"effect": " so", "cause": " because"}


def _linked(row: Row) -> Row:
    """COPA's premise without its full stop, and "so" or "because" after it."""
    question = row.get("question", "")
    if question not in _CONJUNCTIONS:
        raise DataError(f"COPA asks for a cause or an effect, but a row has the question {question!r}: mend it")
    return row | {"linked": str(row.get("premise", "")).removesuffix(".") + _CONJUNCTIONS[question]}


def _alternatives(row: Row) -> tuple[str, ...]:
    """COPA's two choices with a small first letter, "I" apart."""
    return tuple(" " + _uncapitalized(str(row.get(name, ""))) for name in ("choice1", "choice2"))


def _uncapitalized(sentence: str) -> str:
    first, space, rest = sentence.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def _copa_label(row: Row) -> tuple[int, ...]:
    return (int(row["label"]),) if row.get("label") in ("0", "1") else ()


def _record_rows(row: Row) -> list[Row]:
    """A row a query of ReCoRD's own layout, whose entities are places in the passage, the last letter included."""
    passage = row.get("passage")
    if not isinstance(passage, dict):
        return [row]
    text = passage["text"]
    entities = [text[each["start"] : each["end"] + 1] for each in passage["entities"]]
    return [
        {
            "passage": text,
            "query": query["query"],
            "entities": entities,
            "answers": [answer["text"] for answer in query.get("answers", ())],
        }
        for query in row["qas"]
    ]


def _bulleted(row: Row) -> Row:
    """ReCoRD's passage with its highlights as a list, which the query continues."""
    return row | {"bulleted": str(row.get("passage", "")).replace("@highlight\n", "- ")}


def _entities(row: Row) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(text_of, row.get("entities") or ())))


def _filled_queries(row: Row) -> tuple[str, ...]:
    return tuple(" " + str(row.get("query", "")).replace("@placeholder", entity) for entity in _entities(row))


def _record_answers(row: Row) -> tuple[int, ...]:
    answers = {text_of(answer) for answer in row.get("answers") or ()}
    return tuple(i for i, entity in enumerate(_entities(row)) if entity in answers)


def _multirc_rows(row: Row) -> list[Row]:
    """A row an answer of MultiRC's own layout."""
    passage = row.get("passage")
    if not isinstance(passage, dict):
        return [row]
    return [
        {
            "paragraph": passage["text"],
            "question": question["question"],
            "answer": answer["text"],
            "label": answer.get("label", -1),
        }
        for question in passage["questions"]
        for answer in question["answers"]
    ]


def _flat_target(row: Row) -> Row:
    """WSC's two spans as columns, the pronoun in lower case."""
    target = row.get("target")
    row = row | {name: text_of(value) for name, value in target.items()} if isinstance(target, dict) else row
    return row | {"pronoun": row["span2_text"].lower()} if "span2_text" in row else row


def _drop_rows(row: Row) -> list[Row]:
    """A row a question of DROP's own layout, with all annotators' answers."""
    if "qa_pairs" not in row:
        spans = row.get("answers_spans")
        return [row | {"answers": list(spans["spans"])}] if isinstance(spans, dict) else [row]
    return [
        {"passage": row["passage"], "question": pair["question"], "answers": [*_drop_answers(pair)]}
        for pair in row["qa_pairs"]
    ]


def _drop_answers(pair: Mapping[str, Any]) -> Iterator[str]:
    """Each number, date and span that an annotator gave; several spans of one answer count as answers of their own."""
    for answer in (pair["answer"], *pair.get("validated_answers", ())):
        if answer.get("number") not in (None, ""):
            yield text_of(answer["number"])
        elif answer.get("spans"):
            yield from map(text_of, answer["spans"])
        elif date := " ".join(
            filter(None, ((answer.get("date") or {}).get(part) for part in ("day", "month", "year")))
        ):
            yield date


COPA = Benchmark(
    hub=("aps/super_glue", "copa"),
    forms={"causal": Form("{linked}", "linked")},
    max_tokens=64,
    prepared=_linked,
    choices=_alternatives,
    right=_copa_label,
)

RECORD = Benchmark(
    hub=("aps/super_glue", "record"),
    forms={"causal": Form("{bulleted}\n-", "bulleted")},
    max_tokens=512,
    prepared=_bulleted,
    expanded=_record_rows,
    choices=_filled_queries,
    right=_record_answers,
)

MULTIRC = Benchmark(
    hub=("aps/super_glue", "multirc"),
    labels=_NO_YES,
    forms={
        "causal": Form(
            '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
            "paragraph",
            ("No", "Yes"),
        ),
        "classifier": Form("{paragraph}\n{question}\n{answer}", "paragraph"),
    },
    max_tokens=384,
    expanded=_multirc_rows,
    descriptions=("a wrong answer to a question", "a correct answer to a question"),
)

WSC = Benchmark(
    hub=("aps/super_glue", "wsc.fixed"),
    labels=_NO_YES,
    forms={
        "causal": Form(
            '{text}\nIn the previous sentence, does the pronoun "{pronoun}" refer to {span1_text}? Yes or No?\n',
            "text",
            ("No", "Yes"),
        ),
        "classifier": Form("{text}\n{pronoun}\n{span1_text}", "text"),
    },
    max_tokens=128,
    prepared=_flat_target,
    descriptions=("a pronoun that refers to somebody else", "a pronoun that refers to this one"),
)

DROP = Benchmark(
    hub=("ucinlp/drop", None),
    forms={"causal": Form("Passage: {passage}\nQuestion: {question}\nAnswer:", "passage")},
    max_tokens=512,
    expanded=_drop_rows,
)

QUESTIONS = {"copa": COPA, "record": RECORD, "multirc": MULTIRC, "wsc": WSC, "drop": DROP}
