"""The commands of docs/your-data.md, run one after another as a reader runs them, on a tiny model and small tables."""

import re
import shlex
from pathlib import Path

import pytest
from tiny_runs import save_model

from seedtune.data import snippets

PAGE = Path(__file__).parents[1] / "docs" / "your-data.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("seedtune ")]
FEWER = {"run": ("--rounds", "2")}
"""What is added to a shown command so that it takes less time."""


@pytest.mark.skipif(snippets.find_archive(None) is None, reason="the archive of the rated snippets is not here")
def test_the_rated_snippets_are_shown_as_the_page_says(seedtune, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / snippets.ARCHIVE).symlink_to(snippets.find_archive(None))
    (line,) = [line for line in LINES if "rated-snippets" in line]
    assert "15,849" in PAGE.read_text()
    assert seedtune(*shlex.split(line)[1:]).code == 0


def test_the_commands_of_the_page_lead_from_a_table_to_predictions(seedtune, tmp_path):
    save_model(tmp_path / "path" / "to" / "model")
    rows = [f"the {('film', 'book')[i % 3 % 2]} {i} is so so,{('negative', 'positive')[i % 2]}" for i in range(60)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,stars", *rows]))
    (tmp_path / "new.csv").write_text("text\nthe film is fine\nthe book is not\n")
    for line in (line for line in LINES if "rated-snippets" not in line):
        _, name, *arguments = shlex.split(line)
        made = seedtune(name, *arguments, *FEWER.get(name, ()))
        assert (made.code, line) == (0, line), made.err
    for file in ("predicted.csv", "predicted.jsonl"):
        lines = (tmp_path / file).read_text().splitlines()
        assert sum("negative" in each or "positive" in each for each in lines) >= 2
    recipe = (tmp_path / "reviews.toml").read_text()
    assert all(line in recipe for line in ('template = "{text}\\nStars:"', 'label_column = "stars"'))
