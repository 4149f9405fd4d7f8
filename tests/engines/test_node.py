"""What a node keeps on disk, and what it does with what is damaged, foreign or asked twice."""

import os
import stat
from dataclasses import replace

import pytest
import small_federation
from small_federation import protocol, recipe, server, site

from seedtune import assembly
from seedtune.engines.bench import Benches, Options, served
from seedtune.engines.frames import NODE, Answered, Parcel, answered_of, parcel_of
from seedtune.engines.node import Node
from seedtune.engines.node_state import FileMemory, NodeState
from seedtune.errors import ConfigError, MessageError
from seedtune.fed.hello import Hello, decode_finished, decode_standing, encode_finish, encode_hello, facts_of
from seedtune.fed.messages import encode_order
from seedtune.fed.rounds import one_round
from seedtune.fed.wire import packed

RUN = bytes(range(16))


def hello(settings, **changed):
    at = site(settings)
    facts = facts_of(at.header, at.perturber.space, ("down", "up"))
    return encode_hello(replace(Hello(RUN, settings.model_dump_json(), facts), **changed))


def node_in(folder, clients=None, make=small_federation.without_a_model, **options):
    return Node(NodeState(folder), Options(clients, **options), Benches(make))


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    monkeypatch.setattr(assembly, "base_weights", lambda made: site(made.recipe).replica.weights)


@pytest.fixture
def settings():
    return recipe(federation={"num_rounds": 9})


def greeted(node, settings, **changed):
    answered = node.answers(Parcel(RUN.hex(), (NODE,), (hello(settings, **changed),)))
    assert answered.errors == ("",)
    return decode_standing(answered.messages[0])


class OverNodes:
    """An engine of nodes by client."""

    def __init__(self, nodes):
        self.nodes = nodes

    def exchange(self, messages):
        for client, node in self.nodes.items():
            if client in messages:
                answered = node.answers(Parcel(RUN.hex(), (client,), (messages[client],)))
                yield client, RuntimeError(answered.errors[0]) if answered.errors[0] else answered.messages[0]


def rounds(settings, node, count, state=None):
    """`count` rounds of all clients on one node."""
    at = site(settings)
    state = state or server(at)
    engine = OverNodes(dict.fromkeys(range(settings.partition.num_clients), node))
    for _ in range(count):
        state, result = one_round(state, protocol(settings), engine)
        assert not result.failed
    return state


def test_a_message_that_comes_twice_is_answered_by_the_same_bytes_and_computed_once(settings, tmp_path):
    calls = []

    def counting(*args, **changed):
        made = small_federation.without_a_model(*args, **changed)
        batch = made.site.batch
        site_ = replace(made.site, batch=lambda client, key: calls.append(client) or batch(client, key))
        return small_federation.without_a_model(args[0], site=site_)

    node = node_in(tmp_path, make=counting)
    greeted(node, settings)
    order = encode_order(protocol(settings).order(server(site(settings)), 2))
    parcel = Parcel(RUN.hex(), (2,), (order,))
    first, num_calls = node.answers(parcel), len(calls)
    assert first.errors == ("",) and set(calls) == {2}
    restarted = node_in(tmp_path, make=counting)
    assert node.answers(parcel) == first == restarted.answers(parcel) and len(calls) == num_calls


def test_a_restarted_node_stands_where_it_stood(settings, tmp_path):
    node = node_in(tmp_path)
    greeted(node, settings)
    state = rounds(settings, node, 3)
    again = node_in(tmp_path)
    again.wake()
    at = again.benches.bench(again._hello(), again.options)
    assert at.replica.digest == state.log[-2].digest  # it was told the rounds before the third
    standing = greeted(again, settings)
    assert set(standing.stands_at.values()) == {state.log[-2].digest}
    rounds(settings, again, 2, state)


