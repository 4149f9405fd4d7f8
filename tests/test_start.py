"""A run without a recipe, on any model and task: it ends better than it began, and says what was taken."""

import json

import pytest
from tiny_runs import save_encoder, save_model, save_task

from seedtune import presets

SMALL = ("--rounds", "6", "--set", "federation.batch_size=8", "--set", "task.max_eval=200")
TWO = ("--set", "partition.num_clients=2", "--set", "local.num_directions=2", "--set", "task.max_tokens=48")
NO_RECIPE = "no recipe was given, so 'start' is taken: "


def ran(seedtune, folder, *flags) -> tuple[str, dict]:
    result = seedtune("run", *SMALL, *flags, "--out", "run")
    assert (result.code, result.err) == (0, "")
    return result.out, json.loads((folder / "run" / "summary.json").read_text())


def test_it_says_what_is_taken_and_measured(seedtune, tmp_path):
    save_model(tmp_path / "model"), save_task(tmp_path / "rows.csv", 200)
    custom = ("template={thing} is", "path=rows.csv", "label_column=colour",
              'answers={red = " red", green = " green", blue = " blue"}')  # fmt: skip
    settings = [part for text in custom for part in ("--set", f"task.{text}")]
    out, summary = ran(seedtune, tmp_path, "--model", "model", "--task", "custom", *settings)
    lines = out.splitlines()
    assert lines[0] == NO_RECIPE + presets.names("recipes")["start"]
    assert lines[1] == "model.trainable = 'behind-layers': 32 numbers are tuned: model.norm.weight"
    assert lines[2].startswith("measured: perturbation scale ") and "learning rate" in lines[2]
    assert summary["loss"] < summary["zero_shot_loss"] and summary["backprop_steps"] == 0
    state = summary["state_digest"]
    assert seedtune("replay", "run", "--out", "tuned").out.endswith(f"state digest {state}\n")


def test_a_run_that_is_refused_says_nothing_else(seedtune):
    result = seedtune("run", "--model", "./gone", "--task", "sst2")
    assert (result.code, result.out) == (2, "") and len(result.err.splitlines()) == 1


def test_an_encoder_gets_a_head_and_tunes_it(seedtune, tmp_path):
    save_encoder(tmp_path / "model")
    out, summary = ran(seedtune, tmp_path, "--model", "model", "--task", "stdlib-topics")
    assert "numbers are tuned: head.bias, head.weight" in out
    assert summary["loss"] < summary["zero_shot_loss"]


@pytest.mark.long
@pytest.mark.parametrize("model, task, path", [
    ("minilm-l6", "sst2", "sst2"), ("stories260k", "plain-text", "tinyshakespeare"),
])  # fmt: skip
def test_a_real_model_on_a_real_task_ends_better_than_it_began(seedtune, tmp_path, shared_data, model, task, path):
    data = ("--set", f"task.path={shared_data / 'tasks' / path}", "--set", "task.max_tokens=16")
    flags = ("--model", shared_data / "models" / model, "--task", task, *data, "--rounds", "10")
    _, summary = ran(seedtune, tmp_path, *flags)
    assert summary["loss"] < summary["zero_shot_loss"] - 0.005


def test_sixteen_bits_that_do_not_move_are_said_in_the_first_round(seedtune, tmp_path):
    save_model(tmp_path / "model")
    still = ("--set", "model.dtype=bfloat16", "--set", "local.perturbation_scale=1e-4")
    flags = ("--model", "model", "--task", "stdlib-topics", "--rounds", "2", "--set", "task.max_eval=16", *TWO)
    said = seedtune("run", *SMALL, *flags, *still, "--set", "local.learning_rate=1e-3", "--out", "still")
    assert said.out.count("every projected gradient of the first round is exactly 0: at local.perturbation_scale") == 1
    assert "every projected gradient" not in ran(seedtune, tmp_path, *flags, "--set", "model.dtype=bfloat16")[0]
