"""A model, ready to be tuned: loaded, put in evaluation mode, with the tensors to tune chosen and their starts drawn.

Three kinds. *causal* and *masked* language models answer with their own output head, evaluated at answer positions only
(`answer_head`). *classifier*: a checkpoint that already is a sequence classifier is loaded as it is; any other encoder
gets mean pooling and a new linear head (`encoder`).

Guarantees: evaluation mode, no dropout, no parameter requires gradients (first-order training enables them itself), no
use of the global random generator. Not here: the start of a new head from labels or a probe (`heads`), losses
(`objective`), how a base is quantised (`quantised`), models that need code of their own.
"""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ..errors import ModelError
from ..sections import ModelConfig
from . import answer_head, behind_layers, gguf_file, lora, quantised
from .encoder import HEAD_FILE, EncoderWithHead
from .lora import Gaussian
from .source import Network, Source, find, from_pretrained, read_config, read_tokenizer

Kind = Literal["causal", "masked", "classifier"]
AUTO = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "classifier": AutoModelForSequenceClassification,
}
_PEFT_TASK = {"causal": "CAUSAL_LM", "masked": None, "classifier": "SEQ_CLS"}


@dataclass(frozen=True, eq=False)
class Tuned:
    """A loaded model.

    `trainable` are the names of the tensors to tune, as `module.named_parameters()` gives them: a tied parameter is
    there once, under its first name. `base_id` is what a replay asks for. `window`: most tokens of a sequence, 0 if
    unlimited. `fresh_head`: a classification head was made here and holds random values, for `heads` to better.
    `adapter`: the tuned tensors are LoRA's. `quantisation`: how the linear layers under them are packed. `chosen`: a
    line on what the pattern 'behind-layers' came to; empty without it.
    """

    module: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    trainable: tuple[str, ...]
    base_id: str
    window: int = 0
    fresh_head: bool = False
    adapter: Literal["none", "lora"] = "none"
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    chosen: str = ""

    @property
    def device(self) -> torch.device:
        """Where its parameters are, and its batches have to be."""
        return next(self.module.parameters()).device

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The tensors to tune, by name: the model's own storage."""
        named = dict(self.module.named_parameters())
        return {name: named[name] for name in self.trainable}


def load(config: ModelConfig, task_choices: int | None, gaussian: Gaussian) -> Tuned:
    """The model that `config` names, in `config.dtype`, on the CPU.

    Args:
        config: which model, which tensors, which adapter.
        task_choices: how many answers the task chooses from; None for text tasks.
        gaussian: draws the start of new tensors (a fresh head's weight, LoRA's A): (name, shape) to float32 standard
            normal values, the same ones whenever the same name is asked for.

    Raises:
        ModelError: not found or not readable, weights missing or pickled, a kind that the checkpoint or the task does
            not fit, a choice of tensors that matches nothing, or a quantisation that cannot be had.

    `trainable` empty means every parameter. A parameter that this kind's forward never uses would make a perturbed
    evaluation fail by name; an encoder's pooler, the usual one, is dropped here.
    """
    if config.trainable and config.adapter == "lora":
        raise ModelError(
            "model.trainable and model.adapter = 'lora' were both given: choose one (model.lora_targets narrows LoRA)"
        )
    source = find(config.name, config.base)
    _check_source(source, config)
    with gguf_file.parsed_once(source.file) if source.file else nullcontext():
        tokenizer, hf_config = read_tokenizer(source), read_config(source)
        quantised.check(config, hf_config, bool(source.adapter))
        kind = _kind(config.kind, hf_config, source)
        if kind == "classifier":
            module, fresh_head = _classifier(source, hf_config, config, task_choices, tokenizer)
        else:
            module, fresh_head = read_network(AUTO[kind], source, config, kind, hf_config), False
    if config.adapter == "lora":
        module = _with_lora(module, config, kind, gaussian)
    elif source.adapter:
        module = _with_saved_lora(module, source)
    if kind != "classifier":
        answer_head.install(module)
    if fresh_head:
        _draw_head(module, hf_config, gaussian)
    module.eval().requires_grad_(False)
    adapter: Literal["none", "lora"] = "lora" if source.adapter else config.adapter
    config, chosen = behind_layers.resolve(module, config)
    trainable = _trainable(module, config, adapter)
    window = _window(tokenizer, hf_config)
    return Tuned(
        module, tokenizer, kind, trainable, source.base_id, window, fresh_head, adapter, config.quantisation, chosen
    )


