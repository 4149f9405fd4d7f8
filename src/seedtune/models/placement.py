"""Which device a model computes on: the one that the machine's settings name, checked before anything is loaded; and
what a user should know of a dtype there.

Not here: batches, which are moved to the model where they are made (`data.batches.Batch.to`).
"""

import torch

from ..config import Machine
from ..errors import ConfigError
from ..sections import ModelConfig


def device_of(machine: Machine, config: ModelConfig) -> torch.device:
    """
    Raises:
        ConfigError: a GPU that torch does not find, or one with a quantised base or a kernel that needs the CPU.
    """
    if machine.device == "cpu":
        return torch.device("cpu")
    if not torch.backends.cuda.is_built():
        raise _refused(machine, f"this torch ({torch.__version__}) has no CUDA: install a CUDA build of torch")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 0:
        raise _refused(machine, "torch finds no GPU: look at its driver")
    device = torch.device(machine.device)
    if (device.index or 0) >= num_gpus:
        known = "cuda:0" if num_gpus == 1 else f"cuda:0 to cuda:{num_gpus - 1}"
        raise _refused(machine, f"torch finds {known} alone: choose from there")
    if config.quantisation != "none":
        raise _refused(
            machine,
            f"model.quantisation is {config.quantisation!r}, and bases are packed and decoded on the CPU: set it to "
            "'none'",
        )
    if machine.kernel == "compiled":
        raise _refused(machine, "kernel 'compiled' works on the CPU: choose 'auto' or 'torch'")
    return device


def slowness(config: ModelConfig, device: torch.device) -> str | None:
    """A line for a model in bfloat16 on a processor that torch has no bfloat16 products for; None otherwise.

    Two forwards of OPT-125m then took 4 to 6 times as long as in float32 (`benchmarks.step`).
    """
    if config.dtype != "bfloat16" or device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "model.dtype: this processor multiplies bfloat16 matrices several times slower than float32 ones"


def _refused(machine: Machine, reason: str) -> ConfigError:
    return ConfigError(f"--device {machine.device!r}: {reason}, or use --device cpu")
