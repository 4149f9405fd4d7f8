"""Secure sums over nodes: the digest of one process, also with faults; what a node that starts again has lost."""

from contextlib import suppress
from dataclasses import replace

import pytest
from fake_grid import LOSE, FakeGrid, FakeNode
from grid_runs import in_one_process, nodes_of, on_grid, resumed
from secure_federation import SHARED, secure
from small_federation import recipe as plain_recipe
from small_federation import without_a_model
from tiny_runs import StopAfter

from seedtune.engines.bench import Benches, Options
from seedtune.engines.node import Node
from seedtune.engines.node_state import FileMemory, NodeState
from seedtune.errors import EngineError
from seedtune.privacy.identities import Credentials, Identity

SERVING = ((0, 2), (1,), (3,))
OF_NODE = {client: clients[0] for clients in SERVING for client in clients}


@pytest.fixture(autouse=True)
def without_models(small_runs):
    """Small federations in place of models, on the server and in one process; nodes have theirs anyway."""


@pytest.fixture(scope="module")
def identities():
    return {clients[0]: Identity.generated() for clients in SERVING}


def settings(**federation):
    return secure({**SHARED, **federation})


def trusted(identities, clients):
    """What a node gets that serves these: an identity, and the roster of all."""
    return Credentials(identities[clients[0]], {client: identities[node].public for client, node in OF_NODE.items()})


def trusted_nodes(folder, identities):
    return {i: node_of(folder, i, clients, trusted(identities, clients)) for i, clients in enumerate(SERVING, 1)}


def node_of(folder, number, clients, credentials):
    given = Options(clients, recipe_paths=True, credentials=credentials)
    make = lambda: Node(NodeState(folder / f"node{number}"), given, Benches(without_a_model))  # noqa: E731
    return FakeNode(make, f"site-{number}")


def test_a_run_over_nodes_ends_with_the_digest_of_one_process(identities, tmp_path):
    chosen = settings()
    nodes = trusted_nodes(tmp_path, identities)
    nodes[1].faults = [0.0, LOSE, 0.0, 40.0]
    nodes[2].faults = [5, "twice", 3, 8, 5]
    summary = on_grid(chosen, tmp_path / "grid", FakeGrid(nodes))
    twin = in_one_process(chosen, tmp_path / "twin")
    for name in ("state_digest", "forwards", "loss", "bytes_up", "failed_replies"):
        assert summary[name] == twin[name]
    assert summary["nodes_at_the_end"] == 3
    (folder,) = (tmp_path / "node1" / "memory").iterdir()
    kept = [name for name in FileMemory(folder) if not name.startswith("secure-answered-")]
    assert kept == [], "what is secret is not on the disk of a node"


def test_a_simulated_node_that_starts_again_goes_on_in_the_middle_of_a_sum(tmp_path):
    nodes = nodes_of(tmp_path, SERVING)
    nodes[3].faults = [0.0, 0.0, nodes[3].restart, nodes[3].restart, nodes[3].restart]
    summary = on_grid(settings(), tmp_path / "grid", FakeGrid(nodes))
    twin = in_one_process(settings(), tmp_path / "twin")
    assert (summary["state_digest"], summary["failed_replies"]) == (twin["state_digest"], 0)


def test_a_node_that_starts_again_in_a_sum_is_left_out_and_comes_back(identities, tmp_path):
    chosen = settings(num_rounds=5)
    nodes = trusted_nodes(tmp_path, identities)
    nodes[3].faults = [0.0, 0.0, 0.0, nodes[3].restart]  # hello, keys, shares; then before its values
    results = []
    summary = on_grid(chosen, tmp_path / "grid", FakeGrid(nodes), lambda n, result, e: results.append(result))
    failed = [sorted(result.failed) for result in results[1:]]
    assert failed[0] == [3] and failed[-1] == [] and all(each in ([], [3]) for each in failed)
    assert "has no part in this sum" in results[1].failed[3]
    assert summary["nodes_at_the_end"] == 3


def test_a_server_that_starts_again_goes_on(identities, tmp_path):
    chosen = settings(num_rounds=4)
    grid = FakeGrid(trusted_nodes(tmp_path, identities))
    with suppress(KeyboardInterrupt):
        on_grid(chosen, tmp_path / "grid", grid, StopAfter(2))
    summary = resumed(tmp_path / "grid", grid)
    assert summary["state_digest"] == in_one_process(chosen, tmp_path / "twin")["state_digest"]
    assert summary["failed_replies"] == 0


def test_a_node_that_another_roster_knows_otherwise_is_left_out(identities, tmp_path):
    nodes = trusted_nodes(tmp_path, identities)
    nodes[3] = node_of(tmp_path, 3, (3,), replace(trusted(identities, (3,)), identity=Identity.generated()))
    with pytest.raises(EngineError, match="client 3 comes with another identity than the roster"):
        on_grid(settings(), tmp_path / "grid", FakeGrid(nodes))


def test_a_node_with_a_roster_gives_nothing_but_parts_in_sums(identities, tmp_path):
    with pytest.raises(EngineError, match="what is learned here leaves in secure sums only"):
        on_grid(plain_recipe(federation=SHARED), tmp_path / "grid", FakeGrid(trusted_nodes(tmp_path, identities)))


def test_rounds_that_were_taken_back_are_replayed_and_no_weights_are_sent(tmp_path):
    """A client of secure sums takes no whole weights, so one whose rounds were taken back is told all that are left."""
    chosen = secure(
        {**SHARED, "num_rounds": 24, "batch_size": 12, "cohort_size": 4, "dropout_rate": 0.08},
        local={"learning_rate": 0.12, "warmup_rounds": 14, "num_directions": 2},
        run={"on_surge": "backoff", "eval_every": 4}, secure_sum={"threshold": 3},
    )  # fmt: skip
    summary = on_grid(chosen, tmp_path / "grid", FakeGrid(nodes_of(tmp_path, SERVING)))
    twin = in_one_process(chosen, tmp_path / "twin")
    assert summary["surges"] and summary["state_digest"] == twin["state_digest"]
    assert summary["failed_replies"] == 0 and not list(tmp_path.glob("node*/weights"))
