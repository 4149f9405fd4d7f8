"""Runs on a GGUF file, and everything that replay writes of them, used again."""

import shutil

import gguf
import pytest
import tiny_gguf
import tiny_runs
import torch
from tiny_runs import MACHINE, StopAfter, quiet, toml

from seedtune import run_store
from seedtune.errors import ConfigError, DigestMismatch, ModelError
from seedtune.experiment import resume, run
from seedtune.inspection import exported
from seedtune.models.gguf_file import file_digest
from seedtune.trying import evaluated, written

LORA = {"model": {"adapter": "lora", "lora_rank": 2, "lora_targets": ("q_proj", "k_proj", "v_proj")}}


@pytest.fixture
def base(tmp_path):
    return tiny_gguf.save(tmp_path / "tiny.gguf", tiny_gguf.module(), "Q8_0")


@pytest.fixture
def table(tmp_path):
    return tiny_runs.save_task(tmp_path / "table.csv")


def recipe(base, table, **over):
    return tiny_runs.recipe(base, table, **{**LORA, **over})


def lora_run(base, table, folder):
    return run(recipe(base, table, local={"learning_rate": 30.0}), MACHINE, folder, quiet)


def test_a_stopped_run_on_a_file_ends_as_a_whole_one(base, table, tmp_path):
    whole = lora_run(base, table, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe(base, table, local={"learning_rate": 30.0}), MACHINE, tmp_path / "stopped", StopAfter(2))
    assert resume(tmp_path / "stopped", MACHINE, quiet)["state_digest"] == whole["state_digest"]
    assert whole["model"] == "tiny.gguf"
    stands = exported(tmp_path / "whole", tmp_path / "tuned", None, None, merge=False)
    assert stands["state_digest"] == whole["state_digest"]


