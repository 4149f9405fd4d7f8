"""Whole runs on a GPU: what they record rebuilds their weights to the bit, there and on a CPU."""

import pytest

RECIPES = {
    "scalars": {"federation": {"local_steps": 2}, "local": {"num_directions": 2, "distribution": "gaussian"}},
    "shared keys, one by one": {"federation": {"keys": "shared"}, "local": {"evaluations": "one-by-one"}},
    "16 bits": {"model": {"dtype": "bfloat16"}, "federation": {"local_steps": 2}},
    "adapters": {"model": {"adapter": "lora"}, "local": {"num_directions": 4}},
    "split": {"local": {"estimator": "split"}, "split": {"num_suffix_directions": 2}},
    "weights": {"federation": {"upload": "weights", "local_steps": 2}},
    "backpropagation": {"federation": {"upload": "weights"}, "local": {"order": "first", "optimizer": "adamw"}},
    "votes": {"federation": {"keys": "shared", "aggregation": "sign-vote", "weighting": "equal"}},
}


@pytest.fixture
def recipe_of(gpu, tmp_path):
    """Makes a recipe over a tiny causal model and table."""
    import tiny_runs  # only here: it loads transformers, and the interpreter's checks do not come so far

    folder, table = tiny_runs.save_model(tmp_path / "llama"), tiny_runs.save_task(tmp_path / "things.csv")
    return lambda **over: tiny_runs.recipe(folder, table, **over)


@pytest.fixture
def there(gpu):
    from seedtune.config import Machine

    return Machine(device=gpu.type)


def digest_on(machine, folder) -> str:
    """Of the weights that the run's trajectory rebuilds there; replay compares it with the recorded one too."""
    from seedtune import assembly, run_store

    state = run_store.trajectory_of(folder)
    found = assembly.assemble(run_store.recipe_of(folder), machine, state.header.initial)
    assert {tensor.device.type for tensor in found.site.replica.weights.values()} == {machine.device}
    assembly.restore(found, state, lambda round_: run_store.snapshot_of(folder, round_))
    return found.site.replica.digest.hex()


@pytest.mark.parametrize("over", RECIPES.values(), ids=RECIPES)
def test_a_run_is_rebuilt_there_and_on_a_cpu(recipe_of, there, tmp_path, over):
    from seedtune import experiment
    from seedtune.config import Machine
    from seedtune.inspection import evaluated, exported

    summary = experiment.run(recipe_of(**over), there, tmp_path / "run", lambda *_: None)
    assert summary["rounds"] == 3 and summary["skipped_steps"] == 0
    assert digest_on(there, tmp_path / "run") == digest_on(Machine(), tmp_path / "run") == summary["state_digest"]
    assert exported(tmp_path / "run", tmp_path / "tuned", None, None, False)["state_digest"] == summary["state_digest"]
    assert evaluated(str(tmp_path / "run"))["loss"] == pytest.approx(summary["loss"], rel=0.05)


@pytest.mark.parametrize("began", ["cpu", "cuda"])
def test_a_run_that_was_stopped_goes_on_on_the_other_device(recipe_of, there, tmp_path, began):
    import tiny_runs

    from seedtune import experiment
    from seedtune.config import Machine

    first, second = (there, Machine()) if began == "cuda" else (Machine(), there)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(recipe_of(), first, tmp_path / "run", tiny_runs.StopAfter(2))
    summary = experiment.resume(tmp_path / "run", second, lambda *_: None)
    assert digest_on(first, tmp_path / "run") == digest_on(second, tmp_path / "run") == summary["state_digest"]


def test_an_encoder_s_head_starts_as_on_a_cpu(recipe_of, there, tmp_path):
    import tiny_runs

    from seedtune import assembly
    from seedtune.config import Machine

    texts = [f"a thing that is {word}" for word in tiny_runs.WORDS]
    model = {"name": str(tiny_runs.save_encoder(tmp_path / "encoder")), "label_descriptions": texts}
    for head in ("probe", "labels"):
        recipe = recipe_of(model=model | {"head": head})
        found, known = (assembly.assemble(recipe, machine).header.initial for machine in (there, Machine()))
        assert found.keys() == known.keys() and all(tensor.is_cpu for tensor in found.values())
        for name, tensor in known.items():
            assert (found[name] - tensor).norm() <= 0.01 * tensor.norm(), name


def test_text_is_generated_there(recipe_of, there):
    from seedtune import assembly
    from seedtune.models.generate import generate

    model = assembly.assemble(recipe_of(), there).model
    assert [len(answer) <= 4 for answer in generate(model, [[5, 6, 7], [8]], 4)] == [True, True]
