"""Model and batches are on the machine's device: what a model meets was sent there by the one function for it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny_runs
import torch
from tiny_runs import MACHINE, NOTHING

from seedtune import assembly, experiment, trying
from seedtune.config import Machine
from seedtune.data.batches import Batch, batch_of
from seedtune.errors import ConfigError
from seedtune.models import answer_head, objective

WEIGHTS = {"upload": "weights"}


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def sent(monkeypatch) -> set[int]:
    """The addresses of what was sent, which is copied for it; it fails where a model meets a tensor that was not."""
    addresses, kept, plain, read = set(), [], Batch.to, objective.cross_entropy

    def to(batch: Batch, device: torch.device) -> Batch:
        moved = plain(batch, device)
        moved = replace(moved, **{name: tensor.clone() for name, tensor in tensors_of(moved).items()})
        kept.append(moved)  # so that no other tensor gets its address
        addresses.update(tensor.data_ptr() for tensor in tensors_of(moved).values())
        return moved

    def check(*tensors: torch.Tensor | None) -> None:
        assert all(tensor is None or tensor.data_ptr() in addresses for tensor in tensors), "it was not sent"

    def meets(module, args, kwargs) -> None:
        assert not args
        check(kwargs["input_ids"], kwargs["attention_mask"])
        if (selection := answer_head._selection.get()) is not None:
            check(selection.rows, selection.columns, selection.candidates)

    def loaded(*args):
        model = plain_load(*args)
        reader = getattr(model.module, "encoder", model.module)  # a probe asks the encoder alone
        reader.register_forward_pre_hook(meets, with_kwargs=True)
        return model

    def compared(scores, targets, **options):
        check(targets)
        return read(scores, targets, **options)

    plain_load = assembly.load
    monkeypatch.setattr(Batch, "to", to)
    monkeypatch.setattr(assembly, "load", loaded)
    monkeypatch.setattr(objective, "cross_entropy", compared)
    monkeypatch.setattr("seedtune.models.evaluation.cross_entropy", compared)
    return addresses


RUNS = {
    "steps": {},
    "epochs": {"federation": WEIGHTS | {"local_epochs": 1, "batch_size": 5}},
    "backpropagation": {"federation": WEIGHTS, "local": {"order": "first"}, "baseline": {"num_steps": 2}},
    "held out": {"partition": {"heldout_fraction": 0.2}},
    "shared keys": {"federation": {"keys": "shared"}},
}


@pytest.mark.parametrize("over", RUNS.values(), ids=RUNS)
def test_a_run_s_model_meets_nothing_else(sent, tiny_recipe, tmp_path, over):
    over = over | {"local": {"evaluations": "one-by-one"} | over.get("local", {})}  # others try a model on tokens first
    experiment.run(tiny_recipe(**over), MACHINE, tmp_path / "run", NOTHING)
    assert sent


def test_nor_does_a_probe_s_encoder(sent, tiny_recipe, tmp_path):
    model = {"name": str(tiny_runs.save_encoder(tmp_path / "encoder")), "head": "probe"}
    site = assembly.assemble(tiny_recipe(model=model), MACHINE).site
    assert sent and set(site.header.initial) == {"head.weight", "head.bias"}


def test_a_tensor_that_was_not_sent_is_found_out(sent, tiny_recipe):
    """What these tests rest on."""
    run = assembly.assemble(tiny_recipe(), MACHINE)
    with pytest.raises(AssertionError, match="it was not sent"):
        run.site.loss(batch_of(run.train, [0, 1]))


def test_the_model_goes_to_the_machine_s_device_before_any_forward(tiny_recipe, monkeypatch):
    moves, asked, plain = [], torch.device("cpu", 0), torch.nn.Module.to

    def to(module: torch.nn.Module, device: torch.device):
        moves.append(device)
        return plain(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(assembly, "device_of", lambda machine, config: asked)
    assembly.assemble(tiny_recipe(), MACHINE)
    assert moves == [asked]


USES: dict[str, Callable] = {
    "run": lambda recipe, folder: experiment.run(recipe, Machine(device="cuda:77"), folder / "new", NOTHING),
    "resume": lambda recipe, folder: experiment.resume(folder / "run", Machine(device="cuda:77"), NOTHING),
    "evaluate": lambda recipe, folder: trying.evaluated(str(folder / "run"), machine=Machine(device="cuda:77")),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_device_that_is_not_there_is_refused(use, tiny_recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny_recipe(), MACHINE, tmp_path / "run", tiny_runs.StopAfter(1))
    with pytest.raises(ConfigError, match=r"--device 'cuda:77': .* or use --device cpu"):
        use(tiny_recipe(), tmp_path)
    assert not (tmp_path / "new").exists()