@pytest.mark.parametrize("damage", ["records", "status.json", "replies", "torn", "all but hello"])
def test_what_a_disk_spoiled_is_left_out_and_told_again(settings, tmp_path, damage):
    node = node_in(tmp_path)
    greeted(node, settings)
    state = rounds(settings, node, 4)
    if damage == "replies":
        for path in (tmp_path / "replies").iterdir():
            path.write_bytes(b"spoiled")
    elif damage == "torn":
        os.truncate(tmp_path / "records", (tmp_path / "records").stat().st_size - 5)
    elif damage == "all but hello":
        for name in ("records", "status.json"):
            (tmp_path / name).unlink()
    else:
        (tmp_path / damage).write_bytes(b"\xff" * 50)
    again = node_in(tmp_path)
    again.wake()
    stands_at = greeted(again, settings).stands_at
    places = {record.digest: i + 1 for i, record in enumerate(state.log)}
    state = replace(state, up_to_date={c: places.get(at, 0) if at else 0 for c, at in stands_at.items()})
    rounds(settings, again, 2, state)


def test_records_that_do_not_lead_where_they_say_are_forgotten(settings, tmp_path):
    node = node_in(tmp_path)
    greeted(node, settings)
    state = rounds(settings, node, 3)
    order = protocol(settings).order(replace(state, up_to_date={0: 2}), 0)
    wrong = encode_order(replace(order, digest=b"x" * 16))
    error = node.answers(Parcel(RUN.hex(), (0,), (wrong,))).errors[0]
    assert error.startswith("DigestMismatch: ") and "78" * 16 in error
    assert set(greeted(node, settings).stands_at.values()) == {b""}
    rounds(settings, node, 1, replace(state, up_to_date={}))


def test_weights_that_came_whole_outlast_a_restart(settings, tmp_path):
    node = node_in(tmp_path)
    greeted(node, settings)
    state = replace(rounds(settings, node, 2), up_to_date=dict.fromkeys(range(4), -1))
    state = rounds(settings, node, 1, state)
    assert (tmp_path / "weights").stat().st_size > 0
    state = rounds(settings, node, 2, state)
    again = node_in(tmp_path)
    again.wake()
    at = again.benches.bench(again._hello(), again.options)
    assert at.replica.digest == state.log[-2].digest
    rounds(settings, again, 1, state)


def test_finish_brings_a_node_to_the_end(settings, tmp_path):
    node = node_in(tmp_path, (1, 2))
    assert set(greeted(node, settings).num_examples) == {1, 2}
    everyone = node_in(tmp_path / "other")
    greeted(everyone, settings)
    state = rounds(settings, everyone, 3)
    order = encode_finish(replace(protocol(settings).order(replace(state, up_to_date={}), 1), rate=1.0))
    answered = node.answers(Parcel(RUN.hex(), (NODE,), (order,)))
    assert decode_finished(answered.messages[0]) == state.replica.digest
    assert node.state.status()["finished"] and node.state.status()["digest"] == state.replica.digest.hex()


def test_what_is_asked_of_the_wrong_node_is_refused(settings, tmp_path):
    node, order = node_in(tmp_path, (1,)), encode_order(protocol(settings).order(server(site(settings)), 1))
    asked = Parcel(RUN.hex(), (1,), (order,))
    assert node.answers(asked).errors[0].startswith("EngineError: unknown run: this node has had no hello")
    greeted(node, settings)
    other = encode_order(protocol(settings).order(server(site(settings)), 2))
    several = node.answers(Parcel(RUN.hex(), (2, 1, 3), (other, order, order)))
    assert several.errors[0] == "EngineError: client 2 is not served by this node"
    assert several.errors[1] == "" and several.messages[1]
    assert node.answers(Parcel(RUN.hex(), (1,), (other,))).errors[0] == (
        "MessageError: an order for client 2 came for client 1"
    )
    assert "unknown run" in node.answers(replace(asked, run="00" * 16)).errors[0]
    strange = node.answers(Parcel(RUN.hex(), (NODE,), (packed(77, []),)))
    assert strange.errors == ("MessageError: no node answers messages of kind 77",)
    assert "of one run" in node.answers(Parcel("00", (NODE,), (hello(settings),))).errors[0]


