"""The tensors that a model reads behind its last layer and nowhere before: the group 'behind-layers' of trainable.

They are the last norm, an output head that is not tied to the embedding, a classification head. All layers before them
stay as they are, so these are computed once a batch however many directions are tried.
"""

import torch

from ..errors import ModelError
from ..sections import ModelConfig
from .blocks import cut_before, num_layers

NAME = "behind-layers"
_MOST_NAMES = 4


def resolve(module: torch.nn.Module, config: ModelConfig) -> tuple[ModelConfig, str]:
    """Replace the pattern 'behind-layers' in `config.trainable` by names; return the config and a line about them.

    Every tensor is taken, as the line says, where the model cannot be cut or reads no tensor of its own there. The line
    is empty where the pattern is not asked for. The names follow from the model's code and configuration alone.

    Cost: two forwards on three tokens, and one for each module before the layers.
    """
    if NAME not in config.trainable:
        return config, ""
    names, reason = _behind(module)
    patterns = tuple(_literal(name) for name in names) or ("*",)
    others = tuple(pattern for pattern in config.trainable if pattern != NAME)
    return config.model_copy(update={"trainable": (*patterns, *others)}), _line(module, names, reason)


def _behind(module: torch.nn.Module) -> tuple[list[str], str]:
    """The names, sorted; without any, the reason."""
    try:
        cut = cut_before(module, num_layers(module))
    except ModelError as error:
        return [], str(error).partition(": use ")[0]
    return sorted(cut.block2 - cut.unread), f"{type(module).__name__} reads no tensor of its own behind its last layer"


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _line(module: torch.nn.Module, names: list[str], reason: str) -> str:
    if not names:
        return f"model.trainable = '{NAME}': all tensors are tuned, since {reason}"
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    shown = ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else "")
    return f"model.trainable = '{NAME}': {sum(map(sizes.__getitem__, names))} numbers are tuned: {shown}"
