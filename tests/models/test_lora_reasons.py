"""Adapters that PEFT cannot put on a model: one line with its own reason, and modules that it does take."""

import pytest
import torch
import transformers

from seedtune.errors import ModelError
from seedtune.models import lora
from seedtune.sections import ModelConfig

MODELS = {
    "distilbert": ("DistilBertForSequenceClassification", {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}),
    "mamba": ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
}


def attached(kind: str, *targets: str) -> torch.nn.Module:
    class_name, sizes = MODELS[kind]
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        module = model_class(model_class.config_class(vocab_size=60, **sizes))
        config = ModelConfig(name="tiny", adapter="lora", lora_targets=targets)
        return lora.attach(module, config, "SEQ_CLS" if kind == "distilbert" else "CAUSAL_LM")


@pytest.mark.parametrize(
    ("kind", "targets", "reason"),
    [
        ("distilbert", (), "is empty and PEFT has no choice for DistilBertForSequenceClassification: "),
        ("distilbert", ("all-linear",), "so: TypeError: modules_to_save cannot be applied to modules of type "),
        ("mamba", (), "is empty and PEFT has no choice for MambaForCausalLM: "),
        ("mamba", ("all-linear",), "Module 'out_proj' is incompatible with Mamba-based models"),
    ],
)
def test_the_reason_is_one_line_and_its_advice_can_be_followed(kind, targets, reason):
    with pytest.raises(ModelError) as caught:
        attached(kind, *targets)
    told = str(caught.value)
    assert told.startswith("model.lora_targets ") and reason in told and "\n" not in told
    advised = told.partition("such as ")[2].split(", ")
    assert not {"classifier", "score"} & set(advised)
    names = [name for name, _ in attached(kind, *advised[:3]).named_parameters()]
    assert all(any(f".{one}.lora_A." in name for name in names) for one in advised[:3])
