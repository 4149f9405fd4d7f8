"""LoRA through PEFT: which modules are adapted, and a start that is drawn by key.

PEFT's own default start is kept in distribution's second moment: A has variance 1 / (3 in_features) (the uniform
Kaiming start of its `reset_lora_parameters` has the same), but Gaussian, because seedtune's keyed noise is; B is zero,
so the adapted model begins as the base. Adapters are float32 also on a 16-bit or a quantised base, without dropout; a
checkpoint's own classifier, kept trainable beside them, stays in the base's dtype.

Not here: merging and saving (`seedtune.models.export`).
"""

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from ..foreign_text import describe
from ..sections import ModelConfig
from .load_failure import first_line
from .source import Network, Source

Gaussian = Callable[[str, tuple[int, ...]], torch.Tensor]
"""Draws a tensor's start: (canonical name, shape) to float32 standard normal values, always the same for a name."""

_KEPT_WHOLE = ("classifier", "score")
"""A checkpoint's own head, which PEFT keeps trainable beside the adapters and so does not adapt."""


def attach(module: torch.nn.Module, config: ModelConfig, task_type: str | None) -> PeftModel:
    """`module` (changed in place) with adapters of `config.lora_rank` on the modules of `config.lora_targets`.

    `task_type` is PEFT's (CAUSAL_LM, SEQ_CLS, FEATURE_EXTRACTION or None); SEQ_CLS keeps the classifier trainable.

    Raises:
        ModelError: a target that matches no linear module, or no target and PEFT has no choice for this model.
    """
    linear = linear_names(module)
    _check_targets(config.lora_targets, linear)
    adapter = LoraConfig(
        task_type=task_type,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank, whole or not
        target_modules=_as_peft_writes(config.lora_targets),
        lora_dropout=0.0,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that GPT-2 stores its weights transposed is handled, not news
            return get_peft_model(module, adapter)
    except Exception as error:  # PEFT's own, or whatever a model's code makes of being adapted
        if not config.lora_targets and isinstance(error, ValueError):
            reason = f"is empty and PEFT has no choice for {type(module).__name__}"
        else:
            given = f"= {list(config.lora_targets)}" if config.lora_targets else "is empty"
            reason = f"{given}, and PEFT cannot adapt {type(module).__name__} so: {describe(error)}"
        kept = _KEPT_WHOLE if task_type == "SEQ_CLS" else ()
        endings = ((name, name.rpartition(".")[2]) for name in linear)
        possible = [name for name, last in endings if repr(last) not in str(error) and last not in kept]  # PEFT's words
        raise ModelError(f"model.lora_targets {reason}: name modules to adapt, such as {_endings(possible)}") from error


def attach_saved(module: torch.nn.Module, source: Source) -> PeftModel:
    """Return `module` (changed in place) under the adapter that lies in the folder `source.adapter`.

    Raises:
        ModelError: it does not fit this base, or cannot be read.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            model = PeftModel.from_pretrained(module, source.adapter)
            _check_all_taken(model, Path(source.adapter))
            return model
        except Exception as error:  # shapes, names and settings of any version of PEFT
            reason = first_line(error)
            raise ModelError(
                f"adapter folder {source.name!r}: does not fit its base ({reason}): name the base that it was tuned "
                "on with --base"
            ) from error


def _check_all_taken(model: PeftModel, folder: Path) -> None:
    """PEFT passes over tensors of layers that the base does not have."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        num_saved = len(file.keys())
    num_taken = sum(is_adapter(name) for name, _ in model.named_parameters())
    if num_saved != num_taken:
        raise ValueError(f"it has {num_saved} tensors, and {num_taken} have a place")


@torch.no_grad()
def initialise(module: torch.nn.Module, gaussian: Gaussian) -> None:
    """Sets every lora_A to `gaussian` / sqrt(3 in_features) and every lora_B to zero."""
    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            parameter.copy_(gaussian(name, tuple(parameter.shape)) / math.sqrt(3 * parameter.shape[1]))
        elif ".lora_B." in name:
            parameter.zero_()


def is_adapter(name: str) -> bool:
    """Whether a parameter of a PEFT model belongs to the adapter: LoRA factors and the classifier kept beside them."""
    return ".lora_" in name or ".modules_to_save." in name


def linear_names(module: Network) -> list[str]:
    """Dotted names of the modules that LoRA can adapt here: linear layers, except the output head."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    kinds = (torch.nn.Linear, Conv1D)
    return [name for name, child in module.named_modules() if isinstance(child, kinds) and child is not head]


def _check_targets(targets: tuple[str, ...], linear: list[str]) -> None:
    for target in () if targets == ("all-linear",) else targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise ModelError(
                f"model.lora_targets: {target!r} matches no linear module (the output head cannot be adapted); "
                f"there are {_endings(linear)}, or 'all-linear' alone"
            )


def _as_peft_writes(targets: tuple[str, ...]) -> list[str] | str | None:
    return "all-linear" if targets == ("all-linear",) else list(targets) or None


def _endings(names: Iterable[str]) -> str:
    """The distinct last parts of dotted names, at most twelve, in order of appearance."""
    endings = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    return ", ".join(endings[:12]) + (", ..." if len(endings) > 12 else "")
