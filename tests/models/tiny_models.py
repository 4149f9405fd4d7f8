"""Tiny models of several families, plain, adapted or as if loaded: random weights from numpy; a tokenizer of words; and
batches written by hand."""

import zlib

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seedtune.data.batches import Batch
from seedtune.models import answer_head, lora
from seedtune.models.load import Tuned
from seedtune.sections import ModelConfig

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "it", "was", "good", "bad", "a", "film", "the", "plot", "dull"]
VOCABULARY = 32
WIDTH = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
LONG = dict(intermediate_size=24, max_position_embeddings=40)
CONFIGS = {
    "llama": ("LlamaForCausalLM", dict(**WIDTH, **LONG, num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen2": ("Qwen2ForCausalLM", dict(**WIDTH, **LONG, num_key_value_heads=1, tie_word_embeddings=False)),
    "qwen3": ("Qwen3ForCausalLM", dict(**WIDTH, **LONG, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True)),
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(**WIDTH, **LONG, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5),
    ),
    "opt": ("OPTForCausalLM", dict(**WIDTH, ffn_dim=24, max_position_embeddings=40, word_embed_proj_dim=16)),
    "gpt2": ("GPT2LMHeadModel", dict(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=40)),
    "bert": ("BertForMaskedLM", dict(**WIDTH, **LONG)),
    "roberta": ("RobertaForMaskedLM", dict(**WIDTH, **LONG)),
    "distilbert": (
        "DistilBertForMaskedLM",
        dict(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40),
    ),
    "encoder": ("BertModel", dict(**WIDTH, **LONG)),
    "bert_classifier": ("BertForSequenceClassification", dict(**WIDTH, **LONG, num_labels=2)),
}
CAUSAL = ("llama", "qwen2", "qwen3", "gemma2", "opt", "gpt2")
MASKED = ("bert", "roberta", "distilbert")
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 4, 31, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def gaussian(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal values that depend on the name alone."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=40, **special)


def tiny_module(family: str, num_layers: int = 2) -> torch.nn.Module:
    """Weights large enough that logits differ: 0.3 times standard normal, around one for scales and zero for others."""
    class_name, options = CONFIGS[family]
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        module = model_class(model_class.config_class(**options | {"num_hidden_layers": num_layers}))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(is_scale + 0.3 * gaussian(name, tuple(parameter.shape)))
    return module.eval()


def adapted(module: torch.nn.Module, task_type: str, targets: tuple[str, ...] = ()) -> torch.nn.Module:
    """Under LoRA of rank 3."""
    config = ModelConfig(name="tiny", adapter="lora", lora_rank=3, lora_targets=targets)
    with torch.random.fork_rng(devices=[]):
        return lora.attach(module, config, task_type)


def with_values(module: torch.nn.Module) -> torch.nn.Module:
    """Ready to be evaluated, its adapters and its head of ours at 0.3 times standard normal."""
    for name, parameter in module.named_parameters():
        if lora.is_adapter(name) or name.startswith("head."):
            parameter.data.copy_(0.3 * gaussian(name, tuple(parameter.shape)))
    return module.eval().requires_grad_(False)


def as_loaded(module: torch.nn.Module, family: str, trainable: list[str] | None = None) -> Tuned:
    """As `load` would make it; `trainable`: the tensors to tune, all by default."""
    kind = "masked" if family in MASKED else "classifier" if family in ("bert_classifier", "encoder") else "causal"
    if kind != "classifier":
        answer_head.install(module)
    names = trainable or [name for name, _ in module.named_parameters()]
    return Tuned(module.requires_grad_(False), None, kind, tuple(names), family)


def batch_of(sequences: list[list[int]], rows: list[int], columns: list[int], **given) -> Batch:
    """A right-padded batch; targets, candidates, labels and num_examples as given."""
    length = max(map(len, sequences))
    ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, tokens in enumerate(sequences):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
    tensors = {name: None if value is None else torch.tensor(value) for name, value in given.items()}
    num_examples = int(tensors.pop("num_examples", torch.tensor(len(sequences))))
    fields = dict(targets=None, candidates=None, labels=None) | tensors
    return Batch(ids, mask, torch.tensor(rows), torch.tensor(columns), num_examples=num_examples, **fields)
