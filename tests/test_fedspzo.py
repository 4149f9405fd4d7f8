"""The preset fedspzo: what defines it holds in runs, and its page shows its settings."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
from tiny_runs import MACHINE, NOTHING

from seedtune import presets, run_store
from seedtune.config import Recipe
from seedtune.errors import ConfigError
from seedtune.experiment import run
from seedtune.recipe_text import merged

PAGE = Path(__file__).parent.parent / "docs" / "fedspzo.md"


@pytest.fixture
def settings(tiny_model, tiny_table):
    """Makes a recipe of the preset over the tiny model and table."""

    def made(**over) -> Recipe:
        values = tiny_runs.values(tiny_model, tiny_table)
        del values["local"]["perturbation_scale"]
        return tiny_runs.build(merged(merged(values, presets.read("methods", "fedspzo")), over))

    return made


def test_the_second_block_gets_more_directions_and_keys_and_scalars_are_all_that_is_sent():
    recipe = presets.composed("quickstart", "fedspzo")
    assert recipe.is_split and recipe.split.num_suffix_directions > recipe.split.num_prefix_directions
    assert recipe.federation.upload == "scalars" and recipe.federation.local_steps > 1


def test_a_run_of_it_with_clients_that_come_and_go(settings, tmp_path):
    """Whoever was away replays: 4 bytes a scalar, down as up, and 60 or so a round."""
    recipe = settings(federation={"num_rounds": 6, "cohort_size": 2, "local_steps": 2})
    summary = run(recipe, MACHINE, tmp_path / "run", NOTHING)
    records, rows = run_store.trajectory_of(tmp_path / "run").records, run_store.metrics_of(tmp_path / "run")[1:]
    num_scalars = recipe.federation.local_steps * recipe.num_scalars
    assert all(record.scalars.shape == (2, 2, 4) and not record.is_snapshot for record in records)
    assert all(row["bytes_up"] <= 2 * (60 + 4 * num_scalars) for row in rows)
    assert max(row["bytes_down"] for row in rows) > 2 * (60 + 4 * 2 * num_scalars)  # some round held missed ones
    assert summary["failed_replies"] == summary["skipped_steps"] == 0 and np.isfinite(summary["loss"])


def test_it_costs_what_its_page_says(settings, tmp_path):
    """F1 + F2 + P1 (F1 + P2 F2), the blocks' shares by the operations that are counted."""
    recipe = settings(federation={"num_rounds": 1, "local_steps": 1})
    found = run(recipe, MACHINE, tmp_path / "split", NOTHING)
    whole = settings(
        federation={"num_rounds": 1, "local_steps": 1},
        local={"estimator": "two-point", "num_directions": recipe.num_scalars},
    )
    compared = run(whole, MACHINE, tmp_path / "whole", NOTHING)
    assert (found["forwards"], compared["forwards"]) == (4 * (1 + 4), 4 * 2 * 4)
    forward = compared["flops"] / 8
    second = found["flops_suffix"] / (1 + 4)
    assert found["flops"] == pytest.approx(2 * (forward - second) + 5 * second, rel=1e-12)


def test_one_block_alone_is_not_split(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"block 1 has none of the 1 tuned tensors, such as 'model\.norm\.weight'"):
        run(settings(model={"trainable": ["model.norm.weight"]}), MACHINE, tmp_path / "never", NOTHING)
    assert not (tmp_path / "never").exists()


def test_its_page_shows_its_settings():
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert tomllib.loads(block) == presets.read("methods", "fedspzo")