def test_a_node_that_differs_says_so_itself(settings, tmp_path):
    node = node_in(tmp_path)
    greeted(node, settings, facts={"base digest": "00" * 16})
    order = encode_order(protocol(settings).order(server(site(settings)), 1))
    refused = node.answers(Parcel(RUN.hex(), (1,), (order,))).errors[0]
    assert "this node was refused: its base digest is" in refused and "the run's is '" + "00" * 16 in refused
    assert node.state.status()["refused"] in refused


def test_what_its_owner_asked_for_and_cannot_be_is_said(settings, tmp_path):
    for at, given, rule in (
        (settings, {"clients": (7,)}, "this node is to serve client 7: the run has clients 0 to 3"),
        (settings.model_copy(update={"task": settings.task.model_copy(update={"training": "nodes"})}), {},
         "task.training = 'nodes', and this node has no data of its own: start it with --data"),
    ):  # fmt: skip
        node = node_in(tmp_path / rule[:9], **given)
        answered = node.answers(Parcel(RUN.hex(), (NODE,), (hello(at),)))
        assert answered.errors[0].endswith(rule) and node.state.status()["refused"] == f"ConfigError: {rule}"
    not_a_recipe = node.answers(Parcel(RUN.hex(), (NODE,), (hello(settings, recipe="[1]"),)))
    assert not_a_recipe.errors == ("ConfigError: the server's recipe: is not a table of sections",)
    with pytest.raises(ConfigError, match="serve no client"):
        served(settings, ())


def test_a_new_run_forgets_the_old_one(settings, tmp_path):
    node = node_in(tmp_path)
    greeted(node, settings)
    rounds(settings, node, 2)
    FileMemory(node.state.memory_folder(RUN.hex()))["secret"] = b"of the old run"
    new, other = recipe(run={"seed": 99}), bytes(16)
    answered = node.answers(Parcel(other.hex(), (NODE,), (hello(new, run=other),)))
    assert set(decode_standing(answered.messages[0]).stands_at.values()) == {b""}
    assert not (tmp_path / "records").exists() and not list((tmp_path / "replies").iterdir())
    assert not FileMemory(node.state.memory_folder(other.hex()))
    assert FileMemory(node.state.memory_folder(RUN.hex()))["secret"] == b"of the old run", "where it comes back"


def test_everything_a_node_keeps_is_the_users_alone(settings, tmp_path):
    node = node_in(tmp_path / "state")
    greeted(node, settings)
    rounds(settings, node, 2)
    FileMemory(node.state.memory_folder(RUN.hex()))["0/key"] = b"x"
    for path in (tmp_path / "state", *(tmp_path / "state").rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_memory_is_a_mapping_that_outlasts_its_process(tmp_path):
    memory = FileMemory(tmp_path)
    memory.update({"a": b"1", "../b": b"2"})
    assert dict(FileMemory(tmp_path)) == {"a": b"1", "../b": b"2"} and len(memory) == 2
    assert memory.pop("a") == b"1" and "a" not in memory
    with pytest.raises(KeyError):
        del memory["a"]
    next(tmp_path.iterdir()).write_bytes(b"spoiled")
    assert dict(memory) == {}


@pytest.mark.parametrize(
    "plain", [{}, {"run": "x", "clients": [0], "messages": []}, {"run": "x", "clients": [0, 0], "messages": [b"", b""]},
              {"run": 1, "clients": [], "messages": []}, {"run": "x", "clients": [0.0], "messages": [b""]}]
)  # fmt: skip
def test_what_is_no_parcel_is_refused(plain):
    with pytest.raises(MessageError, match="a parcel has a run"):
        parcel_of(plain)
    with pytest.raises(MessageError, match="2 messages and as many texts"):
        answered_of(plain, 2)
    assert answered_of({"messages": [b"x"], "errors": [""]}, 1) == Answered((b"x",), ("",))
