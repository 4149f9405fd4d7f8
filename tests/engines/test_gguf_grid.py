"""Nodes whose base is one GGUF file: a run over a played grid ends where one process does."""

import pytest
from fake_grid import FakeGrid
from grid_runs import in_one_process, nodes_of, on_grid

from seedtune.assembly import assemble
from seedtune.engines.bench import Benches, Options
from seedtune.engines.node import Node
from seedtune.engines.node_state import NodeState

tiny_gguf = pytest.importorskip("tiny_gguf")
LORA = {"adapter": "lora", "lora_rank": 2, "lora_targets": ("q_proj", "v_proj")}


@pytest.fixture
def base(tmp_path):
    return tiny_gguf.save(tmp_path / "tiny.gguf", tiny_gguf.module(), "Q8_0")


def nodes_with(folder, model):
    """Two nodes; the second has its base where its owner says."""
    nodes = nodes_of(folder, ((0, 2), (1, 3)), assemble)
    options = Options((1, 3), model=str(model), recipe_paths=True)
    nodes[2].make = lambda: Node(NodeState(folder / "node2"), options, Benches())
    return nodes


def test_nodes_with_the_same_file_end_with_the_digest_of_one_process(tiny_recipe, base, tmp_path):
    recipe = tiny_recipe(model={"name": str(base), **LORA})
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "another-name.gguf"
    moved.write_bytes(base.read_bytes())
    grid = FakeGrid(nodes_with(tmp_path, moved))
    summary = on_grid(recipe, tmp_path / "grid", grid)
    assert (summary["failed_replies"], summary["nodes_at_the_end"], summary["model"]) == (0, 2, "tiny.gguf")
    assert summary["state_digest"] == in_one_process(recipe, tmp_path / "whole")["state_digest"]


def test_a_node_with_another_file_is_refused_and_the_others_go_on(tiny_recipe, base, tmp_path):
    recipe = tiny_recipe(model={"name": str(base), **LORA}, federation={"min_replies": 1})
    other = tiny_gguf.save(tmp_path / "other.gguf", tiny_gguf.module(), "F16")
    folder = tiny_gguf.save_folder(tmp_path / "folder", base, tiny_gguf.module())
    for name, model, reason in (
        ("with-file", other, "has sha256"),
        ("with-folder", folder, "its base file is None, the run's"),
    ):
        (tmp_path / name).mkdir()
        summary = on_grid(recipe, tmp_path / name / "run", FakeGrid(nodes_with(tmp_path / name, model)))
        assert reason in summary["nodes_refused"]["site-2"] and summary["nodes_at_the_end"] == 1
