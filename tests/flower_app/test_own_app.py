"""A node takes the app that it would have sent itself, and no other."""

import io
import zipfile
from types import SimpleNamespace

import pytest

from seedtune.flower_app.own_app import difference, guarded


def zipped(**changed) -> bytes:
    held = {"client_app.py": b"app = 1\n", "server_app.py": b"app = 2\n", "pyproject.toml": b"[project]\n",
            ".info/CONTENT": b"whatever"} | changed  # fmt: skip
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in held.items():
            if content is not None:
                archive.writestr(name, content)
    return made.getvalue()


def twice() -> bytes:
    made = io.BytesIO(zipped())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(made, "a") as archive:
        archive.writestr("client_app.py", b"import os\n")
    return made.getvalue()


def test_the_same_files_are_the_same_app():
    assert difference(zipped(), zipped()) is None
    assert difference(zipped(**{".info/CONTENT": b"another list"}), zipped()) is None


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (zipped(**{"client_app.py": b"import os\n"}), "client_app.py"),
        (zipped(**{"seedtune/__init__.py": b""}), "seedtune/__init__.py"),
        (zipped(**{"sitecustomize.py": b"import os\n"}), "sitecustomize.py"),
        (zipped(**{"server_app.py": None}), "server_app.py"),
        (zipped(**{"client_app.py": b"#" * (2**20 + 1)}), "too large"),
        (b"no zip", "it cannot be read"),
        (b"", "it cannot be read"),
        (zipped()[:-30], "it cannot be read"),
    ],
)
def test_any_other_is_named(content, names):
    assert names in difference(content, zipped())


def test_a_file_that_comes_twice_is_refused():
    assert "comes twice" in difference(twice(), zipped())


class NotRunning(BaseException): ...


def pull(state, get_fab, receive=None, get_run=None):
    """As Flower's: what it fetched, or None where a message is left alone."""
    try:
        return get_fab("hash", 7).content
    except NotRunning:
        return None


def test_only_messages_with_our_own_app_come_through():
    told = []
    at = guarded(pull, zipped(), told.append, NotRunning)
    fetched = SimpleNamespace(content=zipped())
    assert at(None, get_fab=lambda hash_, run: fetched) == zipped() and told == []
    fetched.content = zipped(**{"client_app.py": b"import os\n"})
    assert at(None, get_fab=lambda hash_, run: fetched) is None
    assert len(told) == 1 and told[0].startswith(
        "refused an app that is not this seedtune's own (client_app.py differs;"
    )


def test_flower_is_as_it_is_known():
    """Against the installed Flower: the names that are reached for, and what a server of this version sends."""
    pytest.importorskip("flwr")
    from inspect import signature

    from flwr.supercore.run import RunNotRunningException
    from flwr.supernode import start_client_internal as internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    from seedtune.flower_app import own_app

    assert set(signature(getattr(internal, own_app.PULL)).parameters) >= own_app._KNOWN
    assert issubclass(RunNotRunningException, BaseException) and callable(flower_supernode)
