"""Private runs over nodes: with the same secrets they end where one process does; a node's own secret stays with it."""

import pytest
from fake_grid import FakeGrid
from grid_runs import in_one_process, nodes_of, on_grid
from private_recipes import private, sampling_clients
from small_federation import recipe, without_a_model

from seedtune.engines.flower_grid import hello_of
from seedtune.engines.frames import NODE, Parcel
from seedtune.fed.hello import decode_standing, encode_hello

SERVING = ((0, 1), (2, 3))
SAMPLED = sampling_clients("poisson", partition={"num_clients": 4}, federation={"cohort_size": 2, "num_rounds": 3})


@pytest.fixture
def one_secret(monkeypatch):
    """Every secret is the same, so that runs can be compared."""
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))


@pytest.mark.parametrize(
    "settings",
    [private(federation={"num_rounds": 3}), private(federation={"num_rounds": 3}, privacy={"noise": "local"}), SAMPLED],
    ids=["central", "local", "clients-poisson"],
)
def test_with_the_same_secrets_nodes_end_where_one_process_does(settings, small_runs, one_secret, tmp_path):
    alone = in_one_process(settings, tmp_path / "alone")
    summary = on_grid(settings, tmp_path / "run", FakeGrid(nodes_of(tmp_path, SERVING)))
    assert summary["state_digest"] == alone["state_digest"]
    assert summary["privacy"] == alone["privacy"]
    assert set(summary["node_digests"].values()) == {alone["state_digest"]}


def test_each_node_has_a_secret_of_its_own(small_runs, tmp_path):
    settings = private(federation={"num_rounds": 2}, privacy={"noise": "local"})
    on_grid(settings, tmp_path / "run", FakeGrid(nodes_of(tmp_path, SERVING)))
    kept = [sorted((tmp_path / f"node{number}" / "memory").glob("*/*")) for number in (1, 2)]
    assert all(path.stat().st_mode & 0o077 == 0 for paths in kept for path in paths)
    own = [{path.read_bytes() for path in paths} for paths in kept]
    assert len(own[0]) == len(own[1]) == 3 and not own[0] & own[1]  # the secret, and what each client answered last


@pytest.mark.parametrize(("made", "count"), [(recipe, 12), (private, 1)], ids=["public", "private"])
def test_a_private_node_does_not_say_how_many_examples_there_are(made, count, small_runs, tmp_path):
    hello = encode_hello(hello_of(without_a_model(made()), bytes(16)))
    answered = nodes_of(tmp_path, SERVING)[1].make().answers(Parcel(bytes(16).hex(), (NODE,), (hello,)))
    assert decode_standing(answered.messages[0]).num_examples == {0: count, 1: count}
