"""Short texts of four kinds, rated by people, for the task `rated-snippets`: sentiment in four domains.

The ratings of Hutto & Gilbert (ICWSM 2014), read out of the source archive of the package vaderSentiment 3.3.2 (MIT),
whose SHA-256 is pinned. Nothing is fetched, unpacked to disk or kept in this project.
"""

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from ..errors import DataError
from ..sections import TaskConfig
from .benchmarks import Form
from .examples import Example, ModelKind, Task
from .prompts import fill
from .splits import split_by_hash

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
FOLDER_VARIABLE = "SEEDTUNE_DATA"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

DOMAINS = {
    "movie reviews": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "news": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
    "product reviews": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "tweets": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
}
"""The file of each domain: lines of id, mean rating from -4 to 4, and text, parted by tabs."""

LEAST_RATING = 1.0
"""Texts whose mean rating lies nearer to 0 are left out: people did not agree that they say anything."""

LABELS = ("negative", "positive")
MAX_TOKENS = 64
_DESCRIPTIONS = ("terrible, bad, awful and disappointing", "great, good, wonderful and lovely")
_WORDS = (" terrible", " great")
FORMS: dict[ModelKind, Form] = {
    "causal": Form("{text} It was", "text", _WORDS),
    "masked": Form("{text} It was {mask}.", "text", _WORDS),
    "classifier": Form("{text}", "text"),
}


def load_snippets(config: TaskConfig, kind: ModelKind) -> Task:
    """The rated snippets in MeZO's form for SST-2 (arXiv 2305.17333); a text's group is its domain.

    `max_train` and `max_eval` keep equally many texts of each domain. Every fifth text, by a hash, is for testing.
    The archive is looked for at `config.path` (the file or its folder), else in the folder that the environment
    variable SEEDTUNE_DATA names, else in share/seedtune of this Python's prefix.

    Raises:
        DataError: the archive is not there, or is another file than the pinned one.
    """
    form = FORMS[kind]
    examples = [
        Example(*fill(form.template, {"text": text}, form.body), form.answers[label] if form.answers else "", label, d)
        for d, label, text in rated_texts(_read_archive(config.path))
    ]
    train, test = split_by_hash(examples)
    return Task(
        config.name,
        "choice",
        form.answers,
        LABELS,
        train,
        test,
        MAX_TOKENS,
        _DESCRIPTIONS,
        ends=False,
        is_balanced=True,
    )


def rated_texts(archive: bytes) -> Iterator[tuple[str, int, str]]:
    """(domain, label, text) of every text in the package's source archive that is rated clearly, by domain."""
    with tarfile.open(fileobj=io.BytesIO(_member(archive, _INNER))) as inner:
        for domain, name in DOMAINS.items():
            file = inner.extractfile(name)
            for line in file.read().decode("utf-8").splitlines() if file else ():
                _, rating, text = line.split("\t")
                if abs(float(rating)) >= LEAST_RATING:
                    yield domain, int(float(rating) > 0), text.strip()


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        file = files.extractfile(name)
        return file.read() if file else b""


def find_archive(path: str | None) -> Path | None:
    """Where the archive lies; None where it does not."""
    files = [place if place.name.endswith(".gz") else place / ARCHIVE for place in _places(path)]
    return next((file for file in files if file.is_file()), None)


def _places(path: str | None) -> list[Path]:
    """The folders (or file) where the archive may lie, the place to put it last."""
    if path:
        return [Path(path)]
    named = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(named)] if named else []), Path(sys.prefix) / "share" / "seedtune"]


def _read_archive(path: str | None) -> bytes:
    """The archive's bytes.

    Raises:
        DataError: it is not there, cannot be read, or is another file than the pinned one.
    """
    file = find_archive(path)
    if file is None:
        raise DataError(_missing(_places(path)))
    try:
        found = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    if sha256(found).hexdigest() != SHA256:
        raise DataError(
            f"{file}: is damaged or another file: its {len(found):,} bytes have SHA-256 {sha256(found).hexdigest()}, "
            f"expected {SHA256}; delete it and get it again with '{_download(file.parent)}'"
        )
    return found


def _missing(places: list[Path]) -> str:
    last = places[-1]
    folder = last.parent if last.name.endswith(".gz") else last
    return (
        f"task 'rated-snippets' needs {ARCHIVE}, which is not at {' nor at '.join(map(str, places))}: get it with "
        f"'{_download(folder)}'; 'seedtune run quickstart' needs no package"
    )


def _download(folder: Path) -> str:
    return f"pip download --no-deps --no-binary=:all: vaderSentiment==3.3.2 --dest {folder}"
