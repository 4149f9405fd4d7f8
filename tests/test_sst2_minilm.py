"""A real encoder, a real task: MiniLM with a head and LoRA, tuned on SST-2 by federated forward passes."""

from pathlib import Path

import pytest

from seedtune.config import Machine
from seedtune.experiment import run
from seedtune.recipe_text import build


@pytest.mark.long
def test_federated_lora_steps_lower_held_out_loss(shared_data: Path, tmp_path: Path) -> None:
    recipe = build(
        {
            "model": {
                "name": str(shared_data / "models" / "minilm-l6"),
                "adapter": "lora",
                "label_descriptions": ["a terrible, boring and bad movie", "a great, moving and wonderful movie"],
            },
            "task": {
                "name": "sst2",
                "path": str(shared_data / "tasks" / "sst2"),
                "max_train": 2000,
                "max_eval": 300,
                "max_tokens": 32,
            },
            "partition": {"num_clients": 4},
            "federation": {"num_rounds": 24, "batch_size": 16},
            "local": {"learning_rate": 2e-2, "schedule": "linear"},
            "run": {"eval_every": 24},
        }
    )
    summary = run(recipe, Machine(), tmp_path / "run", lambda *_: None)
    assert summary["forwards"] == 24 * 4 * 2
    assert summary["loss"] < summary["zero_shot_loss"] - 0.003  # 0.550 to 0.545 where this was written
