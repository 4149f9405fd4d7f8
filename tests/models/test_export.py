import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import gaussian
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers import AutoTokenizer as Tokenizer

from seedtune.errors import ModelError
from seedtune.models.export import export
from seedtune.models.load import load
from seedtune.sections import ModelConfig

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
AUTO = {
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "bert": AutoModelForMaskedLM,
    "bert_classifier": AutoModelForSequenceClassification,
}


@pytest.fixture(autouse=True)
def _library_warnings_are_not_ours():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tuned(folder, **options):
    """A model whose tuned tensors have all moved."""
    model = load(ModelConfig(name=folder, **options), 2, gaussian)
    with torch.no_grad():
        for name, tensor in model.parameters().items():
            tensor.add_(0.1 * gaussian(f"moved {name}", tuple(tensor.shape)))
    return model


def logits(module):
    return module(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("family", sorted(AUTO))
def test_a_whole_model_is_loaded_by_transformers(tiny, tmp_path, family):
    model = tuned(tiny(family))
    export(model, tmp_path / "out")
    again = AUTO[family].from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(again), logits(model.module))
    assert Tokenizer.from_pretrained(tmp_path / "out").get_vocab() == model.tokenizer.get_vocab()
    assert again.config.use_cache == AUTO[family].from_pretrained(tiny(family)).config.use_cache


@pytest.mark.parametrize("family", sorted(AUTO))
def test_an_adapter_is_loaded_by_peft(tiny, tmp_path, family):
    model = tuned(tiny(family), adapter="lora")
    export(model, tmp_path / "out")
    assert names_in(tmp_path / "out") >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}
    assert "model.safetensors" not in names_in(tmp_path / "out")
    base = AUTO[family].from_pretrained(tiny(family)).eval()
    again = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    torch.testing.assert_close(logits(again), logits(model.module), rtol=0, atol=0)


@pytest.mark.parametrize("family", sorted(AUTO))
def test_a_merged_adapter_is_loaded_by_transformers(tiny, tmp_path, family):
    model = tuned(tiny(family), adapter="lora")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    export(model, tmp_path / "out", merged=True)
    again = AUTO[family].from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(again), logits(model.module), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def features_as_documented(folder, head_folder, encoder):
    head = load_file(head_folder / "head.safetensors")
    mask = torch.ones_like(IDS).unsqueeze(-1)
    hidden = encoder(input_ids=IDS).last_hidden_state
    return (hidden * mask).sum(1) / mask.sum(1) @ head["weight"].T + head["bias"]


@pytest.mark.parametrize(("adapter", "merged"), [("none", False), ("lora", True), ("lora", False)])
def test_an_encoder_with_our_head_is_loaded_as_documented(tiny, tmp_path, adapter, merged):
    model, out = tuned(tiny("encoder"), adapter=adapter), tmp_path / "out"
    export(model, out, merged=merged)
    if adapter == "lora" and not merged:
        encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny("encoder")), out).eval()
    else:
        encoder = AutoModel.from_pretrained(out).eval()
    found = features_as_documented(out, out, encoder)
    torch.testing.assert_close(found, logits(model.module), rtol=1e-4, atol=1e-4)


def test_an_exported_encoder_comes_back_with_its_head(tiny, tmp_path):
    model = tuned(tiny("encoder"))
    export(model, tmp_path / "out")
    again = load(ModelConfig(name=str(tmp_path / "out")), 2, gaussian)
    assert not again.fresh_head
    assert torch.equal(logits(again.module), logits(model.module))
    with pytest.raises(ModelError, match="its head has 2 labels but the task has 5 answers"):
        load(ModelConfig(name=str(tmp_path / "out")), 5, gaussian)


def test_an_empty_folder_and_new_parents_will_do(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    export(tuned(tiny("encoder")), tmp_path / "empty")
    export(tuned(tiny("encoder")), tmp_path / "a" / "b")
    assert names_in(tmp_path / "empty") == names_in(tmp_path / "a" / "b")
    assert names_in(tmp_path) == {"empty", "a"}


def test_a_full_folder_is_left_alone(tiny, tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(ModelError) as caught:
        export(tuned(tiny("encoder")), tmp_path)
    assert str(caught.value) == (
        f"export to {str(tmp_path)!r}: it exists and is not empty; give a new folder or empty this one"
    )
    assert names_in(tmp_path) == {"kept"}


def test_an_export_that_fails_leaves_nothing(tiny, tmp_path, monkeypatch):
    model = tuned(tiny("encoder"))

    def full_disk(folder):
        Path(folder).mkdir(exist_ok=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(ModelError) as caught:
        export(model, tmp_path / "out")
    assert str(caught.value) == (f"export to {str(tmp_path / 'out')!r}: cannot be written (No space left on device)")
    assert names_in(tmp_path) == set()


def test_there_must_be_an_adapter_to_merge(tiny, tmp_path):
    with pytest.raises(ModelError) as caught:
        export(tuned(tiny("encoder")), tmp_path / "out", merged=True)
    assert str(caught.value) == ("export with merged weights was asked for, but the model has no LoRA adapter to merge")
