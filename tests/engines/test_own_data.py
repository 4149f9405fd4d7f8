"""A server that has none of the nodes' data, and nodes that each bring a file of their own."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_runs
from fake_grid import FakeGrid
from grid_runs import MACHINE, in_one_process, nodes_of, on_grid

from seedtune import assembly, run_store
from seedtune.assembly import assemble
from seedtune.engines.bench import Benches, Options
from seedtune.engines.flower_grid import hello_of
from seedtune.engines.frames import NODE, Parcel
from seedtune.engines.node import Node
from seedtune.engines.node_state import NodeState
from seedtune.errors import ConfigError, DataError
from seedtune.fed.hello import encode_hello
from seedtune.fed.messages import encode_order
from seedtune.fed.rounds import Server
from seedtune.fed.seed_scalar import SeedScalar
from seedtune.recipe_text import merged


@pytest.fixture
def tables(tmp_path):
    """Three files: the server's, and one for each of two nodes."""
    names = ("server", "north", "south")
    paths = [
        tiny_runs.save_task(tmp_path / f"{name}.csv", rows) for name, rows in zip(names, (20, 12, 30), strict=True)
    ]
    return dict(zip(names, map(str, paths), strict=True))


def settings(tables, **over):
    return merged({"task": {"path": tables["server"], "training": "nodes"}}, over)


def own_nodes(folder, tables):
    nodes = nodes_of(folder, ((0, 2), (1, 3)), assemble)
    for number, (clients, name) in enumerate((((0, 2), "north"), ((1, 3), "south")), 1):
        options = Options(clients, data=tables[name], recipe_paths=True)
        state = NodeState(folder / f"node{number}")
        nodes[number].make = lambda state=state, options=options: Node(state, options, Benches())
    return nodes


def test_each_node_trains_on_its_own_file_and_the_server_only_evaluates(tiny_recipe, tables, tmp_path):
    recipe = tiny_recipe(**settings(tables))
    made = assemble(recipe, MACHINE)
    assert (made.clients, len(made.test)) == ((), 20)
    grid = FakeGrid(own_nodes(tmp_path, tables))
    summary = on_grid(recipe, tmp_path / "run", grid)
    assert summary["failed_replies"] == 0 and summary["nodes_at_the_end"] == 2
    north, south = (assemble(_at(recipe, tables[name]), MACHINE, {}, own=own)
                    for name, own in (("north", (0, 2)), ("south", (1, 3))))  # fmt: skip
    assert [len(own) for own in north.clients] == [6, 0, 6, 0] and [len(own) for own in south.clients] == [0, 15, 0, 15]
    assert run_store.recipe_of(tmp_path / "run").task.path == tables["server"]


def _at(recipe, path):
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"path": path})})


def test_without_nodes_such_a_run_is_refused_before_anything_is_loaded(tiny_recipe, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "load_task", lambda *args: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"task\.training = 'nodes' needs nodes with data of their own"):
        in_one_process(tiny_recipe(**settings(tables)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("section, name, value", [("partition", "heldout_fraction", 0.2), ("baseline", "num_steps", 5)])
def test_what_needs_the_nodes_data_elsewhere_is_refused(tiny_recipe, tables, section, name, value):
    with pytest.raises(ConfigError, match=f"{section}.{name} needs task.training = 'shared'"):
        tiny_recipe(**settings(tables, **{section: {name: value}}))


def test_a_head_cannot_be_fitted_on_what_is_not_here(tiny_recipe, tables, tmp_path):
    encoder = tiny_runs.save_encoder(tmp_path / "encoder")
    recipe = tiny_recipe(**settings(tables, model={"name": str(encoder), "kind": "classifier", "head": "probe"}))
    with pytest.raises(DataError, match=r"model\.head = 'probe' is fitted on training examples"):
        assemble(recipe, MACHINE)


def test_a_node_with_other_labels_is_refused(tiny_recipe, tables, tmp_path):
    encoder = tiny_runs.save_encoder(tmp_path / "encoder")
    recipe = tiny_recipe(**settings(tables, model={"name": str(encoder), "kind": "classifier", "head": "fresh"},
                                    task={"answers": {}}))  # fmt: skip
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"answers": {}})})
    with open(tables["south"], "a", newline="") as file:
        csv.writer(file).writerow(["plum", "violet"])
    summary = on_grid(recipe, tmp_path / "run", FakeGrid(own_nodes(tmp_path, tables)))
    refused = summary["nodes_refused"]["site-2"]
    assert "its labels is 'blue, green, red, violet', the run's is 'blue, green, red'" in refused


