"""Models of given shapes with random weights, for measuring time and memory, which depend on nothing else.

A shape is a transformers config: one of `SHAPES`, or a user's config.json. Weights are made in place, one tensor after
another, so that making them takes no more memory than they do; their values are one small tile of normal numbers over
and over. The global random generator is not used. Such a model says nothing of quality.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

from ..errors import ModelError, unknown
from ..sections import ModelConfig
from . import answer_head, lora
from .encoder import EncoderWithHead
from .load import Tuned, load
from .source import Network, find, read_tokenizer

_NO_TOKENIZER: Any = None  # whoever measures these gives them tokens
_TILE = 2**20 + 7  # no multiple of a row's length: rows differ
_LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_llama_3 = partial(
    LlamaConfig, vocab_size=128_256, intermediate_size=8192, num_key_value_heads=8, head_dim=128,
    max_position_embeddings=131_072, tie_word_embeddings=True, rope_parameters=_LLAMA_3,
)  # fmt: skip

_stories = partial(LlamaConfig, vocab_size=32_000, tie_word_embeddings=True)

# Published config.json files (of the stories: llama2.c's table), as far as they change sizes.
SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "stories-15m": partial(
        _stories, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6
    ),
    "stories-42m": partial(
        _stories, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8
    ),
    "stories-110m": partial(
        _stories, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
    ),
    "opt-125m": partial(OPTConfig, max_position_embeddings=2048),
    "opt-350m": partial(
        OPTConfig, hidden_size=1024, ffn_dim=4096, num_hidden_layers=24, num_attention_heads=16,
        word_embed_proj_dim=512, do_layer_norm_before=False, max_position_embeddings=2048,
    ),
    "opt-1.3b": partial(
        OPTConfig, hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32,
        word_embed_proj_dim=2048, max_position_embeddings=2048,
    ),
    "llama-3.2-1b": partial(
        _llama_3, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64
    ),
    "llama-3.2-3b": partial(_llama_3, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24),
    "open_llama_3b": partial(
        LlamaConfig, hidden_size=3200, intermediate_size=8640, num_hidden_layers=26, num_attention_heads=32
    ),
}  # fmt: skip


def shape(name: str, num_layers: int = 0) -> PretrainedConfig:
    """The config of a known shape, or of the config.json (or its folder) at a path; with `num_layers`, cut to these.

    Raises:
        ModelError: neither, or a file that cannot be read.
    """
    if name in SHAPES:
        config = SHAPES[name]()
    elif Path(name).exists():
        config = _read(name)
    else:
        raise ModelError(f"{unknown('model', name, SHAPES)}, or the path of a config.json")
    if num_layers:
        config.num_hidden_layers = num_layers
    return config


def _read(path: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"model {path!r}: no config of transformers ({reason}): give a config.json") from error


def skeleton(config: PretrainedConfig, dtype: torch.dtype) -> torch.nn.Module:
    """The causal model with parameters that have shapes and no storage (meta), tied as configured; buffers are real.

    Raises:
        ModelError: transformers knows no causal language model of this config.
    """
    hook = register_module_parameter_registration_hook(_without_storage)  # type: ignore[arg-type]  # torch's says None
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ModelError(f"{type(config).__name__} is not of a causal language model: give another config") from error
    finally:
        hook.remove()


def _without_storage(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    return parameter if parameter.is_meta else torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def random_model(config: PretrainedConfig, dtype: torch.dtype, adapter: ModelConfig | None = None) -> Tuned:
    """A causal model with random weights, all of them tuned, or with `adapter` its LoRA alone; evaluation mode.

    Memory: the weights (and adapters, float32); no second copy at any time.
    """
    normal = _Tiles()
    module = skeleton(config, dtype)
    _give_storage(module, normal)
    if adapter:
        with torch.random.fork_rng(devices=[]):  # PEFT draws a start, which `initialise` overwrites
            module = lora.attach(module, adapter, "CAUSAL_LM")
        lora.initialise(module, lambda name, shape: normal.fill(torch.empty(shape), 1.0))
    answer_head.install(module)
    module.eval().requires_grad_(False)
    names = tuple(name for name, _ in module.named_parameters() if not adapter or lora.is_adapter(name))
    return Tuned(module, _NO_TOKENIZER, "causal", names, "random", adapter="lora" if adapter else "none")


def save_base(config: PretrainedConfig, folder: str) -> None:
    """A checkpoint of the causal model with random weights, in bfloat16, under the starter's tokenizer."""
    module: Network = random_model(config, torch.bfloat16).module
    module.save_pretrained(folder)
    read_tokenizer(find("starter")).save_pretrained(folder)


def loaded_base(config: ModelConfig) -> Tuned:
    """The folder `config.name` loaded as runs load it, under a new adapter."""
    normal = _Tiles()
    return load(config, None, lambda name, shape: normal.fill(torch.empty(shape), 1.0))


def random_classifier(config: PretrainedConfig, adapter: ModelConfig | None = None) -> Tuned:
    """An encoder under a head of two labels with random weights in float32, all of them tuned, or its LoRA and head."""
    normal = _Tiles()
    with torch.random.fork_rng(devices=[]):  # starts that are overwritten
        module = EncoderWithHead(AutoModel.from_config(config), 2)
        if adapter:
            module.encoder = lora.attach(module.encoder, adapter, "FEATURE_EXTRACTION")
    _give_storage(module, normal)
    lora.initialise(module, lambda name, shape: normal.fill(torch.empty(shape), 1.0))
    module.eval().requires_grad_(False)
    names = [name for name, _ in module.named_parameters()]
    tuned = [name for name in names if lora.is_adapter(name) or name.startswith("head.")] if adapter else names
    return Tuned(module, _NO_TOKENIZER, "classifier", tuple(tuned), "random", adapter="lora" if adapter else "none")


def _give_storage(module: torch.nn.Module, normal: "_Tiles") -> None:
    """Norms begin at one, biases at zero, all else at normal values with a standard deviation of 0.02."""
    made = {}
    for name, old in list(module.named_parameters(remove_duplicate=False)):
        if id(old) not in made:
            new = torch.empty(old.shape, dtype=old.dtype)
            scale = name.endswith("weight") and new.dim() == 1
            made[id(old)] = torch.nn.Parameter(new.fill_(float(scale)) if new.dim() == 1 else normal.fill(new, 0.02))
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, made[id(old)])


class _Tiles:
    """Normal values from a generator of its own, the same few over and over."""

    def __init__(self) -> None:
        self._tile = torch.empty(_TILE).normal_(generator=torch.Generator().manual_seed(0))

    def fill(self, out: torch.Tensor, deviation: float) -> torch.Tensor:
        for piece in out.view(-1).split(_TILE):
            piece.copy_(self._tile[: len(piece)])
        return out.mul_(deviation)  # scaled in place: temporaries between the tensors would leave holes in the heap
