import math
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.model import LoraModel
from tiny_models import CAUSAL, CONFIGS, MASKED, VOCABULARY, gaussian, tiny_module
from transformers import AutoModelForCausalLM

from seedtune.errors import ModelError
from seedtune.models.answer_head import install
from seedtune.models.load import load
from seedtune.models.starter import starter_folder
from seedtune.sections import ModelConfig


def loaded(folder, choices=2, **options):
    return load(ModelConfig(name=folder, **options), choices, gaussian)


def message(folder, choices=2, **options):
    with pytest.raises(ModelError) as caught:
        loaded(folder, choices, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_kind_is_read_from_the_architecture(tiny, family):
    expected = "causal" if family in CAUSAL else "masked" if family in MASKED else "classifier"
    assert loaded(tiny(family)).kind == expected


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_loaded_model_is_at_rest(tiny, family, adapter):
    options = {"lora_targets": ("all-linear",)} if family in ("gemma2", "distilbert") and adapter == "lora" else {}
    state = torch.get_rng_state()
    model = loaded(tiny(family), adapter=adapter, **options)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert not any(module.training for module in model.module.modules())
    assert not any(p.requires_grad for p in model.module.parameters())
    assert model.base_id == f"tiny-{family}"
    assert model.window == 40
    assert model.adapter == adapter
    assert list(model.parameters()) == list(model.trainable)


@pytest.mark.parametrize("family", CAUSAL + MASKED)
def test_weights_are_those_of_the_checkpoint(tiny, family):
    found, expected = loaded(tiny(family)).module.state_dict(), tiny_module(family).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_dtype_asked_for(tiny, dtype):
    assert {p.dtype for p in loaded(tiny("llama"), dtype=dtype).parameters().values()} == {getattr(torch, dtype)}


def test_a_tokenizer_without_padding_pads_with_its_end(tiny, tmp_path):
    model = loaded(tiny("llama"))
    model.module.save_pretrained(tmp_path)
    model.tokenizer.pad_token = None
    model.tokenizer.save_pretrained(tmp_path)
    again = loaded(str(tmp_path)).tokenizer
    assert again.pad_token == "</s>"
    assert len(again) == len(model.tokenizer)


# Which tensors are tuned


def test_all_parameters_are_tuned_unless_patterns_say_which(tiny):
    everything = loaded(tiny("llama"))
    assert everything.trainable == tuple(name for name, _ in everything.module.named_parameters())
    some = loaded(tiny("llama"), trainable=("*.mlp.*", "model.norm.weight"))
    assert {name.split(".")[-2] for name in some.trainable} == {"gate_proj", "up_proj", "down_proj", "norm"}
    assert list(some.trainable) == [name for name in everything.trainable if name in some.trainable]


def test_every_tensor_of_an_encoder_with_our_head_is_used(tiny):
    model = loaded(tiny("encoder"))
    model.module.requires_grad_(True)
    ids = torch.tensor([[5, 6, 7]])
    model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters().values())


def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is(tiny):
    assert message(tiny("llama"), trainable=("*mlp*", "*.attn.*")) == (
        "model.trainable: '*.attn.*' matches no tensor of this model; it has tensors in model.embed_tokens, "
        "model.layers.*.self_attn.q_proj, model.layers.*.self_attn.k_proj, model.layers.*.self_attn.v_proj, "
        "model.layers.*.self_attn.o_proj, model.layers.*.mlp.gate_proj, model.layers.*.mlp.up_proj, "
        "model.layers.*.mlp.down_proj, model.layers.*.input_layernorm, model.layers.*.post_attention_layernorm, "
        "model.norm"
    )


def test_a_pattern_that_matches_only_a_tied_name_is_told_the_other_one(tiny):
    assert message(tiny("llama"), trainable=("lm_head.*",)) == (
        "model.trainable: 'lm_head.*' matches only 'lm_head.weight', which is tied to 'model.embed_tokens.weight': "
        "use that name"
    )


def test_patterns_and_lora_exclude_each_other(tiny):
    assert message(tiny("llama"), trainable=("*",), adapter="lora") == (
        "model.trainable and model.adapter = 'lora' were both given: choose one (model.lora_targets narrows LoRA)"
    )


# LoRA


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_starts_as_the_base_and_is_float32(tiny, dtype):
    model = loaded(tiny("llama"), adapter="lora", lora_rank=4, dtype=dtype)
    tensors = model.parameters()
    assert len(tensors) == 2 * 2 * 2  # two layers, q and v (PEFT's choice), A and B
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    for name, tensor in tensors.items():
        expected = gaussian(name, tensor.shape) / math.sqrt(3 * 16) if ".lora_A." in name else torch.zeros_like(tensor)
        assert torch.equal(tensor, expected)
    ids = torch.tensor([[5, 6, 7]])
    base = loaded(tiny("llama"), dtype=dtype)
    assert torch.equal(model.module(input_ids=ids).logits, base.module(input_ids=ids).logits)