def test_a_run_writes_down_which_file_it_was(base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    assert run_store.recipe_of(tmp_path / "run").model.sha256 == file_digest(base)
    header = run_store.trajectory_of(tmp_path / "run").header
    assert (header.base, header.model["sha256"]) == ("tiny.gguf", file_digest(base))
    assert "base" not in header.model and str(tmp_path) not in str(header.model)


def test_another_file_of_the_same_name_is_refused_with_both_digests(base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    before = file_digest(base)
    other = tiny_gguf.save(base, tiny_gguf.module(), "F16")
    expected = (
        f"model {str(other)!r}: its file has sha256 {file_digest(other)}, and {before} is asked for (model.sha256, "
        "which a run writes down): give that file"
    )
    for action in (
        lambda: exported(tmp_path / "run", tmp_path / "tuned", None, None, merge=False),
        lambda: exported(tmp_path / "run/trajectory.seedtune", tmp_path / "tuned", str(other), None, merge=False),
        lambda: evaluated(str(tmp_path / "run")),
        lambda: written(str(tmp_path / "run"), "the sky"),
    ):
        with pytest.raises(ModelError) as caught:
            action()
        assert str(caught.value) == expected
    assert not (tmp_path / "tuned").exists()


def test_a_file_that_was_moved_is_named(base, table, tmp_path):
    summary = lora_run(base, table, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(base, tmp_path / "elsewhere" / "other.gguf")
    with pytest.raises(ModelError, match="there is no such folder or file"):
        exported(tmp_path / "run", tmp_path / "tuned", None, None, merge=False)
    with pytest.raises(ModelError, match=r"; if the base has moved, name it with --base$"):
        exported(tmp_path / "run/trajectory.seedtune", tmp_path / "tuned", None, None, merge=False)
    stands = exported(tmp_path / "run", tmp_path / "tuned", str(moved), None, merge=False)
    assert stands["state_digest"] == summary["state_digest"]
    assert evaluated(str(tmp_path / "run"), base=str(moved))["state_digest"] == summary["state_digest"]


def test_a_folder_in_the_place_of_a_file_is_refused_by_the_part(base, table, tmp_path):
    """Its weights are the same, and nothing says that its configuration and tokenizer are."""
    lora_run(base, table, tmp_path / "run")
    folder = tiny_gguf.save_folder(tmp_path / "folder", base, tiny_gguf.module())
    inputs = run_store.trajectory_of(tmp_path / "run").header.inputs
    assert inputs["base file"] == file_digest(base)[:32] and not {"model config", "tokenizer"} & inputs.keys()
    with pytest.raises(DigestMismatch) as caught:
        exported(tmp_path / "run", tmp_path / "no", str(folder), None, merge=False)
    message = str(caught.value)
    assert message.startswith(f"changed since the trajectory began: base file (None, recorded {inputs['base file']}), ")
    assert message.endswith("recorded None): give the base as that GGUF file, or start another run")
    other = tiny_runs.save_model(tmp_path / "other")
    with pytest.raises((DigestMismatch, ModelError)):
        exported(tmp_path / "run", tmp_path / "no", str(other), None, merge=False)
    assert not (tmp_path / "no").exists()


def test_files_beside_a_base_file_are_none_of_its_own(base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    exported(tmp_path / "run", tmp_path / "tuned", None, None, merge=False)


def test_the_tokenizer_of_an_adapter_on_a_file_is_pinned(base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "adapter", None, None, merge=False)
    run(tiny_runs.recipe(tmp_path / "adapter", table), MACHINE, tmp_path / "further", quiet)
    inputs = run_store.trajectory_of(tmp_path / "further").header.inputs
    assert {"base file", "tokenizer"} <= inputs.keys() and "model config" not in inputs
    path = tmp_path / "adapter" / "tokenizer.json"
    path.write_text(path.read_text().replace('"use_regex":true', '"use_regex":false').replace("\n", " \n"))
    with pytest.raises(DigestMismatch, match=r"began: tokenizer \(.*: put the base's tokenizer files back, or start"):
        exported(tmp_path / "further", tmp_path / "again", None, None, merge=False)


def test_all_that_replay_writes_is_evaluated_and_generates(base, table, tmp_path):
    summary, task = lora_run(base, table, tmp_path / "run"), {"task": recipe(base, table).task.model_dump()}
    exported(tmp_path / "run", tmp_path / "adapter", None, None, merge=False)
    exported(tmp_path / "run", tmp_path / "merged", None, None, merge=True)
    assert summary["loss"] != summary["zero_shot_loss"]
    assert evaluated(str(base), None, task)["loss"] == summary["zero_shot_loss"]
    assert evaluated(str(tmp_path / "adapter"), None, task)["loss"] == summary["loss"]
    assert evaluated(str(tmp_path / "merged"), None, task)["loss"] == pytest.approx(summary["loss"], abs=1e-5)
    texts = {written(str(tmp_path / name), "the sky is", 4)["text"] for name in ("run", "adapter", "merged")}
    assert len(texts) == 1
    assert written(str(base), "the sky is", 4)["model"] == "tiny.gguf"


def test_full_tuning_of_a_file_is_written_as_a_plain_folder(base, table, tmp_path):
    whole = tiny_runs.recipe(base, table, model={"trainable": ("model.norm.weight",)})
    summary = run(whole, MACHINE, tmp_path / "run", quiet)
    exported(tmp_path / "run", tmp_path / "tuned", None, None, merge=False)
    found = evaluated(str(tmp_path / "tuned"), None, {"task": whole.task.model_dump()})
    assert found["loss"] == summary["loss"]


def test_an_adapter_is_tuned_further(base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "adapter", None, None, merge=False)
    task = {"task": recipe(base, table).task.model_dump()}
    further = tiny_runs.recipe(tmp_path / "adapter", table, local={"learning_rate": 30.0})
    summary = run(further, MACHINE, tmp_path / "further", quiet)
    assert summary["model"] == "adapter"
    stands = exported(tmp_path / "further", tmp_path / "again", None, None, merge=False)
    assert stands["state_digest"] == summary["state_digest"]
    assert evaluated(str(tmp_path / "again"), None, task)["loss"] == summary["loss"]


def test_an_adapter_for_llama_cpp(seedtune, base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    result = seedtune("replay", "run", "--out", "tuned", "--gguf", "tuned.gguf")
    assert (result.code, result.err) == (0, "")
    assert "tuned and tuned.gguf: the model after 3 rounds, state digest " in result.out
    assert len(gguf.GGUFReader(tmp_path / "tuned.gguf").tensors) == 12
    alone = seedtune("replay", "run", "--gguf", "alone.gguf")
    assert alone.out.startswith("alone.gguf: the model after 3 rounds, state digest ")
    assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / "tuned.gguf").read_bytes()
    again = seedtune("replay", "run", "--out", "other", "--gguf", "alone.gguf")
    assert (again.code, again.err) == (
        2, "error: adapter 'alone.gguf': exists already, and nothing is overwritten: give a new name\n"
    )  # fmt: skip
    assert not (tmp_path / "other").exists()


def test_a_replay_that_names_nothing_to_write(base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        exported(tmp_path / "run", None, None, None, merge=False)
    assert str(caught.value) == "nothing to write was named: give --out FOLDER, --gguf FILE or both"


def test_the_command_takes_a_file_and_a_base(seedtune, base, table, tmp_path):
    lora_run(base, table, tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "adapter", None, None, merge=False)
    (tmp_path / "recipe.toml").write_text(toml(tiny_runs.values(tmp_path / "nowhere", table)))
    done = seedtune("run", "recipe.toml", "--model", "tiny.gguf", "--out", "second", "--rounds", "1")
    assert (done.code, done.err) == (0, "")
    moved = shutil.move(base, tmp_path / "moved.gguf")
    assert "its base is not found" in seedtune("generate", "adapter", "the sky").err
    assert seedtune("generate", "adapter", "the sky is", "--tokens", "2", "--base", moved).code == 0
    answers = f"task.answers={{{', '.join(f'{word} = ' + repr(' ' + word) for word in tiny_runs.WORDS)}}}"
    settings = [f"task.path={table}", "task.template=the {thing} is", "task.label_column=colour", answers]
    sets = [part for text in settings for part in ("--set", text)]
    found = seedtune("evaluate", "adapter", "--base", moved, "--task", "custom", *sets, "--json")
    assert (found.code, found.err) == (0, "")


def test_torch_needs_no_second_copy_of_a_file(base):
    """What the loader made is what the model holds: tied weights once."""
    from seedtune.assembly import initial_values
    from seedtune.models.load import load
    from seedtune.sections import ModelConfig

    model = load(ModelConfig(name=str(base)), None, initial_values(0)).module
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
