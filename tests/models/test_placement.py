"""A GPU that is not there, or that a setting cannot use, is refused in one line before anything is loaded."""

import pytest
import torch

from seedtune.config import Machine
from seedtune.errors import ConfigError
from seedtune.models.placement import device_of, slowness
from seedtune.sections import ModelConfig

PACKED = ModelConfig(adapter="lora", quantisation="4bit")


@pytest.fixture
def gpus(monkeypatch):
    """A torch that was built with CUDA and finds this many GPUs; None: one built without."""

    def found(number: int | None) -> None:
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: number is not None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(number))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number or 0)

    return found


@pytest.mark.parametrize("config", [ModelConfig(), PACKED])
def test_the_cpu_is_always_there(gpus, config):
    gpus(None)
    assert device_of(Machine(kernel="compiled"), config) == torch.device("cpu")


@pytest.mark.parametrize("is_supported", [True, False])
def test_bfloat16_is_said_to_be_slow_where_the_processor_cannot_multiply_it(monkeypatch, is_supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_supported)
    cpu, half = torch.device("cpu"), ModelConfig(dtype="bfloat16")
    assert slowness(ModelConfig(), cpu) is None and slowness(half, torch.device("cuda")) is None
    assert is_supported == (slowness(half, cpu) is None)


def test_gpus_that_are_there(gpus):
    gpus(2)
    assert device_of(Machine(device="cuda"), ModelConfig()) == torch.device("cuda")
    assert device_of(Machine(device="cuda:1", kernel="torch"), ModelConfig()) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("number", "machine", "config", "reason"),
    [
        (None, Machine(device="cuda"), ModelConfig(), f"'cuda': this torch ({torch.__version__}) has no CUDA: install "
         "a CUDA build of torch"),
        (0, Machine(device="cuda:1"), ModelConfig(), "'cuda:1': torch finds no GPU: look at its driver"),
        (1, Machine(device="cuda:1"), ModelConfig(), "'cuda:1': torch finds cuda:0 alone: choose from there"),
        (2, Machine(device="cuda:2"), ModelConfig(), "'cuda:2': torch finds cuda:0 to cuda:1 alone: choose from there"),
        (1, Machine(device="cuda"), PACKED, "'cuda': model.quantisation is '4bit', and bases are packed and decoded on "
         "the CPU: set it to 'none'"),
        (1, Machine(device="cuda", kernel="compiled"), ModelConfig(), "'cuda': kernel 'compiled' works on the CPU: "
         "choose 'auto' or 'torch'"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused(gpus, number, machine, config, reason):
    gpus(number)
    with pytest.raises(ConfigError) as refused:
        device_of(machine, config)
    assert str(refused.value) == f"--device {reason}, or use --device cpu"
