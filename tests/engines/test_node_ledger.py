"""What a node spent of its owner's privacy outlasts runs, hellos and restarts, adds up, and ends at the limit."""

import json
import os
from dataclasses import replace
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from private_recipes import private
from small_federation import protocol, server, site, without_a_model
from test_node import RUN, hello

from seedtune import assembly
from seedtune.engines.bench import Benches, Options, _here
from seedtune.engines.frames import NODE, Parcel
from seedtune.engines.node import Node
from seedtune.engines.node_ledger import LEDGER, RECIPES, Entry, NodeLedger, data_digest
from seedtune.engines.node_state import NodeState
from seedtune.errors import ConfigError, DataError
from seedtune.fed.messages import encode_order
from seedtune.privacy.accounting import epsilon
from seedtune.privacy.plan import Plan

LOCAL = {"noise": "local", "noise_multiplier": 4.0}
SETTINGS = private(privacy=LOCAL, federation={"num_rounds": 9})
PLAN = Plan.of(SETTINGS)


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    monkeypatch.setattr(assembly, "base_weights", lambda made: site(made.recipe).replica.weights)


def node_in(folder, most=0.0, **options):
    return Node(NodeState(folder), Options(None, max_epsilon=most, **options), Benches(without_a_model))


def greeted(node, settings=SETTINGS, run=RUN) -> str:
    return node.answers(Parcel(run.hex(), (NODE,), (hello(settings, run=run),))).errors[0]


def asked(node, client=0, round_=0, run=RUN, settings=SETTINGS, **changed):
    order = replace(protocol(settings).order(server(site(settings)), client), round=round_, **changed)
    answered = node.answers(Parcel(run.hex(), (client,), (encode_order(order),)))
    return answered.errors[0] or answered.messages[0]


def spent(folder, unit="client", delta=1e-5):
    return NodeLedger(folder / LEDGER, delta).epsilon(RECIPES, unit)


def test_each_release_is_charged_once_whatever_is_asked_again(tmp_path):
    node = node_in(tmp_path)
    assert greeted(node) == "" and spent(tmp_path) == 0
    first = asked(node)
    assert isinstance(first, bytes) and spent(tmp_path) == epsilon(PLAN, 1)
    assert asked(node) == first == asked(node_in(tmp_path))
    assert spent(tmp_path) == epsilon(PLAN, 1)
    assert "DigestMismatch" in asked(node, digest=bytes(16))
    asked(node, 1)
    assert spent(tmp_path) == epsilon(PLAN, 1), "clients have data of their own"
    asked(node, 1, 1)
    assert spent(tmp_path) == epsilon(PLAN, 2)


def test_runs_on_the_same_data_add_up_as_dp_accounting_adds_them(tmp_path):
    node, other = node_in(tmp_path), private(privacy={**LOCAL, "noise_multiplier": 2.0})
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    for run, settings, noise in ((bytes([1] * 16), SETTINGS, 4.0), (bytes([2] * 16), other, 2.0)):
        assert greeted(node, settings, run) == ""
        for round_ in range(3):
            assert isinstance(asked(node, 0, round_, run, settings), bytes)
        accountant.compose(dp_accounting.GaussianDpEvent(noise), 3)
    assert spent(tmp_path) == accountant.get_epsilon(1e-5)
    (example, client) = NodeLedger(tmp_path / LEDGER, 1e-5).rows()
    assert (client["runs"], client["releases"]) == (2, 6) and client["epsilon"] == accountant.get_epsilon(1e-5)
    assert example["epsilon"] > client["epsilon"], "one example may turn a client's vector round"


def test_a_hello_resets_neither_answers_nor_secrets_nor_the_ledger(tmp_path):
    """d5: one more blank in the recipe gave 400 fresh answers to one round."""
    node, other = node_in(tmp_path), bytes(16)
    greeted(node)
    first = asked(node)
    blank = Parcel(RUN.hex(), (NODE,), (hello(SETTINGS, recipe=SETTINGS.model_dump_json() + " "),))
    assert "said hello with another recipe before" in node.answers(blank).errors[0]
    assert greeted(node, run=other) == "" and isinstance(asked(node, run=other), bytes)
    assert greeted(node) == "" and asked(node) == first
    assert spent(tmp_path) == epsilon(PLAN, 2)


def test_beyond_the_owners_limit_nothing_is_answered_also_in_another_run(tmp_path):
    node = node_in(tmp_path, most=1.01 * epsilon(PLAN, 9))
    assert greeted(node) == ""
    for round_ in range(3):
        assert isinstance(asked(node, 0, round_), bytes)
    refusal = greeted(node, run=bytes(16))
    assert refusal.startswith("ConfigError: the run's 9 rounds, with what this node's data was in before, are worth")
    shorter = node_in(tmp_path, most=1.01 * epsilon(PLAN, 3))
    assert "are worth epsilon" in greeted(shorter)
    with pytest.raises(ConfigError, match=r"its owner allows .*: nothing more is answered"):
        ledger = NodeLedger(tmp_path / LEDGER, 1e-5)
        ledger.charge(RECIPES, RUN.hex(), PLAN, 0, 3, 1.01 * epsilon(PLAN, 3))


