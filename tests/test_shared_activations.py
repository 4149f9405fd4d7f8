"""Runs that share what frozen layers gave end in the same weights, and compute those layers once."""

import pytest
from tiny_runs import MACHINE, NOTHING

from seedtune.experiment import run
from seedtune.keeping import shared_activations

NORM = {"trainable": ["model.norm.weight"]}
LAST_MLP = {"trainable": ["model.layers.1.mlp.up_proj.weight"]}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def summaries(tiny_recipe, tmp_path):
    """Returns summaries of runs, one a model section and seed, each in a folder of its own."""

    def made(name: str, *runs: tuple[dict, int], machine=MACHINE) -> list[dict]:
        recipes = [tiny_recipe(model=model, run={"seed": seed}) for model, seed in runs]
        folders = (tmp_path / f"{name}{place}" for place in range(len(runs)))
        return [run(recipe, machine, folder, NOTHING) for recipe, folder in zip(recipes, folders, strict=True)]

    return made


def sequences(found: list[dict]) -> list[int]:
    return [summary["kept_activations"]["sequences"] for summary in found]


@pytest.mark.parametrize("memory", [2**30, 500], ids=["memory", "spilled"])
def test_digests_and_losses_are_those_of_runs_alone(summaries, memory):
    machine = MACHINE.model_copy(update={"activation_memory": memory})
    wanted = [(NORM, 1), (LAST_MLP, 1), (NORM, 2)]
    alone = summaries("alone", *wanted)
    with shared_activations():
        together = summaries("together", *wanted, machine=machine)
    for name in ("state_digest", "loss", "accuracy", "zero_shot_loss"):
        assert [one[name] for one in together] == [one[name] for one in alone], name
    assert (together[0]["kept_activations"]["bytes_on_disk"] > 0) == (memory == 500)


def test_frozen_layers_are_computed_by_the_first_run_alone(summaries):
    with shared_activations():
        first, again = summaries("shared", (NORM, 1), (NORM, 1))
    assert sequences([first, again]) == [sequences([first])[0], 0] and sequences([first])[0] > 0
    assert again["kept_activations"]["bytes_in_memory"] == first["kept_activations"]["bytes_in_memory"] > 0
    assert again["flops"] < first["flops"]


def test_another_model_dtype_or_number_of_frozen_layers_has_outputs_of_its_own(summaries):
    with shared_activations():
        found = summaries("apart", (NORM, 1), (LAST_MLP, 1), (NORM | {"dtype": "bfloat16"}, 1))
    assert min(sequences(found)) > 0


def test_nothing_is_shared_outside(summaries):
    with shared_activations():
        (first,) = summaries("inside", (NORM, 1))
    assert sequences(summaries("outside", (NORM, 1))) == sequences([first])
