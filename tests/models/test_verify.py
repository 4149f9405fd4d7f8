"""Every export is what was tuned, or is refused and leaves nothing: families, and faults put in on purpose."""

import json
import warnings

import pytest
import torch
from families import FAMILIES, save_family
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import gaussian, tiny_tokenizer
from transformers import LlamaForCausalLM

from seedtune.errors import ModelError
from seedtune.models import export as exporting
from seedtune.models import verify
from seedtune.models.export import export
from seedtune.models.load import Tuned, load
from seedtune.sections import ModelConfig

LORA = {"adapter": "lora", "lora_targets": ("all-linear",)}


@pytest.fixture(autouse=True)
def _library_warnings_are_not_ours():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tuned(folder, **options):
    """A model whose tuned tensors have all moved."""
    model = load(ModelConfig(name=str(folder), **options), 2, gaussian)
    with torch.no_grad():
        for name, tensor in model.parameters().items():
            tensor.add_((0.1 * gaussian(f"moved {name}", tuple(tensor.shape))).to(tensor.dtype))
    return model


def refusal(model, folder, merged=False) -> str:
    with pytest.raises(ModelError) as caught:
        export(model, folder, merged=merged)
    assert not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))
    message = str(caught.value)
    assert (
        message.startswith(f"export to {str(folder)!r}: read back, it is not the tuned model: ") and "\n" not in message
    )
    return message


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_exported_as_it_was_tuned(family, tmp_path):
    base = save_family(family, tmp_path / "base")
    export(tuned(base), tmp_path / "all")
    adapted = tuned(base, **LORA)
    export(adapted, tmp_path / "lora")
    export(adapted, tmp_path / "merged", merged=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "albert", "encoder", "bert_classifier", "mixtral", "deberta-v2"])
def test_16_bits_are_exported_as_they_were_tuned(family, tmp_path):
    base = save_family(family, tmp_path / "base")
    export(tuned(base, dtype="bfloat16"), tmp_path / "all")
    adapted = tuned(base, dtype="bfloat16", **LORA)
    export(adapted, tmp_path / "lora")
    export(adapted, tmp_path / "merged", merged=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_the_model_goes_around_is_not_merged_into_it(dtype, tmp_path):
    model = tuned(save_family("mobilebert", tmp_path / "base"), dtype=dtype, **LORA)
    message = refusal(model, tmp_path / "merged", merged=True)
    assert "of their size off, where rounding explains 0.0001. Nothing was kept; export without merging, or" in message
    export(model, tmp_path / "lora")


def test_adapters_that_write_into_shared_storage_are_not_merged(tmp_path):
    model = tuned(save_family("llama", tmp_path / "base"), **LORA)
    one, other = (model.module.get_base_model().model.layers[i].self_attn.o_proj.base_layer for i in (0, 1))
    other.weight = one.weight
    with pytest.raises(
        ModelError, match=r"cannot be written \(The weights trying to be saved contained shared tensors"
    ):
        export(model, tmp_path / "merged", merged=True)
    assert "is another" in refusal(model, tmp_path / "lora")  # on a base whose layers share nothing
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_adapter_on_a_tied_head_is_not_merged_into_the_embeddings(tmp_path):
    base = save_family("llama", tmp_path / "base")
    module = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(target_modules=["lm_head"], r=2))
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(0.3 * gaussian(name, tuple(parameter.shape)))
    names = tuple(name for name, _ in module.named_parameters() if ".lora_" in name)
    model = Tuned(module.eval(), tiny_tokenizer(), "causal", names, "base", adapter="lora")
    assert "model.embed_tokens.weight' is another" in refusal(model, tmp_path / "merged", merged=True)
    export(model, tmp_path / "lora")


def edit_tensors(change):
    def spoil(folder):
        path = folder / (
            "adapter_model.safetensors" if (folder / "adapter_config.json").is_file() else "model.safetensors"
        )
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return spoil


def edit_file(name, **values):
    def spoil(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def add_to_one(tensors):
    name = next(name for name in sorted(tensors) if name.endswith("weight"))
    tensors[name].view(-1)[0] += 2e-3


def drop(tensors):
    del tensors["model.norm.weight"]


def edit_head(folder):
    head = load_file(folder / "head.safetensors")
    save_file({**head, "bias": head["bias"] + 0.1}, folder / "head.safetensors")


FAULTS = {
    "a changed weight": ("llama", {}, False, edit_tensors(add_to_one), "its tensor 'model."),
    "a tensor left out": ("llama", {}, False, edit_tensors(drop), "its tensor 'model.norm.weight' is another"),
    "another norm": ("llama", {}, False, edit_file("config.json", rms_norm_eps=0.5), "its logits are "),
    "other positions": ("llama", {}, False, edit_file("config.json", rope_parameters={
        "rope_type": "default", "rope_theta": 10.0}), "its logits are "),
    "another dtype": ("llama", {}, False, edit_file("config.json", dtype="bfloat16"), "is another"),
    "untied": ("llama", {}, False, edit_file("config.json", tie_word_embeddings=False), "is another"),
    "a layer less": ("llama", {}, False, edit_file("config.json", num_hidden_layers=1), "it lacks 9 tensors, such as"),
    "a layer more": ("llama", {}, False, edit_file("config.json", num_hidden_layers=3), "loading it adds 9 tensors"),
    "an unknown type": ("llama", {}, False, edit_file("config.json", model_type="none"), "it cannot be loaded"),
    "a scaled adapter": ("llama", LORA, False, edit_file("adapter_config.json", lora_alpha=99), "its logits are "),
    "a changed adapter": ("llama", LORA, False, edit_tensors(add_to_one), "lora_A.default.weight' is another"),
    "a changed sum": ("llama", LORA, True, edit_tensors(add_to_one), "is another"),
    "another head": ("encoder", {}, False, edit_head, "its logits are "),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_what_is_not_the_tuned_model_is_refused_and_leaves_nothing(fault, tmp_path, monkeypatch):
    family, options, merged, spoil, reason = FAULTS[fault]
    model, write = tuned(save_family(family, tmp_path / "base"), **options), exporting._write

    def spoiled(model, folder, merged):
        write(model, folder, merged)
        spoil(folder)

    monkeypatch.setattr(exporting, "_write", spoiled)
    assert reason in refusal(model, tmp_path / "out", merged)


def test_a_model_that_diverged_is_exported_as_it_is(tmp_path):
    model = tuned(save_family("llama", tmp_path / "base"))
    model.parameters()["model.norm.weight"].data.fill_(float("nan"))
    export(model, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].isnan().all()


def test_verifying_leaves_the_model_and_the_global_generator_alone(tmp_path):
    model = tuned(save_family("llama", tmp_path / "base"), **LORA)
    before, state = {n: t.clone() for n, t in model.module.state_dict().items()}, torch.get_rng_state()
    for merged in (False, True):
        export(model, tmp_path / f"out-{merged}", merged=merged)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_token_sequences_are_ordinary_and_always_the_same(tmp_path):
    model = tuned(save_family("llama", tmp_path / "base"))
    ids = verify._token_ids(model)
    assert ids.shape == (2, 1, 12) and torch.equal(ids, verify._token_ids(model))
    assert not set(ids.flatten().tolist()) & set(model.tokenizer.all_special_ids)
