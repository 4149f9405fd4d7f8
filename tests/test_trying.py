"""Models tried out: evaluated class by class, asked to write."""

import io
import json
import math

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import MACHINE, NOTHING, save_task

from seedtune import trying
from seedtune.data.batches import batch_of
from seedtune.errors import DataError, ModelError
from seedtune.experiment import run
from seedtune.inspection import exported
from seedtune.models.evaluation import Evaluation, evaluate
from seedtune.models.objective import scores
from seedtune.run_store import summary_of, trajectory_of
from seedtune.trying import evaluated, written


def test_a_run_is_evaluated_where_it_stands(ended):
    found, summary = evaluated(str(ended)), summary_of(ended)
    assert {name: found[name] for name in ("loss", "accuracy", "state_digest", "rounds")} == {
        name: summary[name] for name in ("loss", "accuracy", "state_digest", "rounds")
    }
    assert found["examples"] == 14 and 0 < found["truncated_examples"] <= 14 and found["model"] == "llama"


def test_a_run_is_evaluated_on_another_task_without_its_own_settings(ended):
    found = evaluated(str(ended), "stdlib-topics", {"task": {"max_eval": 12}})
    assert found["task"] == "stdlib-topics" and found["examples"] == 12
    assert found["state_digest"] == summary_of(ended)["state_digest"]


def test_a_model_is_evaluated_as_it_is(tiny_recipe, tiny_model, tiny_table, ended):
    found = evaluated(str(tiny_model), None, {"task": tiny_recipe(task={"max_tokens": 5}).task.model_dump()})
    summary = summary_of(ended)
    assert found["loss"] == summary["zero_shot_loss"] and found["accuracy"] == summary["zero_shot_accuracy"]
    assert "rounds" not in found


def test_evaluation_deals_no_examples_to_clients(tiny_recipe, tiny_model, tmp_path):
    few = save_task(tmp_path / "few.csv", num_rows=8)
    task = tiny_recipe(task={"path": str(few)}).task.model_dump()
    assert evaluated(str(tiny_model), None, {"task": task, "federation": {"min_replies": 1}})["examples"] >= 1
    with pytest.raises(DataError, match="unknown task 'sst-2': did you mean 'sst2'"):
        evaluated(str(tiny_model), "sst-2")


def test_an_evaluation_that_is_not_finite_is_null(tiny_recipe, tiny_model, monkeypatch):
    nan = Evaluation(math.nan, None, 3)
    monkeypatch.setattr(trying.Experiment, "evaluate", lambda self: nan)
    found = evaluated(str(tiny_model), None, {"task": tiny_recipe().task.model_dump()})
    assert found["loss"] is None and found["perplexity"] is None


def test_the_confusion_matrix_counts_what_each_example_was_taken_for(tiny_recipe):
    made = trying.assemble(tiny_recipe(), MACHINE)
    found, expected = evaluate(made.model, made.test), np.zeros((3, 3), int)
    for i in range(len(made.test)):
        batch = batch_of(made.test, [i])
        expected[int(batch.labels), int(scores(made.model, batch).argmax())] += 1
    assert np.array(found.confusion).tolist() == expected.tolist() and expected.sum() == found.num_examples
    assert found.accuracy == np.trace(expected) / expected.sum()


def test_classes_are_told_by_precision_recall_and_what_they_are_taken_for():
    counts = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    one, two, three = (trying._class(name, i, counts, ("a", "b", "c")) for i, name in enumerate("abc"))
    assert (one["precision"], one["recall"], one["f1"], one["mistaken_for"]) == (3 / 5, 3 / 4, 6 / 9, "b")
    assert (two["precision"], two["recall"], two["mistaken_for"]) == (2 / 3, 1 / 2, "a")
    assert three == {"class": "c", "examples": 0, "precision": None, "recall": None, "f1": None, "mistaken_for": None}


def test_evaluate_shows_classes_and_their_confusion(seedtune, ended):
    found = json.loads(seedtune("evaluate", ended, "--json").out)
    assert sum(map(sum, found["confusion"])) == found["examples"] == sum(row["examples"] for row in found["classes"])
    shown = seedtune("evaluate", ended).out
    assert "most often taken for" in shown
    for number, (row, counts) in enumerate(zip(found["classes"], found["confusion"], strict=True), start=1):
        line = next(line for line in shown.splitlines() if line.startswith(f"{number} {row['class']}"))
        assert line.split()[-3:] == list(map(str, counts))


def test_a_text_task_has_no_classes():
    made = Evaluation(1.0, None, 3)
    assert trying._by_class(None, made) == {}


