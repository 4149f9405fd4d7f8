"""Tiny models written as GGUF files the way llama.cpp's converter writes them, with a byte-level tokenizer."""

import json
from pathlib import Path

import gguf
import numpy as np
import tiny_runs
import torch
import transformers

CHAT_TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
_SIZES = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, eos_token_id=0, bos_token_id=None)  # fmt: skip
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "gpt2": "GPT2LMHeadModel"}
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def module(family: str = "llama", tied: bool = True, **sizes) -> torch.nn.Module:
    """Weights from numpy, near one for scales; of gpt2, sizes that transformers reads back from a file."""
    model_class = getattr(transformers, _CLASSES[family])
    options = _SIZES | sizes
    if family == "gpt2":
        options = dict(vocab_size=300, n_embd=32, n_layer=2, n_head=4, eos_token_id=0, bos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        made = model_class(model_class.config_class(**options, tie_word_embeddings=tied))
    rng = np.random.default_rng(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            values = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
            parameter.copy_((parameter.dim() == 1 and not name.endswith("bias")) + 0.2 * values)
    return made.eval()


def save(
    path: Path, made: torch.nn.Module, kind: str = "F32", with_tokenizer: bool = True, extra: dict | None = None,
    **texts: str,
) -> Path:  # fmt: skip
    """Writes `made`, its matrices as `kind` (F32, F16, Q8_0), with `extra` tensors and `texts` as further metadata."""
    config, architecture = made.config, made.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        writer.add_feed_forward_length(4 * config.hidden_size)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_vocab_size(config.vocab_size)
    for name, text in texts.items():
        writer.add_string(name.replace("__", "."), text)
    if with_tokenizer:
        _add_tokenizer(writer)
    names = gguf.get_tensor_name_map(_key(architecture), config.num_hidden_layers)
    for name, values in {**_in_gguf_order(made), **(extra or {})}.items():
        stem, _, suffix = name.rpartition(".")
        found = names.get_name(stem) if stem else None
        _add_tensor(writer, f"{found}.{suffix}" if found else name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_folder(folder: Path, path: Path, made: torch.nn.Module) -> Path:
    """The folder that the file at `path` stands for: `made` with every tensor as it is once dequantized."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = gguf.get_tensor_name_map(_key(made.config.model_type), made.config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            stem, _, suffix = name.rpartition(".")
            tensor = tensors[f"{names.get_name(stem)}.{suffix}"]
            values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type))
            parameter.copy_(torch.from_numpy(_reordered(made, name, values, back=True)))
    made.save_pretrained(folder)
    tiny_runs.tokenizer().save_pretrained(folder)
    return folder


def _key(architecture: str) -> gguf.MODEL_ARCH:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)


def _in_gguf_order(made: torch.nn.Module) -> dict[str, np.ndarray]:
    return {
        name: _reordered(made, name, parameter.detach().numpy(), back=False)
        for name, parameter in made.named_parameters()
    }


def _reordered(made: torch.nn.Module, name: str, values: np.ndarray, back: bool) -> np.ndarray:
    """Llama's query and key rows: row i of a head's first half, then row i of its second. GPT-2: transposed."""
    if made.config.model_type == "gpt2" and name.endswith(_TRANSPOSED):
        return np.ascontiguousarray(values.T)
    if made.config.model_type != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    size = made.config.hidden_size // made.config.num_attention_heads
    half = size // 2
    rows = [head + (i // 2) + half * (i % 2) for head in range(0, len(values), size) for i in range(size)]
    return values[np.argsort(rows)] if back else values[rows]


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    if kind == "F32" or values.ndim == 1 or (kind == "Q8_0" and values.shape[-1] % 32):
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        quantized = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType[kind])


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    saved = json.loads(tiny_runs.tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(saved["vocab"], key=saved["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in saved["merges"]])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
