"""An export loaded back as its users load it, and compared with the model that was tuned.

Plain transformers reads a whole model, PEFT an adapter on the base that its config names, and `export` says how a head
of ours is put on an encoder. The base itself, a folder or a GGUF file, is read as a run reads it. Two comparisons.
Tensors, by name: bit by bit, and merged ones within one rounding of W + B A. Logits of fixed token sequences: what
tensors do not show, such as a configuration that a loader reads in another way.

Cost: a second copy of the model in memory and on the processor, and a forward over 2 x 12 tokens with each. Not here:
what is written (`export`).
"""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from ..data.keyed import generator
from ..sections import ModelConfig
from .encoder import HEAD_FILE, EncoderWithHead
from .load import AUTO, Tuned, read_network
from .source import Network, find, quiet, read_config

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
MERGED_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-1, torch.bfloat16: 5e-1}
"""Root mean square of the logits' differences over that of the logits, by the dtype of the weights. Merged weights are
rounded anew: in 16 bits their tensors are what is compared closely, and the merge once more in float32."""
Logits = Callable[[torch.Tensor], torch.Tensor]
NUM_SEQUENCES, NUM_TOKENS = 2, 12
_KEY = 0x5EED
_MADE_UP = re.compile(r"(^|\.)pooler\.")
"""Tensors that `AutoModel` draws anew where an encoder was trained without them; no mean over tokens reads them."""
_ADAPTER = re.compile(r"\.(lora_\w+|original_module)\.")
_WRAPPER = re.compile(r"(\.base_layer)+\.|\.modules_to_save\.default\.")


def find_difference(model: Tuned, folder: Path, merged: bool) -> str:
    """Return in which way the model in `folder` is not `model`, in a few words; empty where it is.

    Args:
        model: as it was exported, on the CPU.
        folder: what `export` wrote.
        merged: a LoRA adapter was added to the base's weights.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            return _difference(model, folder, merged)
    except Exception as error:  # many libraries' loaders meet here
        return f"it cannot be loaded and evaluated ({' '.join(str(error).split())[:200]})"


def _difference(model: Tuned, folder: Path, merged: bool) -> str:
    again, network = _load_back(model, folder, merged), _network(model)
    expected = _merged_tensors(network) if merged else network.state_dict()
    if different := _different_tensor(expected, again.state_dict(), merged):
        return different
    tolerance = (MERGED_TOLERANCE if merged else TOLERANCE)[_storage(model)]
    loaded = partial(_loaded_logits, model, again, folder)
    different = _different_logits(partial(_logits, model.module), loaded, _token_ids(model), tolerance)
    return different or (_different_merge(model) if merged and _storage(model) != torch.float32 else "")


def _network(model: Tuned) -> Network:
    """The model without a head of ours."""
    return model.module.encoder if isinstance(model.module, EncoderWithHead) else model.module


def _load_back(model: Tuned, folder: Path, merged: bool) -> Network:
    auto: Any = AutoModel if isinstance(model.module, EncoderWithHead) else AUTO[model.kind]
    network = _network(model)
    if merged or not isinstance(network, PeftModel):
        return auto.from_pretrained(folder).eval()
    base = _read_base(auto, network, model)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def _read_base(auto: Any, network: PeftModel, model: Tuned) -> Network:
    """The base that the adapter names, read as a run reads it: PEFT finds no GGUF file by its name."""
    name = str(network.peft_config["default"].base_model_name_or_path)
    dtype: Any = str(network.get_base_model().dtype).removeprefix("torch.")
    config = ModelConfig(name=name, dtype=dtype, quantisation=model.quantisation)
    source = find(name)
    return read_network(auto, source, config, model.kind, read_config(source) if source.file else None)


def _merged_tensors(network: PeftModel) -> dict[str, torch.Tensor]:
    """The tensors that a merged model should have, each by itself: two that share storage may be due to differ."""
    base = network.get_base_model()
    found = {name: tensor for name, tensor in base.state_dict().items() if not _ADAPTER.search(name)}
    return {_WRAPPER.sub(".", name): _with_adapters(base, name, tensor) for name, tensor in found.items()}


def _with_adapters(base: Network, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """W + B A of every adapter around the module that holds it, rounded once an adapter."""
    owner, _, last = name.rpartition(".")
    while owner.endswith(".base_layer"):
        owner = owner.removesuffix(".base_layer")
        layer: Any = base.get_submodule(owner)
        if hasattr(layer, "get_delta_weight") and getattr(layer, "parameter_name", "weight") == last:
            tensor = (tensor.float() + layer.get_delta_weight("default").float()).to(tensor.dtype)
    return tensor


def _different_tensor(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], merged: bool) -> str:
    made_up = sorted(name for name in found.keys() - expected.keys() if not _MADE_UP.search(name))
    if lacking := sorted(expected.keys() - found.keys()):
        return f"it lacks {len(lacking)} tensors, such as {lacking[0]!r}"
    if made_up:
        return f"loading it adds {len(made_up)} tensors, such as {made_up[0]!r}"
    is_same = _is_one_rounding_off if merged else _has_same_bits
    return next(
        (f"its tensor {name!r} is another" for name in expected if not is_same(expected[name], found[name])), ""
    )


def _has_same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))


def _is_one_rounding_off(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Within two units in the last place of the storage, and for sums near zero, of the largest value in float32."""
    if (one.dtype, one.shape) != (other.dtype, other.shape) or not one.is_floating_point():
        return _has_same_bits(one, other)
    near_zero = torch.finfo(torch.float32).eps * float(one.abs().max()) if one.numel() else 0.0
    relative = 2 * torch.finfo(one.dtype).eps
    return torch.allclose(one.float(), other.float(), rtol=relative, atol=2 * near_zero, equal_nan=True)


