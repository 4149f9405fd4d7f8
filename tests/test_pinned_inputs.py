"""Everything that a run computes from has a digest in its header; what changed between kill and resume is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import experiment, pinned_inputs, run_store
from seedtune.assembly import assemble
from seedtune.data.encoding import Encoded, EncodedSet
from seedtune.engines.flower_grid import hello_of
from seedtune.errors import DigestMismatch, RunStoreError
from seedtune.experiment import resume, run
from seedtune.inspection import described, exported
from seedtune.pinned_inputs import (
    check_inputs,
    describe_versions,
    digest_base,
    digest_examples,
    digest_recipe,
    share_inputs,
)
from seedtune.recipe_text import merged
from seedtune.run_store import metrics_of
from seedtune.trying import evaluated

SIGNALS = {"policy": "round-wise"}
NOT_PRIVATE = {"recipe", "model config", "tokenizer", "answers", "training examples", "test examples"}


@pytest.fixture
def stopped(tmp_path) -> Path:
    """A folder with a base, a table and a run over them that was stopped after two rounds of three."""
    tiny_runs.save_model(tmp_path / "base")
    tiny_runs.save_task(tmp_path / "things.csv")
    settings = tiny_runs.recipe(tmp_path / "base", tmp_path / "things.csv", personalise=SIGNALS)
    with pytest.raises(KeyboardInterrupt):
        run(settings, MACHINE, tmp_path / "run", StopAfter(2))
    return tmp_path


def edit_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(change(values)))


def set_recipe(**over):
    return lambda folder: edit_json(folder / "run" / "recipe.json", lambda values: merged(values, over))


def next_float(folder):
    """One bit of the learning rate."""
    change = {"local": {"learning_rate": float(np.nextafter(1e-2, 1))}}
    edit_json(folder / "run" / "recipe.json", lambda values: merged(values, change))


def set_config(folder):
    edit_json(folder / "base" / "config.json", lambda values: {**values, "rms_norm_eps": 1e-3})


def set_rope(folder):
    edit_json(folder / "base" / "config.json", lambda values: {
        **values, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}})  # fmt: skip


def swap_tokens(folder):
    def swapped(values):
        vocabulary = values["model"]["vocab"]
        one, other = " ice", " sea"
        one, other = (text.replace(" ", "\u0120") for text in (one, other))
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        return values

    edit_json(folder / "base" / "tokenizer.json", swapped)


def first_training_row(folder) -> str:
    """The thing of the first row that trains."""
    made = assemble(run_store.recipe_of(folder / "run"), MACHINE)
    return made.task.train[int(made.clients[0][0])].body


def change_word(folder):
    path, thing = folder / "things.csv", first_training_row(folder)
    path.write_text(path.read_text().replace(f"{thing},", "another thing,"))


def lengthen(folder):
    with open(folder / "things.csv", "a", newline="") as file:
        file.writelines(f"plum {i},red\r\n" for i in range(30))


CHANGES = {
    "one bit of the rate": (next_float, ["recipe"]),
    "batch size": (set_recipe(federation={"batch_size": 3}), ["recipe"]),
    "mu": (set_recipe(local={"perturbation_scale": 2e-2}), ["recipe"]),
    "schedule": (set_recipe(local={"schedule": "cosine"}), ["recipe"]),
    "alpha": (set_recipe(personalise={"alpha": 0.25}), ["recipe"]),
    "rounds": (set_recipe(federation={"num_rounds": 4}), ["recipe"]),
    "rms_norm_eps": (set_config, ["model config"]),
    "rope": (set_rope, ["model config"]),
    "swapped tokens": (swap_tokens, ["tokenizer"]),
    "one word": (change_word, ["training examples"]),
    "a longer table": (lengthen, ["training examples"]),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_run_is_not_continued_on_other_inputs(change, stopped):
    apply, parts = CHANGES[change]
    before = run_store.trajectory_of(stopped / "run")
    apply(stopped)
    with pytest.raises(DigestMismatch) as caught:
        resume(stopped / "run", MACHINE, NOTHING)
    message = str(caught.value)
    assert message.startswith("changed since the trajectory began: ") and message.endswith(", or start another run")
    assert all(f"{part} (" in message and pinned_inputs._REMEDIES[part] in message for part in parts)
    assert len(run_store.trajectory_of(stopped / "run").records) == len(before.records) == 2


def test_what_is_put_back_is_continued_to_the_same_digest(stopped):
    settings = run_store.recipe_of(stopped / "run")
    whole = run(settings, MACHINE, stopped / "whole", NOTHING)
    kept = (stopped / "base" / "config.json").read_text()
    set_config(stopped)
    with pytest.raises(DigestMismatch, match=r"model config \(.*put the base's config.json back"):
        resume(stopped / "run", MACHINE, NOTHING)
    (stopped / "base" / "config.json").write_text(kept)
    assert resume(stopped / "run", MACHINE, NOTHING)["state_digest"] == whole["state_digest"]


def test_inputs_that_moved_are_the_same_inputs(stopped):
    shutil.move(stopped / "base", stopped / "elsewhere")
    shutil.move(stopped / "things.csv", stopped / "table.csv")
    set_recipe(model={"name": str(stopped / "elsewhere")}, task={"path": str(stopped / "table.csv")})(stopped)
    set_recipe(run={"method": "another name"})(stopped)
    assert resume(stopped / "run", MACHINE, NOTHING)["rounds"] == 3


def test_signals_that_were_altered_are_not_read_back(stopped):
    path = stopped / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["signals"] = dict.fromkeys(rows[2]["signals"], 0.0)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows).ljust(path.stat().st_size))
    for act in (lambda: resume(stopped / "run", MACHINE, NOTHING), lambda: metrics_of(stopped / "run")):
        with pytest.raises(RunStoreError, match=r"metrics.jsonl is damaged or was altered since it was written, and"):
            act()


@pytest.mark.parametrize("change", [set_config, swap_tokens])
def test_a_trajectory_is_not_replayed_onto_a_base_with_another_function(change, stopped, tmp_path):
    change(stopped)
    with pytest.raises(DigestMismatch, match=r"changed since the trajectory began: (model config|tokenizer) \("):
        exported(stopped / "run", tmp_path / "tuned", None, None, merge=False)
    with pytest.raises(DigestMismatch, match="changed since the trajectory began"):
        evaluated(str(stopped / "run"))
    assert not (tmp_path / "tuned").exists()


def test_a_replay_needs_no_data(stopped, tmp_path):
    (stopped / "things.csv").unlink()
    assert exported(stopped / "run", tmp_path / "tuned", None, None, merge=False)["rounds"] == 2


def test_a_run_is_not_evaluated_on_other_test_examples_unless_asked(stopped):
    made = assemble(run_store.recipe_of(stopped / "run"), MACHINE)
    path, thing = stopped / "things.csv", made.task.test[0].body
    path.write_text(path.read_text().replace(f"{thing},", "another thing,"))
    with pytest.raises(DigestMismatch, match=r"test examples \(.*put the task's files back"):
        evaluated(str(stopped / "run"))
    assert evaluated(str(stopped / "run"), None, {"task": {"max_eval": 3}})["examples"] == 3


def test_inspect_shows_the_parts_and_versions(stopped):
    found, header = described(stopped / "run"), run_store.trajectory_of(stopped / "run").header
    assert found["inputs"] == header.inputs and header.inputs.keys() == NOT_PRIVATE
    assert found["versions"] == header.versions and {"seedtune", "torch", "transformers"} <= header.versions.keys()


def test_another_version_is_said_and_the_run_goes_on(stopped, monkeypatch):
    monkeypatch.setattr(experiment, "library_versions", lambda recipe: {"torch": "99.0"})
    said = []
    assert resume(stopped / "run", MACHINE, NOTHING, said.append)["rounds"] == 3
    (line,) = [line for line in said if line.startswith("versions have changed: ")]
    assert "torch " in line and "-> 99.0" in line and line.endswith("losses may differ in their last bits from here on")


def test_versions_that_agree_are_not_mentioned():
    assert describe_versions({"torch": "2"}, {"torch": "2", "numpy": "3"}) == ""
    assert describe_versions({"torch": "2"}, {}).startswith("versions have changed: torch 2 -> none; ")


def encoded(*lengths: int, label: int | None = 1) -> EncodedSet:
    empty = np.zeros(0, np.int64)
    examples = tuple(Encoded(np.arange(n), empty, label, n) for n in lengths)
    return EncodedSet(examples, (np.array([3]),), "causal", 0, 0)


def test_a_digest_of_examples_covers_tokens_labels_order_and_who_has_them():
    data, groups = encoded(3, 4, 5), [np.array([0, 1]), np.array([2])]
    found = {digest_examples(data, groups)}
    found.add(digest_examples(data, [np.array([0]), np.array([1, 2])]))
    found.add(digest_examples(data, [np.array([1, 0]), np.array([2])]))
    found.add(digest_examples(encoded(3, 4, 5, label=0), groups))
    found.add(digest_examples(encoded(3, 4, 6), groups))
    found.add(digest_examples(replace(data, answers=(np.array([4]),)), groups))
    found.add(
        digest_examples(replace(data, examples=(replace(data.examples[0], answer_at=1), *data.examples[1:])), groups)
    )
    found.add(digest_examples(data, groups, b"a secret"))
    assert len(found) == 8 and digest_examples(data, groups) in found


def test_a_digest_of_a_recipe_covers_all_but_places_and_names(tiny_recipe):
    settings = tiny_recipe()
    same = tiny_recipe(model={"name": "elsewhere"}, task={"path": "moved.csv"}, run={"method": "x"})
    assert digest_recipe(settings) == digest_recipe(same)
    assert digest_recipe(settings) != digest_recipe(tiny_recipe(run={"num_threads": 2}))


def test_parts_that_differ_are_all_named_with_both_digests_and_what_to_do():
    with pytest.raises(DigestMismatch) as caught:
        check_inputs({"recipe": "a", "tokenizer": "b", "answers": "c"}, {"recipe": "x", "tokenizer": "b", "new": "d"})
    assert str(caught.value) == (
        "changed since the trajectory began: recipe (x, recorded a), answers (None, recorded c), new (d, recorded "
        "None): put recipe.json back and put the task's answers back, or start another run"
    )
    with pytest.raises(DigestMismatch, match=r": new \(d, recorded None\): start another run$"):
        check_inputs({}, {"new": "d"})
    check_inputs({"recipe": "a"}, {"recipe": "x"}, ("tokenizer",))


def test_the_same_base_has_the_same_parts_however_its_configuration_is_written(tiny_recipe, tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    edit_json(copy / "config.json", lambda values: {**dict(reversed(values.items())), "transformers_version": "9"})
    one, other = (tiny_recipe(model={"name": str(folder)}).model for folder in (tiny_model, copy))
    model = assemble(tiny_recipe(), MACHINE).model
    assert digest_base(one, model) == digest_base(other, model)


def test_a_tokenizer_without_its_file_is_serialized(tiny_recipe, tiny_model, tmp_path):
    model = assemble(tiny_recipe(), MACHINE).model
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    config = tiny_recipe(model={"name": str(copy)}).model
    found = digest_base(config, model)["tokenizer"]
    model.tokenizer(["a b", "c"], padding=True, truncation=True, max_length=1)
    assert digest_base(config, model)["tokenizer"] == found
    model.tokenizer.add_tokens(["new"])
    assert digest_base(config, model)["tokenizer"] != found


# What travels of private data.

PRIVATE = {
    "federation": {"weighting": "equal"},
    "privacy": {"unit": "example", "clip": 1.0, "noise": "local", "noise_multiplier": 1.0},
}


def test_the_examples_of_a_private_run_are_keyed_by_its_secret_and_told_to_no_node(tiny_recipe):
    pytest.importorskip("dp_accounting")
    settings = tiny_recipe(**PRIVATE)
    one, other = (assemble(settings, MACHINE, secret=bytes([i]) * 32) for i in (1, 2))
    plain = assemble(tiny_recipe(), MACHINE)
    digests = {made.header.inputs["training examples"] for made in (one, other, plain)}
    assert len(digests) == 3
    assert "training examples" not in assemble(settings, MACHINE).header.inputs  # a node has no secret
    facts = hello_of(one, bytes(16)).facts
    assert not {"training examples", "test examples"} & facts.keys() and "recipe" in facts
    assert not digests & set(facts.values())


def test_a_private_run_is_continued_and_its_examples_are_compared(stopped, tmp_path):
    pytest.importorskip("dp_accounting")
    settings = tiny_runs.recipe(tmp_path / "base", tmp_path / "things.csv", **PRIVATE)
    for name in ("same", "changed"):
        with pytest.raises(KeyboardInterrupt):
            run(settings, MACHINE, tmp_path / name, StopAfter(1))
    assert resume(tmp_path / "same", MACHINE, NOTHING)["rounds"] == 3
    change_word(stopped)
    with pytest.raises(DigestMismatch, match=r"training examples \("):
        resume(tmp_path / "changed", MACHINE, NOTHING)


def test_where_nodes_have_examples_of_their_own_none_are_in_the_header_or_the_hello(tiny_recipe):
    made = assemble(tiny_recipe(task={"training": "nodes"}), MACHINE)
    assert made.header.inputs.keys() == NOT_PRIVATE - {"training examples"}
    shared = share_inputs(made.recipe, made.header.inputs)
    assert shared.keys() == {"recipe", "model config", "tokenizer", "answers"}
    own = assemble(tiny_recipe(task={"training": "nodes"}), MACHINE, own=(0, 2))
    assert own.header.inputs == shared
