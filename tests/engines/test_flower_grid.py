from fake_grid import LOSE, FakeGrid
from grid_runs import in_one_process, nodes_of, on_grid


def test_a_run_over_nodes_ends_with_the_digest_of_one_process(tiny_recipe, tmp_path):
    recipe = tiny_recipe()
    grid = FakeGrid(nodes_of(tmp_path, ((0, 2), (1,), (3,))))
    said = []
    summary, twin = on_grid(recipe, tmp_path / "grid", grid, said=said), in_one_process(recipe, tmp_path / "twin")
    for name in ("state_digest", "bytes_up", "bytes_down", "forwards", "loss"):
        assert summary[name] == twin[name]
    assert (summary["engine"], summary["nodes"], summary["nodes_at_the_end"]) == ("flower", 3, 3)
    assert set(summary["node_digests"].values()) == {twin["state_digest"]}
    assert "site-1 takes part with clients 0, 2 (seedtune" in " ".join(said)


def test_faults_of_the_network_change_nothing(tiny_recipe, tmp_path):
    recipe = tiny_recipe()
    nodes = nodes_of(tmp_path, ((0, 2), (1,), (3,)))
    nodes[1].faults = [0.0, LOSE, 0.0, 40.0]
    nodes[2].faults = [5, "twice", 3, 8, 5]
    nodes[3].faults = [0.0, "twice", nodes[3].restart, 50.0]
    grid = FakeGrid(nodes)
    summary, twin = on_grid(recipe, tmp_path / "grid", grid), in_one_process(recipe, tmp_path / "twin")
    assert summary["state_digest"] == twin["state_digest"] and summary["failed_replies"] == 0
    assert summary["nodes_at_the_end"] == 3