def _different_logits(wanted: Logits, found: Logits, ids: torch.Tensor, tolerance: float) -> str:
    for sequence in ids:  # one by one: some classifiers take no batch where the base names no padding
        one, other = wanted(sequence), found(sequence)
        if one.shape != other.shape:
            return f"its logits have the shape {list(other.shape)}, the tuned model's {list(one.shape)}"
        off = _size(one - other) / max(_size(one), torch.finfo(torch.float32).tiny)
        if off > tolerance or not torch.equal(one.isfinite(), other.isfinite()):
            return f"its logits are {off:.2g} of their size off, where rounding explains {tolerance:g}"
    return ""


def _size(logits: torch.Tensor) -> float:
    """Their root mean square, with 0 for those that are not finite."""
    return float(logits.nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt())


def _different_merge(model: Tuned) -> str:
    """Where 16 bits hide it: an adapter that the tuned model's forward goes around, and that merging would add.

    Cost: a copy of the model in float32.
    """
    wide: Any = copy.deepcopy(model.module).float()
    ids = _token_ids(model)
    before = iter([_logits(wide, sequence) for sequence in ids])
    (wide.encoder if isinstance(wide, EncoderWithHead) else wide).merge_adapter()
    exact = MERGED_TOLERANCE[torch.float32]
    return _different_logits(lambda sequence: next(before), partial(_logits, wide), ids, exact)


def _storage(model: Tuned) -> torch.dtype:
    """The coarsest dtype among the weights that compute."""
    dtypes = {parameter.dtype for parameter in model.module.parameters()} & TOLERANCE.keys()  # none of packed bits
    return max(dtypes, key=TOLERANCE.__getitem__)


def _logits(module: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def _loaded_logits(model: Tuned, again: Network, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    if not isinstance(model.module, EncoderWithHead):
        return _logits(again, ids)
    head = load_file(folder / HEAD_FILE)
    features = again(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float().mean(1)
    return features @ head["weight"].T + head["bias"]


def _token_ids(model: Tuned) -> torch.Tensor:
    """Two sequences of ordinary tokens, always the same for a model, int64 [2, 1, T]."""
    rows, special = _network(model).get_input_embeddings().weight.shape[0], set(model.tokenizer.all_special_ids)
    ordinary = np.array([token for token in range(rows) if token not in special])
    size = NUM_SEQUENCES, 1, min(NUM_TOKENS, model.window or NUM_TOKENS)
    return torch.from_numpy(ordinary[generator(_KEY).integers(0, len(ordinary), size)])