def _check_source(source: Source, config: ModelConfig) -> None:
    """
    Raises:
        ModelError: what `config` asks for cannot be had of what the source is: a digest, an adapter, packing.
    """
    if source.adapter and config.adapter == "lora":
        raise ModelError(
            f"model {source.name!r}: is a LoRA adapter, and model.adapter = 'lora' asks for another on top: leave that "
            "out, and its own tensors are tuned; or merge it first"
        )
    if config.sha256 and source.file and config.sha256 != source.file_digest:
        raise ModelError(
            f"model {source.name!r}: its file has sha256 {source.file_digest}, and {config.sha256} is asked for "
            "(model.sha256, which a run writes down): give that file"
        )
    if source.file and config.kind not in ("auto", "causal"):
        raise ModelError(
            f"model {source.name!r}: a GGUF file is read as a causal model: leave model.kind = {config.kind!r} out"
        )
    if source.file and config.quantisation != "none":
        raise ModelError(
            f"model {source.name!r}: a GGUF file is dequantized, and not packed anew with model.quantisation = "
            f"{config.quantisation!r}: leave that out (model.dtype = 'bfloat16' halves the memory), or give a folder"
        )


def kind_of(config: ModelConfig) -> Kind:
    """How the model that `config` names puts a task: what `load` will say, from its configuration file alone.

    Raises:
        ModelError: not found, or of no known architecture.
    """
    if config.kind != "auto":
        return config.kind
    source = find(config.name, config.base)
    return "causal" if source.file else _kind(config.kind, read_config(source), source)


def load_tokenizer(config: ModelConfig) -> tuple[PreTrainedTokenizerBase, Kind, int]:
    """(tokenizer, kind, window) of the model that `config` names, as `load` will have them; no weights are read.

    Raises:
        ModelError: not found, of no known architecture, or without a tokenizer.
    """
    source = find(config.name, config.base)
    tokenizer, hf_config = read_tokenizer(source), read_config(source)
    return tokenizer, _kind(config.kind, hf_config, source), _window(tokenizer, hf_config)


def num_layers_of(config: ModelConfig) -> int | None:
    """What the configuration file of the model that `config` names says; None where it says nothing.

    Raises:
        ModelError: not found.
    """
    return getattr(read_config(find(config.name, config.base)), "num_hidden_layers", None)


def pinned(config: ModelConfig) -> ModelConfig:
    """Return `config` with the digest of its GGUF file, so that no other file of that name takes its place.

    Cost: one read of the file, once a process.

    Raises:
        ModelError: not found.
    """
    return config.model_copy(update={"sha256": config.sha256 or find(config.name, config.base).file_digest})


def _kind(asked: Kind | Literal["auto"], config: PretrainedConfig, source: Source) -> Kind:
    if asked != "auto":
        return asked
    names = config.architectures or ()
    if not names:
        raise ModelError(f"model {source.name!r}: config.json names no architecture; set model.kind")
    if any(name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() for name in names):
        return "masked"
    return "causal" if any(name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in names) else "classifier"


def read_network(
    auto: type, source: Source, config: ModelConfig, kind: Kind, hf_config: PretrainedConfig | None = None
) -> Network:
    """Return the network of a source, as `auto` makes it, in `config.dtype` or packed as `config.quantisation` says.

    Args:
        hf_config: what `read_config` returned of a GGUF file; not needed for a folder.

    Raises:
        ModelError: it cannot be read, or a tensor is not in the checkpoint.
    """
    options = {"dtype": getattr(torch, config.dtype), **quantised.loading_options(config, kind)}
    if source.file:
        options |= {"config": hf_config, "quantization_config": transformers.GgufConfig(dequantize=True)}
    else:
        options["use_safetensors"] = True
    module, info = from_pretrained(auto, source, output_loading_info=True, **options)
    quantised.decode_at_use(module)
    if source.file:
        gguf_file.check_all_read(module, source.file)
        module.name_or_path = module.config.name_or_path = source.reference
    missing = sorted(name for name in info["missing_keys"] if not (auto is AutoModel and name.startswith("pooler.")))
    if missing:
        raise ModelError(
            f"model {source.name!r}: its checkpoint lacks {len(missing)} tensors of a {kind} model, such as "
            f"{missing[0]!r}: set model.kind to what it was trained as ('classifier' takes any encoder), or choose "
            "another model"
        )
    return module