def test_a_run_writes_on_from_a_prompt_with_its_tuned_weights(seedtune, ended, tiny_model):
    found = written(str(ended), "the red thing", 5)
    assert found["rounds"] == 3 and 0 <= found["new_tokens"] <= 5 and found["prompt_tokens"] >= 1
    assert seedtune("generate", ended, "the red thing", "--tokens", 5).out.strip() == found["text"].strip()
    plain = json.loads(seedtune("generate", tiny_model, "the red thing", "--tokens", "5", "--json").out)
    assert "rounds" not in plain and plain["model"] == "llama"
    assert written(str(tiny_model), "the red thing", 5) == plain == written(str(tiny_model), "the red thing", 5)


def test_the_starter_writes_and_reads_its_prompt_from_standard_input(seedtune, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Return the number of"))
    piped = seedtune("generate", "starter", "-", "--tokens", 6)
    assert piped.code == 0 and piped.out.strip()
    assert piped.out == seedtune("generate", "starter", "Return the number of", "--tokens", 6).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("starter", ""), "error: a prompt of 0 tokens was given to write on from"),
        (("no-such-folder", "x"), "error: "),
        (("starter", "x", "--tokens", "0"), "error: "),
    ],
)
def test_what_cannot_be_written(seedtune, arguments, message):
    refused = seedtune("generate", *arguments)
    assert refused.code == 2 and refused.err.startswith(message) and refused.err.count("\n") == 1


def test_a_base_that_moved_is_named(ended, tiny_model, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(tiny_model)
    assert written(str(ended), "the", 3, base=str(moved))["text"] == written(str(ended), "the", 3)["text"]
    with pytest.raises(ModelError):
        written(str(ended), "the", 3, base=str(tmp_path / "nowhere"))


# What replay wrote, evaluated.


def exported_from(run_, folder, **merge):
    return str(folder), exported(run_, folder, None, None, merge.get("merge", False))


def test_what_replay_wrote_has_the_state_digest_and_the_losses_of_its_run(ended, tiny_recipe, tmp_path):
    tuned, stands = exported_from(ended, tmp_path / "tuned")
    task = tiny_recipe(task={"max_tokens": 5}).task.model_dump()
    found, of_run = evaluated(tuned, None, {"task": task}), evaluated(str(ended))
    assert (
        found["state_digest"] == stands["state_digest"] == of_run["state_digest"] == summary_of(ended)["state_digest"]
    )
    assert {**found, "model": ""} == {**of_run, "model": ""} and found["rounds"] == 3
    origin = json.loads((tmp_path / "tuned" / "seedtune.json").read_text())
    assert origin["base"] == "llama" and origin["rounds"] == 3 and origin["state_digest"] == stands["state_digest"]


@pytest.mark.parametrize("model", [{"trainable": ["*.mlp.*"]}, {"dtype": "bfloat16"}])
def test_a_part_of_the_tensors_and_16_bits_keep_their_digest(model, tiny_recipe, tmp_path):
    settings = tiny_recipe(model=model, local={"perturbation_scale": 0.1})
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    tuned, _ = exported_from(tmp_path / "run", tmp_path / "tuned")
    found = evaluated(tuned, None, {"task": settings.task.model_dump()})
    assert (found["state_digest"], found["loss"]) == (summary["state_digest"], summary["loss"])


def test_a_merged_model_has_no_state_digest_since_its_tuned_tensors_are_gone(tiny_recipe, tmp_path):
    settings = tiny_recipe(model={"adapter": "lora", "lora_targets": ["q_proj"]})
    summary = run(settings, MACHINE, tmp_path / "run", NOTHING)
    tuned, stands = exported_from(tmp_path / "run", tmp_path / "tuned", merge=True)
    assert stands["state_digest"] == summary["state_digest"]
    found = evaluated(tuned, None, {"task": settings.task.model_dump()})
    assert found["state_digest"] is None and found["loss"] == pytest.approx(summary["loss"], rel=1e-4)


def test_weights_that_were_altered_after_an_export_are_not_taken_for_the_runs(ended, tiny_recipe, tmp_path):
    tuned, _ = exported_from(ended, tmp_path / "tuned")
    task = {"task": tiny_recipe().task.model_dump()}
    assert evaluated(tuned, None, task, {"model": {"trainable": ["*.mlp.*"]}})["state_digest"] is None
    path = tmp_path / "tuned" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"seedtune.json says state digest .* altered since .* delete seedtune.json"):
        evaluated(tuned, None, task)
    (tmp_path / "tuned" / "seedtune.json").write_text("[]")
    with pytest.raises(ModelError, match=r"its seedtune.json is damaged: delete it, or export the model again"):
        evaluated(tuned, None, task)
    (tmp_path / "tuned" / "seedtune.json").unlink()
    assert "state_digest" not in evaluated(tuned, None, task)


def test_a_base_has_the_digest_that_a_header_on_it_records(tiny_model, tiny_recipe, ended):
    found = evaluated(str(tiny_model), None, {"task": tiny_recipe().task.model_dump()})
    assert found["base_digest"] == trajectory_of(ended).header.base_digest and "state_digest" not in found
