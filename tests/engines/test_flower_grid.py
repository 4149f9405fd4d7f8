"""Runs over nodes end with the digest of one process, whatever befalls messages, nodes and server on the way."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import small_federation
from fake_grid import LOSE, FakeGrid
from grid_runs import in_one_process, nodes_of, on_grid, resumed
from tiny_runs import StopAfter

from seedtune import presets, run_store
from seedtune.assembly import assemble
from seedtune.engines import node
from seedtune.errors import EngineError
from seedtune.recipe_text import merged

SERVING = ((0, 2), (1,), (3,))
METHODS = [method for method in presets.names("methods") if method != "fedspzo"]
SAME = ("state_digest", "bytes_up", "bytes_down", "forwards", "loss", "rounds")


def small(method="fedmezo", **over):
    """A method, three rounds of at most three local steps."""
    values = presets.read("methods", method)
    steps = min(3, values["federation"].get("local_steps", 2))
    short = {"federation": {"num_rounds": 3, "local_steps": steps}, "local": {"learning_rate": 1e-3}}
    return small_federation.recipe(**merged(merged(values, short), over))


def digests(folder):
    return [record.digest for record in run_store.trajectory_of(folder).records]


@pytest.fixture
def runs(small_runs, tmp_path):
    """Runs a recipe on nodes and in one process, and says how both ended; `tell` prepares the nodes."""

    def both(recipe, tell=lambda grid: None, serving=SERVING, **waiting):
        grid, said = FakeGrid(nodes_of(tmp_path, serving)), []
        tell(grid)
        summary = on_grid(recipe, tmp_path / "grid", grid, said=said, **waiting)
        twin = in_one_process(recipe, tmp_path / "twin")
        assert digests(tmp_path / "grid") == digests(tmp_path / "twin") or summary["failed_replies"]
        return summary, twin, said

    return both


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_with_the_digest_of_one_process(method, runs):
    summary, twin, said = runs(small(method))
    assert {name: summary[name] for name in SAME} == {name: twin[name] for name in SAME}
    assert (summary["engine"], summary["nodes"], summary["nodes_at_the_end"]) == ("flower", 3, 3)
    assert set(summary["node_digests"].values()) == {twin["state_digest"]} and twin["engine"] == "in-process"
    assert "site-1 takes part with clients 0, 2 (seedtune" in " ".join(said)


def test_what_a_node_says_of_its_software_cannot_imitate_the_servers_lines(runs, monkeypatch):
    monkeypatch.setattr(node, "software", lambda: "\x1b[2J\nround 9, accuracy 100 %\n" + "x" * 10**6)
    _, _, said = runs(small(METHODS[0]))
    assert all(line.isprintable() and len(line) < 600 for line in said)
    assert any("(\\x1b[2J\\nround 9" in line and "characters, some left out]" in line for line in said)


@pytest.mark.parametrize("rate", [1e-3, "auto"])
def test_a_split_model_and_a_fitted_head_too(tiny_recipe, tmp_path, rate):
    few = {"federation": {"local_steps": 2}, "local": {"learning_rate": rate}}
    recipe = tiny_recipe(**merged(presets.read("methods", "fedspzo"), few))
    grid = FakeGrid(nodes_of(tmp_path, SERVING, assemble))
    summary, twin = on_grid(recipe, tmp_path / "grid", grid), in_one_process(recipe, tmp_path / "twin")
    assert {name: summary[name] for name in SAME} == {name: twin[name] for name in SAME}


@pytest.mark.parametrize("method", ["fedmezo", "decomfl", "fedavg"])
def test_clients_that_were_not_asked_for_rounds_are_told_them(method, runs):
    recipe = small(method, federation={"num_rounds": 8, "cohort_size": 2, "dropout_rate": 0.2})
    summary, twin, _ = runs(recipe)
    assert {name: summary[name] for name in SAME} == {name: twin[name] for name in SAME}


def test_rounds_that_were_taken_back_are_taken_back_on_nodes(runs):
    settings = {"local": {"learning_rate": 0.08, "warmup_rounds": 14, "num_directions": 2},
                "federation": {"num_rounds": 24, "batch_size": 12, "cohort_size": 3, "dropout_rate": 0.08},
                "run": {"on_surge": "backoff", "eval_every": 4}}  # fmt: skip
    summary, twin, _ = runs(small_federation.recipe(**settings))
    assert summary["surges"] and {name: summary[name] for name in SAME} == {name: twin[name] for name in SAME}


@pytest.mark.parametrize("method", ["fedmezo", "decomfl", "fedavg"])
def test_what_is_lost_comes_twice_or_comes_late_counts_once(method, runs):
    def tell(grid):
        grid.nodes[1].faults = [0.0, LOSE, 0.0, 40.0]
        grid.nodes[2].faults = [5, "twice", 3, 8, 5]
        grid.nodes[3].faults = [0.0, "twice", grid.nodes[3].restart, 50.0]

    summary, twin, _ = runs(small(method), tell)
    assert summary["state_digest"] == twin["state_digest"] and summary["failed_replies"] == 0
    assert summary["bytes_up"] == twin["bytes_up"] and summary["bytes_down"] > twin["bytes_down"]
    assert summary["nodes_at_the_end"] == 3


def test_a_node_killed_in_mid_round_goes_on_from_its_own_disk(runs, tmp_path):
    def tell(grid):
        node = grid.nodes[1]

        def killed():
            node.answers({"run": "", "clients": [0], "messages": [b""]})  # it had begun
            node.restart()

        node.faults = [0.0, 0.0, killed, 8]

    recipe = small(federation={"num_rounds": 5})
    summary, twin, _ = runs(recipe, tell)
    assert summary["state_digest"] == twin["state_digest"] and summary["failed_replies"] == 0


def test_a_node_that_comes_late_is_told_the_rounds_before(small_runs, tmp_path):
    recipe = small(federation={"num_rounds": 6, "min_replies": 3})
    nodes = nodes_of(tmp_path, SERVING)
    nodes[3].is_online = False
    grid, said = FakeGrid(nodes), []

    def listen(num_rounds, result, evaluation):
        if num_rounds == 3:
            nodes[3].is_online, grid.now = True, grid.now + 2

    summary = on_grid(recipe, tmp_path / "grid", grid, listen, said)
    rows = run_store.metrics_of(tmp_path / "grid")[1:]
    assert [row["replied"] for row in rows] == [3, 3, 3, 4, 4, 4]
    assert rows[0]["failed"] == {"3": "EngineError: no node that serves client 3 can be reached"}
    assert set(summary["node_digests"].values()) == {summary["state_digest"]} and summary["nodes_at_the_end"] == 3
    assert any("site-3 takes part with clients 3" in note for note in said)


def test_a_round_waits_until_enough_can_be_reached(small_runs, tmp_path):
    recipe = small(federation={"min_replies": 4})
    nodes = nodes_of(tmp_path, SERVING)
    nodes[2].is_online = False
    grid, said = FakeGrid(nodes), []

    def come(now):
        nodes[2].is_online = now > 200

    grid.on_sleep = come
    summary = on_grid(recipe, tmp_path / "grid", grid, said=said)
    assert summary["state_digest"] == in_one_process(recipe, tmp_path / "twin")["state_digest"]
    assert "round 0 waits for nodes: 3 of 4 clients can be reached, 4 needed" in said


def test_who_misses_the_deadline_is_left_out_and_named(small_runs, tmp_path):
    recipe = small(federation={"deadline_seconds": 30.0, "min_replies": 2})
    nodes = nodes_of(tmp_path, SERVING)
    nodes[2].faults = [0.0, 100.0]
    summary = on_grid(recipe, tmp_path / "grid", FakeGrid(nodes), resend=1000.0)
    rows = run_store.metrics_of(tmp_path / "grid")[1:]
    assert rows[0]["failed"] == {"1": "EngineError: site-2 has not answered in 30 s"}
    assert [row["replied"] for row in rows] == [3, 4, 4]
    assert set(summary["node_digests"].values()) == {summary["state_digest"]}


def test_the_deadline_is_put_off_until_enough_have_answered(small_runs, tmp_path):
    recipe = small(federation={"deadline_seconds": 30.0, "min_replies": 4})
    nodes = nodes_of(tmp_path, SERVING)
    nodes[2].faults = [0.0, 100.0]
    summary = on_grid(recipe, tmp_path / "grid", FakeGrid(nodes))
    assert summary["failed_replies"] == 0
    assert summary["state_digest"] == in_one_process(recipe, tmp_path / "twin")["state_digest"]


@pytest.mark.parametrize("method", ["fedmezo", "decomfl", "fedavg"])
def test_a_server_that_was_killed_goes_on_to_the_same_digest(method, small_runs, tmp_path):
    recipe, nodes = small(method, federation={"num_rounds": 6}), nodes_of(tmp_path, SERVING)
    with pytest.raises(KeyboardInterrupt):
        on_grid(recipe, tmp_path / "grid", FakeGrid(nodes), StopAfter(2))
    nodes[2].restart()
    shutil.rmtree(tmp_path / "node3")  # a node that has lost everything
    nodes[3].restart()
    summary, twin = resumed(tmp_path / "grid", FakeGrid(nodes)), in_one_process(recipe, tmp_path / "twin")
    assert summary["state_digest"] == twin["state_digest"] and summary["nodes_at_the_end"] == 3


@pytest.mark.parametrize("stopped", [1, 2, 4])
def test_nodes_that_kept_their_state_are_told_no_more_than_in_an_uninterrupted_run(stopped, small_runs, tmp_path):
    recipe, nodes = small("decomfl", federation={"num_rounds": 6}), nodes_of(tmp_path, SERVING)
    with pytest.raises(KeyboardInterrupt):
        on_grid(recipe, tmp_path / "grid", FakeGrid(nodes), StopAfter(stopped))
    summary, twin = resumed(tmp_path / "grid", FakeGrid(nodes)), in_one_process(recipe, tmp_path / "twin")
    assert {name: summary[name] for name in SAME} == {name: twin[name] for name in SAME}


def test_a_node_that_loses_its_state_is_greeted_again_and_told_everything(small_runs, tmp_path):
    recipe, nodes = small(federation={"num_rounds": 6}), nodes_of(tmp_path, SERVING)

    def lost():
        shutil.rmtree(tmp_path / "node2")
        nodes[2].restart()

    nodes[2].faults = [0.0, 0.0, lost]
    said = []
    summary = on_grid(recipe, tmp_path / "grid", FakeGrid(nodes), said=said)
    rows = run_store.metrics_of(tmp_path / "grid")[1:]
    assert "unknown run: this node has had no hello" in rows[1]["failed"]["1"] and summary["failed_replies"] == 1
    assert "site-2 has lost its state and is greeted again" in said
    assert [row["replied"] for row in rows] == [4, 3, 4, 4, 4, 4]
    assert set(summary["node_digests"].values()) == {summary["state_digest"]}


def differing(recipe, machine=None, initial=None, **changed):
    made = small_federation.without_a_model(recipe, machine, initial, **changed)
    header = replace(made.header, base_digest="00" * 16, noise_version=7)
    return small_federation.without_a_model(recipe, site=replace(made.site, header=header))


def test_a_node_with_another_base_is_refused_with_both_values(small_runs, tmp_path):
    nodes = nodes_of(tmp_path, SERVING)
    nodes[2] = nodes_of(tmp_path, SERVING, differing)[2]
    said = []
    summary = on_grid(small(), tmp_path / "grid", FakeGrid(nodes), said=said)
    ours = small_federation.site(small()).header.base_digest
    reason = f"its noise version is '7', the run's is '1'; its base digest is '{'00' * 16}', the run's is '{ours}'"
    assert summary["nodes_refused"] == {"site-2": reason} and summary["nodes"] == 2
    assert said.count(f"site-2 cannot take part: {reason}") == 1


def test_of_two_nodes_that_claim_a_client_the_second_is_refused(small_runs, tmp_path):
    nodes = nodes_of(tmp_path, ((0, 1), (1, 2, 3)))
    summary = on_grid(small(), tmp_path / "grid", FakeGrid(nodes))
    assert summary["nodes_refused"] == {"site-2": "it claims client 1, whom site-1 serves already"}


def test_a_node_that_comes_back_under_another_number_takes_over(small_runs, tmp_path):
    recipe = small(federation={"num_rounds": 5, "min_replies": 4})
    nodes = nodes_of(tmp_path, SERVING)
    grid = FakeGrid(nodes)

    def listen(num_rounds, result, evaluation):
        if num_rounds == 2:
            nodes[2].is_online, nodes[9], grid.now = False, replace(nodes[2]), grid.now + 2

    summary = on_grid(recipe, tmp_path / "grid", grid, listen)
    assert summary["state_digest"] == in_one_process(recipe, tmp_path / "twin")["state_digest"]


def test_a_client_that_the_run_does_not_have_is_refused(small_runs, tmp_path):
    nodes = nodes_of(tmp_path, ((0, 1, 2, 3), (4,)))
    summary = on_grid(small(), tmp_path / "grid", FakeGrid(nodes))
    assert summary["nodes_refused"] == {"site-2": "this node is to serve client 4: the run has clients 0 to 3"}


def test_where_no_more_nodes_come_too_few_are_an_error(small_runs, tmp_path):
    recipe = small(federation={"min_replies": 4})
    nodes = nodes_of(tmp_path, ((0, 1), (1, 2, 3)))
    with pytest.raises(EngineError, match="round 0: 2 clients can be reached, 4 are needed: it claims client 1"):
        on_grid(recipe, tmp_path / "grid", FakeGrid(nodes), num_nodes=2)


def test_flowers_other_errors_are_the_clients_answers(small_runs, tmp_path):
    nodes = nodes_of(tmp_path, SERVING)
    nodes[2].faults = [0.0, 2]
    on_grid(small(), tmp_path / "grid", FakeGrid(nodes))
    row = run_store.metrics_of(tmp_path / "grid")[1]
    assert row["failed"] == {"1": "EngineError: Flower's error 2: as told"}


def test_an_error_of_a_client_is_of_its_own_class(small_runs, tmp_path):
    made = partial(small_federation.without_a_model)

    def ill(recipe, machine=None, initial=None, **changed):
        at = made(recipe)
        return small_federation.without_a_model(recipe, site=replace(at.site, batch=None))

    nodes = nodes_of(tmp_path, SERVING)
    nodes[2] = nodes_of(tmp_path, SERVING, ill)[2]
    on_grid(small(), tmp_path / "grid", FakeGrid(nodes))
    row = run_store.metrics_of(tmp_path / "grid")[1]
    assert row["failed"]["1"].startswith("EngineError: TypeError") or "TypeError" in row["failed"]["1"]
