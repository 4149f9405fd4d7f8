"""The known tasks, one line each: what is asked, where the data come from, and whether they are here."""

import os
from dataclasses import dataclass
from pathlib import Path

from . import snippets, stdlib
from .benchmark import Benchmark
from .benchmarks import BENCHMARKS

_ASKED = {
    "stdlib-topics": "which package a docstring of Python's library documents",
    "stdlib-text": "write docstrings of Python's library",
    "rated-snippets": "whether a short text praises or not: reviews of films and products, news, tweets",
    "sst2": "whether a sentence about a film is positive",
    "rte": "whether a sentence follows from a text",
    "cb": "whether a claim follows from a text, contradicts it, or neither",
    "boolq": "answer a yes-no question about a passage",
    "wic": "whether a word means the same in two sentences",
    "ag_news": "the topic of a news item",
    "squad": "write the answer to a question about a passage",
    "copa": "which of a row's two sentences is the cause or the effect",
    "record": "which of a row's names fills the gap in a sentence about a news item",
    "multirc": "whether an answer to a question about a passage is correct",
    "wsc": "whether a pronoun refers to a name",
    "drop": "write the answer to a question that needs counting or comparing in a passage",
    "mnli": "whether a sentence follows from a text, contradicts it, or neither",
    "snli": "whether a sentence follows from a caption, contradicts it, or neither",
    "qnli": "whether a sentence answers a question",
    "qqp": "whether two questions ask the same",
    "mrpc": "whether two sentences say the same",
    "cola": "whether a sentence is grammatical",
    "trec": "what kind of answer a question asks for",
    "mr": "whether a film review's sentence is positive",
    "sst5": "how positive a sentence about a film is, in five steps",
    "subj": "whether a sentence on a film is an opinion",
    "cr": "whether a customer's sentence is positive",
    "mpqa": "whether a phrase is positive",
    "instruction": "write a response to an instruction, in Alpaca's form",
    "prompt-completion": "write the completion of a prompt; each file is a client",
    "plain-text": "write on in texts; each file, or each speaker of a play, is a client",
    "custom": "your own table, with a template over its columns",
}


@dataclass(frozen=True)
class Listed:
    """One task: `here` says whether its data need no download.

    classes: number of answers; 0: a text is written, or each row has choices of its own.
    """

    name: str
    asks: str
    classes: int
    source: str
    here: bool


def list_tasks() -> tuple[Listed, ...]:
    """All known tasks. Cost: a few looks at folders; nothing is read or fetched."""
    return tuple(Listed(name, asks, *_source(name)) for name, asks in _ASKED.items())


def _source(name: str) -> tuple[int, str, bool]:
    if name.startswith("stdlib-"):
        return len(stdlib.HELD_BACK) if name == "stdlib-topics" else 0, "this Python's own library", True
    if name == "rated-snippets":
        return len(snippets.LABELS), "source archive of vaderSentiment 3.3.2", snippets.find_archive(None) is not None
    if name in BENCHMARKS:
        return _benchmark_source(BENCHMARKS[name])
    return 0, "task.path", False


def _benchmark_source(benchmark: Benchmark) -> tuple[int, str, bool]:
    if benchmark.hub is None:
        return len(benchmark.labels), "task.path", False
    source = "/".join(part for part in benchmark.hub if part)
    return len(benchmark.labels), f"hub: {source}, or task.path", _is_cached(benchmark.hub[0])


def _is_cached(data_set: str) -> bool:
    """Whether the hub's `datasets` package has the data set in its cache."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    return (cache / data_set.replace("/", "___")).is_dir()
