"""The rated snippets, read from a small archive made here; and from the real one where it is there."""

import io
import sys
import tarfile
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest

from seedtune.data import snippets
from seedtune.data.partition import partition
from seedtune.data.tasks import load_task
from seedtune.errors import DataError
from seedtune.sections import PartitionConfig, TaskConfig


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


RATINGS = (2.5, -1.0, 0.95, 1.0, -0.99, -3.25)


def lines(domain: str, num_texts: int) -> bytes:
    rows = [f"{i}\t{RATINGS[i % 6]}\t{domain} text number {i}, “rated”. " for i in range(num_texts)]
    return "\r\n".join(rows).encode()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder with an archive built like the real one, of 60 to 240 texts a domain."""
    files = {name: lines(domain, 60 * (1 + i)) for i, (domain, name) in enumerate(snippets.DOMAINS.items())}
    content = packed({snippets._INNER: packed(files)})
    (tmp_path / snippets.ARCHIVE).write_bytes(content)
    monkeypatch.setattr(snippets, "SHA256", sha256(content).hexdigest())
    monkeypatch.delenv("SEEDTUNE_DATA", raising=False)
    return tmp_path


def load(kind="causal", key=0, **settings):
    return load_task(TaskConfig(name="rated-snippets", **settings), key, kind)


def test_texts_that_are_rated_clearly_are_kept_with_the_sign_as_label(archive):
    task = load(path=str(archive))
    texts = {e.body: e for e in (*task.train, *task.test)}
    assert len(texts) == len(task.train) + len(task.test) == (60 + 120 + 180 + 240) * 4 // 6
    kept = [texts.get(f"tweets text number {i}, “rated”.") for i in range(6)]
    assert [e and e.label for e in kept] == [1, 0, None, 1, None, 0]
    assert [e and e.answer for e in kept] == [" great", " terrible", None, " great", None, " terrible"]
    assert kept[0].prompt == "tweets text number 0, “rated”. It was" and kept[0].group == "tweets"
    assert task.label_names == ("negative", "positive") and task.answers == (" terrible", " great")


@pytest.mark.parametrize(("kind", "tail"), [("masked", " It was {mask}."), ("classifier", "")])
def test_other_kinds_of_models_have_their_form(archive, kind, tail):
    task = load(kind, path=str(archive))
    assert {e.tail for e in task.train} == {tail} and len(task.label_descriptions) == 2
    assert len(task.answers) == {"masked": 2, "classifier": 0}[kind]


def test_limits_keep_equally_many_of_each_domain_and_two_clients_share_one(archive):
    task = load(path=str(archive), max_train=100, max_eval=16)
    assert Counter(e.group for e in task.train) == dict.fromkeys(snippets.DOMAINS, 25)
    assert Counter(e.group for e in task.test) == dict.fromkeys(snippets.DOMAINS, 4)
    clients = partition(task.train, PartitionConfig(kind="natural", num_clients=8), 1)
    assert [{task.train[i].group for i in own} for own in clients] == [
        {domain} for domain in sorted(snippets.DOMAINS) for _ in range(2)
    ]
    assert sorted(np.concatenate(clients).tolist()) == list(range(100))
    assert {len(own) for own in clients} == {12, 13}


def test_the_test_rows_are_the_same_whatever_else_is_asked(archive):
    one, other = load(path=str(archive), max_eval=20), load(path=str(archive), max_eval=20, max_train=40)
    assert one.test == other.test and len(one.test) == 20


def test_the_archive_is_found_by_file_folder_variable_and_prefix(archive, monkeypatch, tmp_path_factory):
    expected = load(path=str(archive))
    assert load(path=str(archive / snippets.ARCHIVE)) == expected
    monkeypatch.setattr(sys, "prefix", str(tmp_path_factory.mktemp("prefix")))
    monkeypatch.setenv("SEEDTUNE_DATA", str(archive))
    assert load() == expected
    monkeypatch.delenv("SEEDTUNE_DATA")
    share = tmp_path_factory.mktemp("other") / "share" / "seedtune"
    share.parent.mkdir()
    share.symlink_to(archive)
    monkeypatch.setattr(sys, "prefix", str(share.parents[1]))
    assert load() == expected


@pytest.mark.parametrize("named", ["", snippets.ARCHIVE])
def test_a_missing_archive_is_said_with_the_command_that_gets_it(tmp_path, named):
    with pytest.raises(DataError) as error:
        load(path=str(tmp_path / named))
    assert str(error.value) == (
        f"task 'rated-snippets' needs vaderSentiment-3.3.2.tar.gz, which is not at {tmp_path / named}: get it with "
        f"'pip download --no-deps --no-binary=:all: vaderSentiment==3.3.2 --dest {tmp_path}'; 'seedtune run "
        f"quickstart' needs no package"
    )


def test_every_place_that_was_looked_at_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("SEEDTUNE_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError) as error:
        load()
    share = tmp_path / "share" / "seedtune"
    assert f"which is not at {tmp_path / 'mine'} nor at {share}: get it with" in str(error.value)
    assert f"--dest {share}'" in str(error.value)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + b"x", lambda b: b""])
def test_a_truncated_or_other_archive_is_refused(archive, damage):
    file = archive / snippets.ARCHIVE
    content = damage(file.read_bytes())
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        load(path=str(archive))
    assert str(error.value) == (
        f"{file}: is damaged or another file: its {len(content):,} bytes have SHA-256 {sha256(content).hexdigest()}, "
        f"expected {snippets.SHA256}; delete it and get it again with 'pip download --no-deps --no-binary=:all: "
        f"vaderSentiment==3.3.2 --dest {archive}'"
    )


def test_the_real_archive_has_the_published_texts():
    if snippets.find_archive(None) is None:
        pytest.skip("the source archive of vaderSentiment 3.3.2 is not here: see snippets.load_snippets")
    task = load()
    every = (*task.train, *task.test)
    assert Counter(e.group for e in every) == {
        "movie reviews": 9173, "tweets": 2667, "product reviews": 2455, "news": 1554,
    }  # fmt: skip
    share = {d: np.mean([e.label for e in every if e.group == d]).round(2) for d in snippets.DOMAINS}
    assert share == {"movie reviews": 0.5, "news": 0.36, "product reviews": 0.62, "tweets": 0.69}
