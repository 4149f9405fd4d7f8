"""A node runs the app of its own installation: what else a server may send is refused before anything is written."""

import importlib
import io
import warnings
import zipfile

import pytest

pytest.importorskip("flwr")

from seedtune.errors import EngineError
from seedtune.flower_app import checked


@pytest.fixture(scope="module")
def ours():
    """The app as Flower packs it, which warns of a library's old names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.cli.build import build_fab_from_disk

        return build_fab_from_disk(checked.BUNDLE)


def changed(app, **files):
    """The same archive with files put in place of others, or added."""
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(app)) as before, zipfile.ZipFile(data, "w") as after:
        held = {name: before.read(name) for name in before.namelist()} | files
        for name, content in held.items():
            after.writestr(name, content)
    return data.getvalue()


def test_our_own_app_is_installed_with_what_flower_says(ours):
    seen = []
    install = checked._only_ours(lambda *arguments, **options: seen.append((arguments, options)))
    install(ours, skip_prompt=True)
    assert seen == [((ours,), {"skip_prompt": True})]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"client_app.py": b"import os"}, r"\(client_app.py differ\)"),
        ({"more.py": b""}, r"\(more.py differ\)"),
        ({"seedtune/__init__.py": b"import os"}, r"\(seedtune/__init__.py differ\)"),
        ({"pyproject.toml": b"[project]\nname = 'other'\n"}, r"\(pyproject.toml differ\)"),
        ({"pyproject.toml": b"= ="}, "cannot be read"),
        ({"pyproject.toml": b"\xff"}, "cannot be read"),
        ({"large.py": bytes(2**20)}, "it is too large"),
    ],
)
def test_another_app_is_refused_and_nothing_of_it_installed(ours, files, named):
    install = checked._only_ours(lambda *arguments, **options: pytest.fail("was installed"))
    with pytest.raises(EngineError, match=named):
        install(changed(ours, **files), skip_prompt=True)


def test_what_is_no_app_is_refused(ours):
    for app in (b"", b"nonsense", ours[:-30], changed(ours)[:100]):
        with pytest.raises(EngineError, match="the app that the server sent"):
            checked.check(app)
    twice = io.BytesIO(ours)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("client_app.py", b"import os")
    with pytest.raises(EngineError, match="holds a file twice"):
        checked.check(twice.getvalue())


def test_flowers_client_process_takes_the_check(ours, monkeypatch):
    """The names that are patched are there in this version of Flower, and used."""
    process = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    monkeypatch.setattr(process, "install_from_fab", process.install_from_fab)
    commands = importlib.import_module("flwr.supernode.cli")
    installs = []
    monkeypatch.setattr(commands, "flwr_clientapp", lambda: installs.append(process.install_from_fab))
    checked.main()
    with pytest.raises(EngineError, match="another app"):
        installs[0](changed(ours, **{"client_app.py": b""}), skip_prompt=True)
    assert "install_from_fab" in process.run_clientapp.__code__.co_names
