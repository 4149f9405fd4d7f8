"""'behind-layers' in model.trainable: what only the part behind the last layer reads, or all tensors, which is said."""

import pytest
import torch
from tiny_models import adapted, tiny_module

from seedtune.models import behind_layers
from seedtune.models.encoder import EncoderWithHead
from seedtune.models.load import _trainable
from seedtune.sections import ModelConfig

ASKED = ModelConfig(trainable=("behind-layers",))
BEHIND = {
    "llama": ["model.norm.weight"],
    "qwen2": ["lm_head.weight", "model.norm.weight"],
    "gpt2": ["transformer.ln_f.bias", "transformer.ln_f.weight"],
    "opt": ["model.decoder.final_layer_norm.bias", "model.decoder.final_layer_norm.weight"],
    "bert_classifier": ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"],
}


def chosen(module: torch.nn.Module, config: ModelConfig = ASKED) -> tuple[list[str], str]:
    resolved, line = behind_layers.resolve(module, config)
    return sorted(_trainable(module, resolved, "none")), line


@pytest.mark.parametrize("family", BEHIND)
def test_they_are_the_last_norm_and_an_untied_head(family):
    names, line = chosen(tiny_module(family))
    assert names == BEHIND[family]
    assert line.startswith("model.trainable = 'behind-layers': ") and names[0] in line and " numbers are tuned" in line


def test_they_are_a_classification_head():
    module = EncoderWithHead(tiny_module("encoder"), 3)
    torch.nn.init.ones_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    names, line = chosen(module.eval())
    assert names == ["head.bias", "head.weight"]
    assert line == "model.trainable = 'behind-layers': 51 numbers are tuned: head.bias, head.weight"


def test_other_patterns_stand_beside_it():
    both = ModelConfig(trainable=("behind-layers", "*.1.mlp.up_proj.weight"))
    assert chosen(tiny_module("llama"), both)[0] == ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]


def test_a_model_that_is_not_cut_is_tuned_as_a_whole_and_says_so():
    names, line = chosen(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert names == ["0.bias", "0.weight"]
    assert line.startswith("model.trainable = 'behind-layers': all tensors are tuned, since Sequential cannot be cut")
    assert "use an estimator" not in line


def test_a_model_with_nothing_behind_its_layers_is_tuned_as_a_whole_and_says_so():
    module = tiny_module("llama")
    module.model.norm = torch.nn.Identity()
    names, line = chosen(module)
    assert names == sorted(name for name, _ in module.named_parameters())
    assert line == (
        "model.trainable = 'behind-layers': all tensors are tuned, since LlamaForCausalLM reads no tensor of its own "
        "behind its last layer"
    )


def test_tensors_that_no_forward_reads_are_left_out():
    module = tiny_module("llama")
    module.unused = torch.nn.Parameter(torch.ones(3))
    assert chosen(module)[0] == BEHIND["llama"]


def test_without_it_nothing_is_looked_for():
    module, config = adapted(tiny_module("llama"), "CAUSAL_LM"), ModelConfig(adapter="lora")
    assert behind_layers.resolve(module, config) == (config, "")
