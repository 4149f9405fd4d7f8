"""A tuned LoRA adapter as a GGUF file, which llama.cpp puts on top of its own copy of the base.

The file says `general.type = "adapter"`, `adapter.type = "lora"` and `adapter.lora.alpha`, and holds two float32
tensors for each adapted weight: `blk.N.attn_q.weight.lora_a` [rank, in] and `.lora_b` [out, rank]. llama.cpp adds
alpha / rank * B A to the weight, as PEFT does.

Llama's query and key weights have their rows in another order in GGUF: a head's two halves, which transformers turns
against each other, lie there as pairs. So do the rows of their B. transformers undoes this when it reads a model.

Not here: whole models in GGUF, which llama.cpp's own converter makes of an exported folder.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from ..errors import ModelError
from . import lora
from .gguf_file import check_package
from .load import Tuned
from .source import Network

_PAIRED, _AS_IT_IS = True, False
_ARCHITECTURES = {
    "llama": ("llama", _PAIRED),
    "mistral": ("llama", _PAIRED),
    "qwen2": ("qwen2", _AS_IT_IS),
    "qwen3": ("qwen3", _AS_IT_IS),
    "gemma2": ("gemma2", _AS_IT_IS),
    "gemma3_text": ("gemma3", _AS_IT_IS),
    "phi3": ("phi3", _AS_IT_IS),
    "gpt2": ("gpt2", _AS_IT_IS),
}
"""transformers' model type to GGUF's architecture, and the order of rows of its query and key weights there."""


def check_new(path: Path) -> None:
    """
    Raises:
        ModelError: the package gguf is missing, there is something at `path` already, or it cannot be in that folder.
    """
    check_package(f"adapter {str(path)!r}")
    if path.exists():
        raise ModelError(f"adapter {str(path)!r}: exists already, and nothing is overwritten: give a new name")
    if path.parent.exists() and not path.parent.is_dir():
        raise ModelError(f"adapter {str(path)!r}: {str(path.parent)!r} is no folder: give a name in one")


def write_adapter(model: Tuned, path: Path) -> None:
    """Write the model's LoRA adapter to `path`, complete or not at all: beside it under another name, then renamed.

    Values are those of the PEFT adapter to the bit. Cost: one copy of the adapter in memory.

    Raises:
        ModelError: no LoRA, or one that GGUF cannot express; a model whose names GGUF does not have; a file that is
            there already or cannot be written.
    """
    check_new(path)
    architecture, is_paired = _architecture(model)
    layers, alpha = _layers(model), _alpha(model)
    tensors = dict(_tensors(model, layers, architecture, is_paired))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            written = Path(scratch) / "adapter.gguf"
            _write(written, architecture, alpha, tensors)
            os.replace(written, path)
    except OSError as error:
        raise ModelError(f"adapter {str(path)!r}: cannot be written ({error.strerror or error})") from None


def _architecture(model: Tuned) -> tuple[str, bool]:
    if model.adapter != "lora" or not isinstance(model.module, PeftModel):
        raise ModelError(
            "a GGUF adapter was asked for, and the model was tuned without LoRA: export a folder with --out, and "
            "convert it with llama.cpp"
        )
    if model.kind != "causal":
        raise ModelError(
            f"a GGUF adapter was asked for, and the model is {model.kind}, not causal: export it with --out"
        )
    model_type = model.module.config.model_type
    if model_type not in _ARCHITECTURES:
        raise ModelError(
            f"a GGUF adapter was asked for, and the order of {model_type!r} weights in GGUF is known for "
            f"{', '.join(_ARCHITECTURES)} alone: export a PEFT adapter with --out, and convert it with llama.cpp"
        )
    return _ARCHITECTURES[model_type]


def _layers(model: Tuned) -> dict[str, LoraLayer]:
    """The adapted modules by their names in the base."""
    network: Network = model.module
    modules = network.get_base_model().named_modules()
    layers = {name: layer for name, layer in modules if isinstance(layer, LoraLayer) and len(layer.lora_A)}
    pairs = {id(factor) for layer in layers.values() for factor in _factors(layer)}
    others = [name for name, tensor in network.named_parameters() if lora.is_adapter(name) and id(tensor) not in pairs]
    if others:
        raise ModelError(
            f"a GGUF adapter holds pairs of A and B, and this one has {len(others)} other tensors, such as "
            f"{others[0]!r}: export it with --out"
        )
    return layers


def _factors(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank]."""
    (name,) = layer.active_adapters
    first, second = layer.lora_A[name], layer.lora_B[name]
    assert isinstance(first, torch.nn.Linear) and isinstance(second, torch.nn.Linear)  # of linear layers, all of them
    return first.weight, second.weight


def _alpha(model: Tuned) -> float:
    """The one number that, over a layer's rank, scales its product."""
    found = set()
    for layer in _layers(model).values():
        (name,) = layer.active_adapters
        found.add(float(np.float32(layer.scaling[name] * layer.r[name])))
    if len(found) != 1:
        raise ModelError(
            f"a GGUF adapter has one alpha, and the layers of this one have {len(found)}: export it with --out"
        )
    return found.pop()


def _tensors(
    model: Tuned, layers: dict[str, LoraLayer], architecture: str, is_paired: bool
) -> Iterator[tuple[str, np.ndarray]]:
    for name, layer in layers.items():
        first, second = (factor.detach().float().cpu().numpy() for factor in _factors(layer))
        weight = _name(name, architecture, model)
        if is_paired and name.endswith((".q_proj", ".k_proj")):
            second = _as_pairs(second, _num_heads(model, name))
        yield f"{weight}.weight.lora_a", first
        yield f"{weight}.weight.lora_b", second


def _name(name: str, architecture: str, model: Tuned) -> str:
    import gguf

    config: Network = model.module.config
    (key,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    found = gguf.get_tensor_name_map(key, config.num_hidden_layers).get_name(name)
    if found is None:
        raise ModelError(
            f"a GGUF adapter was asked for, and GGUF has no name for {name!r} of a {architecture} model: leave it out "
            "of model.lora_targets, or export a PEFT adapter with --out"
        )
    return found


def _num_heads(model: Tuned, name: str) -> int:
    config: Network = model.module.config
    return config.num_attention_heads if name.endswith(".q_proj") else config.num_key_value_heads


def _as_pairs(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """[heads * 2 * half, rank], each head's first half before its second, to each row beside its partner."""
    return np.ascontiguousarray(rows.reshape(num_heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape))


def _write(path: Path, architecture: str, alpha: float, tensors: dict[str, np.ndarray]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