def test_lora_has_the_variance_of_pefts_own_start(tiny):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(tiny_module("qwen2"), LoraConfig(r=512, target_modules=["q_proj"]))
    drawn = next(p for name, p in peft_model.named_parameters() if "lora_A" in name)
    assert drawn.var().item() == pytest.approx(1 / (3 * drawn.shape[1]), rel=0.1)


@pytest.mark.parametrize("family", ["encoder", "bert_classifier"])
def test_a_head_is_tuned_beside_lora(tiny, family):
    names = loaded(tiny(family), adapter="lora", lora_targets=("query",)).trainable
    heads = [name for name in names if ".lora_" not in name]
    assert [name.split(".")[-1] for name in heads] == ["weight", "bias"]
    assert len(names) == 2 * 2 + 2


def test_lora_targets_are_checked_one_by_one(tiny):
    expected = (
        "matches no linear module (the output head cannot be adapted); there are q_proj, k_proj, v_proj, o_proj, "
        "gate_proj, up_proj, down_proj, or 'all-linear' alone"
    )
    for target in ("query", "lm_head", "embed_tokens"):
        asked = ("q_proj", target)
        assert (
            message(tiny("llama"), adapter="lora", lora_targets=asked) == f"model.lora_targets: {target!r} {expected}"
        )


def test_lora_without_a_known_default_asks_for_targets(tiny, monkeypatch):
    monkeypatch.setattr(LoraModel, "target_module_mapping", {})
    assert message(tiny("llama"), adapter="lora") == (
        "model.lora_targets is empty and PEFT has no choice for LlamaForCausalLM: name modules to adapt, such as "
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )


# Classifiers


def test_a_fresh_head_is_drawn_by_name(tiny):
    model = loaded(tiny("encoder"), choices=3, dtype="bfloat16")
    assert model.fresh_head
    head = model.module.head
    assert torch.equal(head.weight, 0.02 * gaussian("head.weight", (3, 16)))
    assert head.weight.dtype == torch.float32
    assert torch.equal(head.bias, torch.zeros(3))


def test_a_sequence_classifier_keeps_its_head(tiny):
    model = loaded(tiny("bert_classifier"))
    assert not model.fresh_head
    assert torch.equal(model.module.classifier.weight, tiny_module("bert_classifier").classifier.weight)


def test_a_causal_checkpoint_can_be_a_classifier(tiny):
    model = loaded(tiny("llama"), kind="classifier", choices=3)
    ids = torch.tensor([[5, 6, 7]])
    assert model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)


def test_a_head_of_another_size_is_refused(tiny):
    folder = tiny("bert_classifier")
    assert message(folder, choices=4) == (
        f"model {folder!r}: its head has 2 labels but the task has 4 answers: choose an encoder without a "
        "classification head, or a task that fits"
    )


def test_a_text_task_needs_a_model_that_writes(tiny):
    folder = tiny("encoder")
    assert message(folder, choices=None) == (
        f"model {folder!r} is a classifier but the task is text: choose a causal model for it"
    )


def test_an_encoder_is_no_masked_model(tiny):
    folder = tiny("encoder")
    assert message(folder, kind="masked") == (
        f"model {folder!r}: its checkpoint lacks 6 tensors of a masked model, such as 'cls.predictions.bias': set "
        "model.kind to what it was trained as ('classifier' takes any encoder), or choose another model"
    )


# Output heads


@pytest.mark.parametrize("kind", ["quantised", "narrow"])
def test_an_output_head_that_is_not_plain_is_refused(kind):
    class Quantised(torch.nn.Linear):
        pass

    module = tiny_module("qwen2")
    head = Quantised(16, VOCABULARY) if kind == "quantised" else torch.nn.Linear(16, 5)
    module.set_output_embeddings(head)
    with pytest.raises(ModelError) as caught:
        install(module)
    assert (
        str(caught.value)
        == {
            "quantised": "output head of Qwen2ForCausalLM is Quantised: only a plain Linear can be evaluated at single "
            "positions; choose another model, or leave the head out of model.lora_targets",
            "narrow": "output head of Qwen2ForCausalLM has 5 rows but the vocabulary has 32: such a model cannot be "
            "evaluated at single positions; choose another",
        }[kind]
    )


# Real models


def test_the_starter_is_known_by_name():
    if not (starter_folder() / "model.safetensors").is_file():
        pytest.skip("the starter's weights are not in this checkout")
    model = load(ModelConfig(), 8, gaussian)
    assert (model.kind, model.base_id) == ("causal", "starter")


def test_a_real_model_gives_the_logits_of_transformers(shared_data):
    folder = str(shared_data / "models" / "stories260k")
    model = loaded(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = model.tokenizer("Once upon a time", return_tensors="pt").input_ids
    assert torch.equal(model.module(input_ids=ids).logits, expected(input_ids=ids).logits)
