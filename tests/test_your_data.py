"""The command of docs/your-data.md that needs the archive of rated snippets; `test_docs_commands` runs the others."""

import re
import shlex
from pathlib import Path

import pytest

from seedtune.data import snippets

PAGE = Path(__file__).parents[1] / "docs" / "your-data.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("seedtune ")]


@pytest.mark.skipif(snippets.find_archive(None) is None, reason="the archive of the rated snippets is not here")
def test_the_rated_snippets_are_shown_as_the_page_says(seedtune, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / snippets.ARCHIVE).symlink_to(snippets.find_archive(None))
    (line,) = [line for line in LINES if "rated-snippets" in line]
    assert "15,849" in PAGE.read_text()
    assert seedtune(*shlex.split(line)[1:]).code == 0