# A node's own examples are pinned with its run, and told to nobody.


def own_node(folder, tables, name="north"):
    return Node(NodeState(folder / "node"), Options((0, 2), data=tables[name], recipe_paths=True), Benches())


def test_a_node_refuses_a_file_that_changed_since_it_began_the_run(tiny_recipe, tables, tmp_path):
    made = assemble(tiny_recipe(**settings(tables)), MACHINE)
    hello = hello_of(made, bytes(16))
    greet = Parcel(hello.run.hex(), (NODE,), (encode_hello(hello),))
    first = own_node(tmp_path, tables).answers(greet)
    assert first.errors == ("",)
    own = own_node(tmp_path, tables).state.examples_digest(hello.run.hex())
    assert own and own.encode() not in first.messages[0] and own not in hello.facts.values()
    order = encode_order(
        SeedScalar().order(Server.at_start(made.recipe, made.header, made.space, made.site.replica), 0)
    )
    kept = Path(tables["north"]).read_text()
    Path(tables["north"]).write_text(kept.replace("red", "blue", 1))
    for parcel in (greet, Parcel(hello.run.hex(), (0,), (order,))):
        answered = own_node(tmp_path, tables).answers(parcel)
        assert answered.errors == (
            "EngineError: the examples of this node are not those that it began the run with: put its --data file "
            "back, or take part in another run",
        )
    Path(tables["north"]).write_text(kept)
    assert own_node(tmp_path, tables).answers(greet).errors == ("",)


def test_no_later_hello_makes_a_node_forget_which_file_it_began_a_run_with(tiny_recipe, tables, tmp_path):
    hello = hello_of(assemble(tiny_recipe(**settings(tables)), MACHINE), bytes(16))
    again = replace(hello, facts={**hello.facts, "noise version": "0"})
    other = replace(hello, run=b"x" * 16)
    own_node(tmp_path, tables).answers(parcel_with(hello))
    kept = Path(tables["north"]).read_text()
    Path(tables["north"]).write_text(kept.replace("red", "blue", 1))
    for changed in (again, hello):
        (error,) = own_node(tmp_path, tables).answers(parcel_with(changed)).errors
        assert error.startswith("EngineError: the examples of this node are not those that it began the run with: ")
        assert own_node(tmp_path, tables).state.status()["refused"] == error
    assert own_node(tmp_path, tables).answers(parcel_with(other)).errors == ("",)
    assert "not those that it began" in own_node(tmp_path, tables).answers(parcel_with(hello)).errors[0]
    Path(tables["north"]).write_text(kept)
    assert own_node(tmp_path, tables).answers(parcel_with(hello)).errors == ("",)


def parcel_with(hello):
    return Parcel(hello.run.hex(), (NODE,), (encode_hello(hello),))


def test_a_node_whose_base_has_another_configuration_is_refused_by_the_part(tiny_recipe, tables, tmp_path):
    base = tiny_runs.save_model(tmp_path / "base")
    recipe = tiny_recipe(**settings(tables, model={"name": str(base)}))
    hello = hello_of(assemble(recipe, MACHINE), bytes(16))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    node = own_node(tmp_path, tables)
    assert node.answers(Parcel(hello.run.hex(), (NODE,), (encode_hello(hello),))).errors == ("",)
    assert node.state.status()["refused"].startswith("its model config is '")


def test_a_node_that_deals_other_examples_of_a_shared_task_is_refused_by_the_part(tiny_recipe, tmp_path):
    table = tiny_runs.save_task(tmp_path / "things.csv")
    made = assemble(tiny_recipe(task={"path": str(table)}), MACHINE)
    hello = hello_of(made, bytes(16))
    assert hello.facts["training examples"] == made.header.inputs["training examples"]
    with open(table, "a", newline="") as file:
        file.writelines(f"plum {i},red\r\n" for i in range(30))
    bench = Benches().bench(hello, Options(recipe_paths=True))
    assert "its training examples is '" in bench.refused and "its recipe is" not in bench.refused
