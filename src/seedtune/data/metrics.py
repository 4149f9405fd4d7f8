"""How well a written answer matches the accepted ones: exact match and token F1, as SQuAD's official script has it.

Normalisation (Rajpurkar et al. 2016, evaluate-v1.1.py): lower case, no ASCII punctuation, no articles, single spaces.
Pure functions of texts; generating the answer is not done here.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """The answer as it is compared.

    >>> normalised("The  Eiffel-Tower, a tower.")
    'eiffeltower tower'
    """
    without_articles = re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION))
    return " ".join(without_articles.split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if the normalised answer equals any normalised reference, else 0.0."""
    return float(normalised(answer) in {normalised(reference) for reference in references})


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of words shared with a reference, in [0, 1].

    >>> token_f1("in Paris, France", ["Paris", "the city of Paris"])
    0.5
    """
    return max((_f1(normalised(answer).split(), normalised(r).split()) for r in references), default=0.0)


def _f1(answer: list[str], reference: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(reference)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(reference)
    return 2 * precision * recall / (precision + recall)