def _classifier(
    source: Source,
    hf_config: PretrainedConfig,
    config: ModelConfig,
    task_choices: int | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Network, bool]:
    """(model, whether its head is fresh)."""
    if task_choices is None:
        raise ModelError(f"model {source.name!r} is a classifier but the task is text: choose a causal model for it")
    if any(name.endswith("ForSequenceClassification") for name in hf_config.architectures or ()):
        module = read_network(AutoModelForSequenceClassification, source, config, "classifier")
        _check_labels(source, module.config.num_labels, task_choices)
        if module.config.pad_token_id is None:
            module.config.pad_token_id = tokenizer.pad_token_id
        return module, False
    module = EncoderWithHead(read_network(AutoModel, source, config, "classifier"), task_choices)
    return module, not _read_head(module, source, task_choices)


def _read_head(module: EncoderWithHead, source: Source, task_choices: int) -> bool:
    """Loads the head that an export left beside its encoder; False where there is none."""
    path = Path(source.adapter or source.location) / HEAD_FILE
    if not path.is_file():
        return False
    head = load_file(path)
    _check_labels(source, len(head["weight"]), task_choices)
    module.head.load_state_dict(head)
    return True


def _check_labels(source: Source, num_labels: int, task_choices: int) -> None:
    if num_labels != task_choices:
        raise ModelError(
            f"model {source.name!r}: its head has {num_labels} labels but the task has {task_choices} answers: "
            "choose an encoder without a classification head, or a task that fits"
        )


def _with_lora(module: torch.nn.Module, config: ModelConfig, kind: Kind, gaussian: Gaussian) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        if isinstance(module, EncoderWithHead):
            module.encoder = lora.attach(module.encoder, config, "FEATURE_EXTRACTION")
        else:
            module = lora.attach(module, config, _PEFT_TASK[kind])
    lora.initialise(module, gaussian)
    return module


def _with_saved_lora(module: torch.nn.Module, source: Source) -> torch.nn.Module:
    if isinstance(module, EncoderWithHead):
        module.encoder = lora.attach_saved(module.encoder, source)
        return module
    return lora.attach_saved(module, source)


@torch.no_grad()
def _draw_head(module: EncoderWithHead, config: PretrainedConfig, gaussian: Gaussian) -> None:
    """The start that transformers gives new heads: standard deviation `initializer_range`, zero bias."""
    weight = module.head.weight
    weight.copy_(gaussian("head.weight", tuple(weight.shape)) * getattr(config, "initializer_range", 0.02))
    module.head.bias.zero_()


def _window(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """Positions of the model or, if fewer, the tokenizer's limit (RoBERTa has 514 rows for 512 positions)."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    known = [size for size in (positions, tokenizer.model_max_length) if 0 < size < 2**32]
    return min(known, default=0)


def _trainable(module: torch.nn.Module, config: ModelConfig, adapter: str) -> tuple[str, ...]:
    names = [name for name, _ in module.named_parameters()]
    if adapter == "lora" and not config.trainable:
        return tuple(name for name in names if lora.is_adapter(name) or name.startswith("head."))
    for pattern in config.trainable:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ModelError(_matches_nothing(module, pattern, names))
    patterns = config.trainable or ("*",)
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _matches_nothing(module: torch.nn.Module, pattern: str, names: list[str]) -> str:
    first_names = {id(parameter): name for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if fnmatchcase(name, pattern):
            first = first_names[id(parameter)]
            return f"model.trainable: {pattern!r} matches only {name!r}, which is tied to {first!r}: use that name"
    modules = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name.rpartition(".")[0]) for name in names))
    shown = ", ".join(modules[:12]) + (", ..." if len(modules) > 12 else "")
    return f"model.trainable: {pattern!r} matches no tensor of this model; it has tensors in {shown}"