def test_epsilon_counts_at_the_owners_delta():
    """d3: a recipe with delta 0.9 was worth "epsilon 0"."""
    for delta in (1e-5, 0.1, 0.9, 1 - 1e-12):
        lax = private(privacy={"noise": "local", "noise_multiplier": 0.5, "delta": delta})
        with pytest.raises(ConfigError, match=r"both at delta 1e-05 \(--max-delta\)"):
            _here(lax, Options(max_epsilon=8.0))


def test_a_ledger_that_cannot_be_read_answers_nothing_private(tmp_path):
    node = node_in(tmp_path)
    greeted(node)
    asked(node)
    for spoiled in (b"{", b"[]", b'{"format": 2}', b'{"format": 1, "entries": [{}]}', b"[" * 100_000):
        (tmp_path / LEDGER).write_bytes(spoiled)
        assert "the ledger of what was spent cannot be read" in asked(node, 0, 1)
        with pytest.raises(DataError, match="put it back from a copy"):
            NodeLedger(tmp_path / LEDGER, 1e-5).entries()


def test_what_must_not_be_forgotten_is_on_the_disk_before_an_answer_leaves(tmp_path, monkeypatch):
    node, synced = node_in(tmp_path), []
    greeted(node)
    really = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")) or really(file))
    asked(node)
    assert any(LEDGER in name for name in synced)
    assert sum(f"memory/{RUN.hex()}/." in name for name in synced) == 2, "the secret, and the answer"


def test_data_is_known_by_its_bytes(tmp_path):
    one, folder = tmp_path / "one.csv", tmp_path / "folder"
    one.write_text("text,label\n")
    folder.mkdir()
    (folder / "a").write_text("text,label\n")
    assert data_digest(one) == data_digest(folder) != data_digest(None) == RECIPES
    one.write_text("text,label\nx,1\n")
    assert data_digest(one) != data_digest(folder)


def test_a_secret_cohort_counts_with_every_round():
    plan = replace(PLAN, sampling="poisson", population=20, sample=4)
    assert Entry("d", "r", plan).charged_for(0, 6).num_releases == 7
    assert Entry("d", "r", PLAN).charged_for(0, 6).num_releases == 1


def test_the_command_shows_the_ledger(seedtune, tmp_path):
    pytest.importorskip("flwr")
    node = node_in(tmp_path / "node" / "worker")
    assert "nothing was spent" in seedtune("deploy", "ledger", "node").out
    greeted(node)
    asked(node)
    told = seedtune("deploy", "ledger", "node")
    assert f"unit client: epsilon {epsilon(PLAN, 1):.4g} at delta 1e-05, 1 releases in 1 runs" in told.out
    assert seedtune("deploy", "ledger", "node", "--max-delta", "1").err == (
        "error: --max-delta 1: must lie between 0 and 1, well below 1 over the number of units\n"
    )
    assert Path("node/worker", LEDGER).stat().st_mode & 0o077 == 0
    assert json.loads(Path("node/worker", LEDGER).read_text())["format"] == 1


def test_an_owner_insists_on_sums_of_so_many_clients():
    sums = private(privacy={"unit": "none"}, secure_sum={"enabled": True}, task={"name": "sst2"})
    assert _here(sums, Options(min_clients=3)) == sums
    with pytest.raises(
        ConfigError, match=r"at least 4 clients \(--min-clients\), and the server's recipe has sums of 3"
    ):
        _here(sums, Options(min_clients=4))
    with pytest.raises(ConfigError, match="and the server's recipe has none"):
        _here(private(), Options(min_clients=2))


def test_shares_of_noise_are_added_among_known_clients_alone():
    shares = private(privacy={"noise": "shares", "noise_multiplier": 4.0}, secure_sum={"enabled": True})
    with pytest.raises(ConfigError, match="without --roster the server could be all others"):
        _here(shares, Options(max_epsilon=8.0))


def test_what_the_owner_says_reaches_the_worker(tmp_path):
    from seedtune.deploy import node as deployed

    made = deployed.Node("127.0.0.1:8000", tmp_path, max_epsilon=8.0, max_delta=1e-6, min_clients=3)
    arguments = deployed._worker(made).arguments
    assert " --max-epsilon 8 --max-delta 1e-06 --min-clients 3" in " ".join(arguments)
    assert "--min-clients" not in deployed._worker(replace(made, min_clients=0)).arguments
