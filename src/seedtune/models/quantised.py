"""A frozen base in 8 or 4 bits, under float32 adapters (QLoRA, arXiv 2305.14314), packed by bitsandbytes.

Linear layers are packed, except the output head: 4 bits are NF4 with a float32 scale for 64 weights, 4.5 bits a weight;
8 bits are int8 with a float32 scale for a row. Everything else keeps `model.dtype`, and so do products: a layer's
weights are decoded for the call that uses them and dropped, in the backward pass too. So a loss in float32 is as smooth
in the adapter as that of an unpacked base, which is what projected gradients need.

bitsandbytes' own forwards are not used. They round what they multiply, to int8 in 8 bits and (on CPUs that have it) to
bfloat16 in 4, which at mu = 1e-3 is about as large as what a perturbation changes; and the 4-bit one packs its weights
anew when it first runs, with scales cut to bfloat16, so that the base would no longer be the one loaded.

Guarantees: a base packed twice has the same bits, on any number of threads (`space.model_digest` covers packed weights
and scales); no forward writes to it. Not here: adapters (`lora`); QLoRA's second quantisation, of the scales, because
it takes a mean that depends on the number of threads; checkpoints that come quantised; packing on a GPU, which may
round otherwise.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig, PretrainedConfig

from ..errors import ModelError, install_hint
from ..sections import ModelConfig

PackedLayer = Any
"""A linear layer of bitsandbytes, whose weight has scales; the library is imported only where it is used."""


def check(config: ModelConfig, hf_config: PretrainedConfig, has_adapter: bool) -> None:
    """`has_adapter`: a saved adapter comes on top, whatever `config.adapter` says.

    Raises:
        ModelError: packing was asked for without LoRA, without bitsandbytes, or of a checkpoint that is packed already.
    """
    if getattr(hf_config, "quantization_config", None):
        raise ModelError(
            f"model {config.name!r}: its checkpoint is quantised already; give the one that it was made from, with "
            "model.quantisation"
        )
    if config.quantisation == "none":
        return
    if config.adapter != "lora" and not has_adapter:
        raise ModelError(
            f"model.quantisation = {config.quantisation!r} was given with model.adapter = {config.adapter!r}: packed "
            "weights stay as they are, so set model.adapter = 'lora' to have something to tune"
        )
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantisation = {config.quantisation!r} needs bitsandbytes, which is not installed: "
            f"{install_hint('quant')}"
        )


def loading_options(config: ModelConfig, kind: str) -> dict[str, Any]:
    """What `from_pretrained` needs to be told beside the dtype, for a model of `kind`: where a GPU is, not to use it.

    Transformers leaves a language model's output head unpacked, but packs a classifier's that ends in a bias.
    """
    if config.quantisation == "none":
        return {}
    heads = {"llm_int8_skip_modules": list(SEQ_CLS_HEAD_NAMES)} if kind == "classifier" else {}
    bits: dict[str, dict[str, Any]] = {
        "8bit": {"load_in_8bit": True},
        "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
    }
    return {"quantization_config": BitsAndBytesConfig(**bits[config.quantisation], **heads), "device_map": "cpu"}


def decode_at_use(module: torch.nn.Module) -> None:
    """Gives every packed layer of `module` a forward that decodes its weights and multiplies in the input's dtype, and
    the system back what packing took.

    Cost of a forward: the unpacked one's, one decoded weight at a time (the scratch), and the decoding.
    """
    packed: list[PackedLayer] = [layer for layer in module.modules() if type(layer).__name__ in _DECODERS]
    for layer in packed:
        layer.__class__ = _decoding(type(layer))  # type: ignore[arg-type]  # classes are hashable
    if packed:
        _let_go_of_the_checkpoint(module, {id(layer.weight) for layer in packed})


def _let_go_of_the_checkpoint(module: torch.nn.Module, packed: set[int]) -> None:
    """Copies what was not packed out of the mapped file, whose pages stay resident while anything points into it, and
    gives freed heap back: the C library keeps some hundred MB of what packing a model took, where it is glibc."""
    for parameter in module.parameters():
        if id(parameter) not in packed:
            parameter.data = parameter.data.clone()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@cache
def _decoding(kind: type[torch.nn.Linear]) -> type[torch.nn.Linear]:
    """`kind` with our forward: still of that kind, as PEFT asks, and saved as before."""
    return type(f"Decoding{kind.__name__}", (kind,), {"forward": _forward, "decoded": _DECODERS[kind.__name__]})


def _forward(layer: PackedLayer, input: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(input.dtype)
    return _Product.apply(input, bias, partial(layer.decoded, input.dtype))


class _Product(torch.autograd.Function):
    """x W^T + b for a frozen W, decoded again in the backward pass, so that no graph holds it."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, decoded: Callable) -> torch.Tensor:
        ctx.decoded = decoded
        return linear(input, decoded(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ ctx.decoded(), None, None


def _decoded_8bit(layer: PackedLayer, dtype: torch.dtype) -> torch.Tensor:
    """[out, in] of `dtype`: int8 values, each row times its largest magnitude / 127."""
    scales = (layer.weight.SCB / 127).unsqueeze(1)
    return layer.weight.data.to(dtype).mul_(scales)


def _decoded_4bit(layer: PackedLayer, dtype: torch.dtype) -> torch.Tensor:
    """[out, in] of `dtype`: NF4 levels times the largest magnitude of their block.

    Decoded with a block a row, as blocks lie in memory: bitsandbytes 0.50.2 starts a block anew in each row on CPUs
    with AVX-512, which is wrong where 16 divides a row but 64 does not.
    """
    from bitsandbytes.functional import QuantState, dequantize_4bit

    packed, state = layer.weight.data, layer.weight.quant_state
    size = 2 * packed.numel()  # an odd last value is packed with one more
    row = state.blocksize if size % state.blocksize == 0 else size
    rows = QuantState(
        state.absmax, torch.Size((size // row, row)), state.code, state.blocksize, state.quant_type, dtype
    )
    return dequantize_4bit(packed, rows).view(-1)[: state.shape.numel()].view(state.shape)


_DECODERS = {"Linear8bitLt": _decoded_8bit, "Linear4bit": _decoded_4bit}
"""By the names of bitsandbytes' layers: it is imported only where it is used."""
