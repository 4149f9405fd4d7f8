"""The documents keep up with the code: settings are listed, commands exist with the options that are shown."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from seedtune.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands() -> list[str]:
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    return sorted({line.strip() for block in blocks for line in block.splitlines() if line.startswith("seedtune ")})


def test_settings_page_is_what_the_recipe_says() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text() == module.page(), "run: python docs/make_settings.py"


@pytest.mark.parametrize("line", shown_commands())
def test_shown_commands_parse(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app).commands[name]
    if hasattr(command, "commands"):  # a group, such as deploy
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, list(arguments))


def test_relative_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_tests_that_pages_name_exist() -> None:
    named = {
        (path, name)
        for page in PAGES
        for path, names in re.findall(r"`(tests/[\w/]+\.py)((?:::test_\w+)?)`", page.read_text())
        for name in [names.removeprefix("::")]
    }
    assert named
    for path, name in named:
        assert f"def {name}" in (ROOT / path).read_text(), f"{path} has no {name}"
