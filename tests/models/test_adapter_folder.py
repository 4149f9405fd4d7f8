"""A folder that holds an adapter is a model: its base with the adapter on top."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import tiny_gguf
import torch
from tiny_models import gaussian

from seedtune.errors import ModelError
from seedtune.models import packaged
from seedtune.models.export import export
from seedtune.models.generate import generate
from seedtune.models.load import load
from seedtune.sections import ModelConfig

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(autouse=True)
def _library_warnings_are_not_ours():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def loaded(folder, **options):
    return load(ModelConfig(name=str(folder), **options), 2, gaussian)


def tuned(folder, **options):
    model = loaded(folder, adapter="lora", **options)
    with torch.no_grad():
        for name, tensor in model.parameters().items():
            tensor.add_(0.1 * gaussian(f"moved {name}", tuple(tensor.shape)))
    return model


def logits(model):
    return model.module(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def message(folder, **options):
    with pytest.raises(ModelError) as caught:
        loaded(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewritten(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture
def adapter(tiny, tmp_path):
    export(tuned(tiny("llama")), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bert_classifier", "encoder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_an_export_wrote_is_the_tuned_model(tiny, tmp_path, family, dtype):
    model = tuned(tiny(family), dtype=dtype)
    export(model, tmp_path / "out")
    again = loaded(tmp_path / "out", dtype=dtype)
    assert torch.equal(logits(again), logits(model))
    assert again.trainable == model.trainable
    assert (again.kind, again.adapter, again.base_id, again.fresh_head) == (model.kind, "lora", "out", False)
    for name, tensor in model.parameters().items():
        assert torch.equal(again.parameters()[name], tensor)


def test_it_is_exported_again(adapter, tmp_path):
    model = loaded(adapter)
    export(model, tmp_path / "again")
    export(model, tmp_path / "merged", merged=True)
    assert torch.equal(logits(loaded(tmp_path / "again")), logits(model))
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), logits(model))


def test_it_generates(adapter, tiny):
    assert generate(loaded(adapter), [[5, 6]], 4) != generate(loaded(tiny("llama")), [[5, 6]], 4)


def test_patterns_choose_other_tensors_of_it(adapter):
    assert loaded(adapter, trainable=("*.norm.weight",)).trainable == ("base_model.model.model.norm.weight",)


def test_an_adapter_on_a_gguf_file(tmp_path):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", tiny_gguf.module())
    model = tuned(path)
    export(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(path)
    assert f"This adapter was tuned on a GGUF file: {path}\n" in (tmp_path / "out" / "README.md").read_text()
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(model))
    shutil.move(path, tmp_path / "moved.gguf")
    missing = message(tmp_path / "out")
    assert missing.startswith(f"adapter folder {str(tmp_path / 'out')!r}: its base is not found (model {str(path)!r}: ")
    assert missing.endswith("): if its base has moved, name it with --base")
    assert torch.equal(logits(loaded(tmp_path / "out", base=str(tmp_path / "moved.gguf"))), logits(model))


def test_an_adapter_on_the_packaged_model(adapter, monkeypatch, tmp_path):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", tiny_gguf.module())
    monkeypatch.setattr(packaged, "packaged_file", lambda: path)
    model = tuned(packaged.NAME)
    export(model, tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == packaged.NAME
    )
    assert packaged.REQUIREMENT in (tmp_path / "out" / "README.md").read_text()
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(model))


def test_a_base_that_does_not_fit(adapter, tiny):
    found = message(adapter, base=tiny("gpt2"))
    assert found.startswith(f"adapter folder {str(adapter)!r}: does not fit its base (")
    assert found.endswith("): name the base that it was tuned on with --base")


def test_a_base_with_fewer_layers(tiny, tmp_path):
    more, fewer = (tiny_gguf.save(tmp_path / f"{n}.gguf", tiny_gguf.module(num_hidden_layers=n)) for n in (3, 2))
    export(tuned(more), tmp_path / "out")
    assert message(tmp_path / "out", base=str(fewer)) == (
        f"adapter folder {str(tmp_path / 'out')!r}: does not fit its base (it has 12 tensors, and 8 have a place): "
        "name the base that it was tuned on with --base"
    )
    export(tuned(fewer), tmp_path / "few")
    assert "does not fit its base (Found missing adapter keys" in message(tmp_path / "few", base=str(more))


def test_a_base_that_is_gone(adapter, tmp_path):
    rewritten(adapter, base_model_name_or_path=str(tmp_path / "gone"))
    assert message(adapter).startswith(f"adapter folder {str(adapter)!r}: its base is not found (model ")
    rewritten(adapter, base_model_name_or_path=None)
    assert message(adapter) == f"adapter folder {str(adapter)!r}: does not say what its base is: name it with --base"
    assert "if its base has moved" not in message(adapter, base=str(tmp_path / "gone"))


def test_adapters_on_adapters(adapter):
    rewritten(adapter, base_model_name_or_path=str(adapter))
    assert message(adapter) == (
        f"adapter folder {str(adapter)!r}: its base {str(adapter)!r} is an adapter too: merge that one first"
    )


def test_lora_over_an_adapter(adapter):
    assert message(adapter, adapter="lora") == (
        f"model {str(adapter)!r}: is a LoRA adapter, and model.adapter = 'lora' asks for another on top: leave that "
        "out, and its own tensors are tuned; or merge it first"
    )


def test_adapters_of_another_kind(adapter):
    rewritten(adapter, peft_type="IA3")
    assert message(adapter) == (
        f"adapter folder {str(adapter)!r}: is of PEFT type 'IA3', and LORA is what can be loaded: merge it into its "
        "base with PEFT and give that folder"
    )


def test_weights_that_are_missing_or_half(adapter):
    weights = adapter / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-8])
    assert message(adapter) == (
        f"adapter folder {str(adapter)!r}: adapter_model.safetensors has {len(data) - 8:,} of its {len(data):,} bytes, "
        "half a download: fetch it again"
    )
    weights.unlink()
    assert message(adapter) == (
        f"adapter folder {str(adapter)!r}: has no adapter_model.safetensors: save the adapter there with PEFT's "
        "save_pretrained"
    )
    Path(adapter / "adapter_config.json").write_text("{")
    assert message(adapter).startswith(f"adapter folder {str(adapter)!r}: adapter_config.json cannot be read as JSON (")
