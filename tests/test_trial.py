"""Model, tokenizer and task are tried against each other before round 0, and the advice that follows can be taken."""

import ast
import re

import numpy as np
import pytest
import tiny_runs
import torch
import transformers
from transformers import AutoModelForCausalLM

from seedtune import experiment, trial, trying
from seedtune.data.encoding import Encoded, EncodedSet
from seedtune.errors import ModelError
from seedtune.models import lora
from seedtune.models.load import Tuned
from seedtune.sections import ModelConfig
from seedtune.space import space_of
from seedtune.zo.perturb import Perturber

SIZES = dict(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=24, max_position_embeddings=40, pad_token_id=0,
)  # fmt: skip


def made(class_name: str, **over) -> torch.nn.Module:
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        return model_class(model_class.config_class(**SIZES | over)).eval().requires_grad_(False)


def tuned(module: torch.nn.Module, adapter: str = "none") -> Tuned:
    names = [name for name, _ in module.named_parameters() if adapter == "none" or lora.is_adapter(name)]
    return Tuned(module, None, "classifier", tuple(names), "tiny", adapter=adapter)


def adapted(module: torch.nn.Module, targets: list[str]) -> Tuned:
    config = ModelConfig(name="tiny", adapter="lora", lora_targets=tuple(targets))
    with torch.random.fork_rng(devices=[]):
        return tuned(lora.attach(module, config, "CAUSAL_LM").requires_grad_(False), "lora")


def examples(num_tokens: int) -> EncodedSet:
    lengths = (3, num_tokens)
    encoded = tuple(Encoded(np.arange(n) % 30 + 1, np.zeros(0, np.int64), 0, n) for n in lengths)
    return EncodedSet(encoded, (), "classifier", 0, 0)


@pytest.fixture(autouse=True)
def any_loss(monkeypatch):
    monkeypatch.setattr(
        trial, "loss", lambda model, batch: model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    )


def refused(model: Tuned, num_tokens: int = 6, **options) -> str:
    perturber = Perturber(model.module, space_of(model.module, model.trainable))
    with pytest.raises(ModelError) as error:
        trial.check_forward(model, perturber, [examples(num_tokens)], **options)
    return str(error.value)


def accepted(model: Tuned, num_tokens: int = 6, **options) -> None:
    perturber = Perturber(model.module, space_of(model.module, model.trainable))
    trial.check_forward(model, perturber, [examples(num_tokens)], **options)


@pytest.mark.parametrize("class_name, over", [
    ("MixtralForCausalLM", {"num_local_experts": 4}),
    ("JambaForCausalLM", {"num_experts": 2, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1}),
])  # fmt: skip
def test_lora_on_modules_that_no_forward_calls_is_told_which_to_name(class_name, over):
    told = refused(adapted(made(class_name, **over), ["all-linear"]))
    assert "is tuned but the model's forward does not use it: name the modules that LoRA adapts, " in told
    targets = ast.literal_eval(told.partition("model.lora_targets = ")[2])
    assert "q_proj" in targets
    accepted(adapted(made(class_name, **over), targets))


def test_pefts_own_reason_is_kept_and_what_it_refuses_is_not_advised():
    with pytest.raises(ModelError) as error:
        adapted(made("MambaForCausalLM", state_size=4), ["all-linear"])
    told = str(error.value)
    assert told.startswith("model.lora_targets = ['all-linear'], and PEFT cannot adapt MambaForCausalLM so: ValueError")
    assert "Module 'out_proj' is incompatible with Mamba-based models" in told
    targets = told.partition("such as ")[2].split(", ")
    assert targets == ["in_proj", "x_proj", "dt_proj"]
    accepted(adapted(made("MambaForCausalLM", state_size=4), targets[:2]))


def test_tensors_that_no_forward_uses_are_named_with_patterns_for_the_others():
    module = made("LlamaForCausalLM", tie_word_embeddings=True)
    module.model.spare = torch.nn.Linear(2, 3).requires_grad_(False)
    told = refused(tuned(module))
    assert told == (
        "tensor 'model.spare.weight' (2 in all) is tuned but the model's forward does not use it: name those to tune, "
        "model.trainable = ['model.embed_tokens.*', 'model.layers.*', 'model.norm.*']"
    )
    accepted(tuned(module), needs_all=False)


def test_nothing_that_is_used_is_said():
    module = made("LlamaForCausalLM")
    module.model.spare = torch.nn.Linear(2, 3).requires_grad_(False)
    model = Tuned(module, None, "classifier", ("model.spare.weight",), "tiny")
    assert refused(model).endswith("none of the tuned tensors is used: name others with model.trainable")


def test_an_example_longer_than_the_models_positions_is_told_how_many_fit():
    module = made("GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2)
    module.transformer.wpe = torch.nn.Embedding(8, 16).requires_grad_(False)
    assert refused(tuned(module), 12) == (
        "model 'tiny' takes at most 8 tokens, and the longest example has 12: set task.max_tokens = 8, or fewer"
    )
    accepted(tuned(module), 8)


def test_a_forward_that_always_fails_keeps_its_reason():
    module = made("LlamaForCausalLM")
    module.model.norm = torch.nn.Linear(3, 3).requires_grad_(False)
    told = refused(tuned(module))
    assert told.startswith("model 'tiny': its forward fails on an example of 6 tokens (RuntimeError: mat1 and mat2")


def test_a_token_without_a_row_in_the_embedding_is_refused_before_round_0(tmp_path, tiny_table):
    folder = tiny_runs.save_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(260)
    model.save_pretrained(folder)
    with pytest.raises(ModelError) as error:
        experiment.run(tiny_runs.recipe(folder, tiny_table), tiny_runs.MACHINE, tmp_path / "run", tiny_runs.NOTHING)
    told = r"model 'model': its tokenizer gives token \d+ \('.*'\), and its embedding has rows for 0 to 259: save the "
    assert re.match(told + "tokenizer that the model was trained with beside its weights$", str(error.value))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match="its embedding has rows for 0 to 259"):
        trying.written(str(folder), "the sky is red")
