"""More families of models than `tiny_models` has, for what must hold of all of them: class and sizes by name."""

from pathlib import Path

import torch
import transformers
from tiny_models import CONFIGS, LONG, VOCABULARY, WIDTH, gaussian, tiny_tokenizer

_BOTH = WIDTH | LONG
_GROUPED = _BOTH | {"num_key_value_heads": 1}
_HEADED = _GROUPED | {"head_dim": 8}
_SMALL = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
_EXPERTS = _GROUPED | {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1}
FAMILIES = {
    **CONFIGS,
    "llama-untied": ("LlamaForCausalLM", _GROUPED | {"tie_word_embeddings": False}),
    "mistral": ("MistralForCausalLM", _GROUPED),
    "mixtral": ("MixtralForCausalLM", _GROUPED | {"num_local_experts": 2}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", _EXPERTS | {"shared_expert_intermediate_size": 8}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", _EXPERTS | {"head_dim": 8}),
    "gemma": ("GemmaForCausalLM", _HEADED),
    "gemma3": ("Gemma3ForCausalLM", _HEADED),
    "phi": ("PhiForCausalLM", _BOTH),
    "phi3": ("Phi3ForCausalLM", _GROUPED),
    "olmo2": ("Olmo2ForCausalLM", _GROUPED),
    "stablelm": ("StableLmForCausalLM", _GROUPED),
    "starcoder2": ("Starcoder2ForCausalLM", _GROUPED),
    "granite": ("GraniteForCausalLM", _GROUPED),
    "cohere": ("CohereForCausalLM", _GROUPED),
    "smollm3": ("SmolLM3ForCausalLM", _GROUPED),
    "gpt-neox": ("GPTNeoXForCausalLM", _BOTH),
    "gpt-neox-tied": ("GPTNeoXForCausalLM", _BOTH | {"tie_word_embeddings": True}),
    "gpt-j": ("GPTJForCausalLM", _SMALL | {"rotary_dim": 4}),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", _SMALL),
    "ctrl": ("CTRLLMHeadModel", _SMALL | {"dff": 24}),
    "bloom": ("BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "falcon": ("FalconForCausalLM", WIDTH),
    "rwkv": ("RwkvForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "attention_hidden_size": 16,
                                 "num_hidden_layers": 2, "context_length": 40}),
    "albert": ("AlbertForMaskedLM", _BOTH | {"embedding_size": 8}),
    "electra": ("ElectraForMaskedLM", _BOTH | {"embedding_size": 8}),
    "deberta-v2": ("DebertaV2ForMaskedLM", _BOTH),
    "mpnet": ("MPNetForMaskedLM", _BOTH),
    "modernbert": ("ModernBertForMaskedLM", _BOTH),
    "rembert": ("RemBertForMaskedLM", _BOTH | {"input_embedding_size": 8, "output_embedding_size": 8}),
    "roformer": ("RoFormerForMaskedLM", _BOTH | {"embedding_size": 16}),
    "albert-encoder": ("AlbertModel", _BOTH | {"embedding_size": 8}),
    "mpnet-encoder": ("MPNetModel", _BOTH),
    "modernbert-encoder": ("ModernBertModel", _BOTH),
    "xlnet-encoder": ("XLNetModel", {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2,
                                     "d_inner": 24}),
    "roberta-classifier": ("RobertaForSequenceClassification", _BOTH | {"num_labels": 2}),
    "albert-classifier": ("AlbertForSequenceClassification", _BOTH | {"embedding_size": 8, "num_labels": 2}),
    "llama-classifier": ("LlamaForSequenceClassification", _GROUPED | {"num_labels": 2}),
    "gpt2-classifier": ("GPT2ForSequenceClassification", _SMALL | {"num_labels": 2}),
}  # fmt: skip
GOES_AROUND = {
    "mobilebert": ("MobileBertForMaskedLM", _BOTH | {
        "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}),
}  # fmt: skip
"""Whose own code reads the weight of a linear layer without calling the layer, so that an adapter on it is not used."""


def save_family(name: str, folder: Path) -> Path:
    """Write a checkpoint of the family, with weights that its tensors' names give, under the tokenizer of words."""
    class_name, options = (FAMILIES | GOES_AROUND)[name]
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        module = model_class(model_class.config_class(**options))
    with torch.no_grad():
        for tensor_name, parameter in module.named_parameters():
            is_scale = parameter.dim() == 1 and not tensor_name.endswith("bias")
            parameter.copy_(is_scale + 0.3 * gaussian(tensor_name, tuple(parameter.shape)))
    module.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
