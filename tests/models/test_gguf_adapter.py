"""LoRA adapters as GGUF files: the PEFT adapter's tensors to the bit, under the names and in the order of GGUF."""

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
from tiny_models import gaussian

from seedtune.errors import ModelError
from seedtune.models import gguf_adapter, gguf_file
from seedtune.models.gguf_adapter import write_adapter
from seedtune.models.load import load
from seedtune.sections import ModelConfig


def tuned(folder, **options):
    """A model whose adapter has moved everywhere."""
    config = ModelConfig(**{"name": str(folder), "adapter": "lora", "lora_rank": 3, **options})
    model = load(config, 2, gaussian)
    with torch.no_grad():
        for name, tensor in model.parameters().items():
            tensor.add_(0.1 * gaussian(f"moved {name}", tuple(tensor.shape)))
    return model


def message(model, path):
    with pytest.raises(ModelError) as caught:
        write_adapter(model, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(path):
    """(texts and numbers, tensors) of an adapter's file."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def of(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            module = tiny_gguf.module(family)
            path = tiny_gguf.save(folder / "tiny.gguf", module)
            made[family] = tiny_gguf.save_folder(folder / "folder", path, module), path
        return made[family]

    return of


NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down", "c_attn": "attn_qkv", "attn.c_proj": "attn_output", "c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("is_file", [True, False])
def test_a_file_holds_the_adapter_to_the_bit(folders, tmp_path, family, is_file):
    model = tuned(folders(family)[is_file], lora_targets=("all-linear",), lora_alpha=7.0)
    write_adapter(model, tmp_path / "new" / "adapter.gguf")
    fields, tensors = read(tmp_path / "new" / "adapter.gguf")
    assert {name: fields[name] for name in fields if not name.startswith("GGUF.")} == {
        "general.architecture": family, "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 7.0,
    }  # fmt: skip
    assert len(tensors) == len(model.trainable)
    for name, tensor in model.parameters().items():
        layer, factor = name.partition(".lora_")[0], name.partition(".lora_")[2][0].lower()
        (ending,) = (ending for ending in NAMES if layer.endswith(f".{ending}"))
        number = next(part for part in name.split(".") if part.isdigit())
        found = tensors[f"blk.{number}.{NAMES[ending]}.weight.lora_{factor}"]
        assert found.tensor_type == gguf.GGMLQuantizationType.F32
        is_reordered = family == "llama" and factor == "b" and ending in ("q_proj", "k_proj")
        assert np.array_equal(found.data[as_trained(len(found.data))] if is_reordered else found.data, tensor.numpy())


def as_trained(num_rows, size=8):
    """Where row i of a query or key is found in GGUF, where a head's two halves lie row beside row."""
    return [row - row % size + (row % size % (size // 2)) * 2 + row % size // (size // 2) for row in range(num_rows)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_base_and_adapter_in_gguf_are_the_tuned_model(folders, tmp_path, family):
    """Added to the base's file as llama.cpp does, the adapter makes a file that loads as the tuned model."""
    model = tuned(folders(family)[1], lora_targets=("all-linear",))
    write_adapter(model, tmp_path / "adapter.gguf")
    fields, adapter = read(tmp_path / "adapter.gguf")
    path = tmp_path / "sum.gguf"
    path.write_bytes(folders(family)[1].read_bytes())
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if f"{tensor.name}.lora_a" in adapter:
            first, second = (adapter[f"{tensor.name}.lora_{factor}"].data for factor in "ab")
            tensor.data[...] += fields["adapter.lora.alpha"] / len(first) * second @ first
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    merged = load(ModelConfig(name=str(path)), 2, gaussian)
    torch.testing.assert_close(merged.module(input_ids=ids).logits, model.module(input_ids=ids).logits)


def test_nothing_is_overwritten(folders, tmp_path):
    (tmp_path / "kept.gguf").write_text("mine")
    model = tuned(folders("llama")[0])
    path = tmp_path / "kept.gguf"
    assert message(model, path) == (
        f"adapter {str(path)!r}: exists already, and nothing is overwritten: give a new name"
    )
    below = path / "adapter.gguf"
    assert message(model, below) == f"adapter {str(below)!r}: {str(path)!r} is no folder: give a name in one"
    assert path.read_text() == "mine"


def test_a_file_that_cannot_be_written_leaves_nothing(folders, tmp_path, monkeypatch):
    def full_disk(path, *rest):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_adapter, "_write", full_disk)
    path = tmp_path / "adapter.gguf"
    assert message(tuned(folders("llama")[0]), path) == (
        f"adapter {str(path)!r}: cannot be written (No space left on device)"
    )
    assert not list(tmp_path.iterdir())


def test_what_is_no_lora(folders, tmp_path):
    assert message(tuned(folders("llama")[0], adapter="none"), tmp_path / "a.gguf") == (
        "a GGUF adapter was asked for, and the model was tuned without LoRA: export a folder with --out, and convert "
        "it with llama.cpp"
    )


def test_models_that_gguf_is_not_known_for(tiny, tmp_path):
    assert message(tuned(tiny("opt")), tmp_path / "a.gguf") == (
        "a GGUF adapter was asked for, and the order of 'opt' weights in GGUF is known for llama, mistral, qwen2, "
        "qwen3, gemma2, gemma3_text, phi3, gpt2 alone: export a PEFT adapter with --out, and convert it with llama.cpp"
    )
    assert message(tuned(tiny("bert_classifier")), tmp_path / "a.gguf") == (
        "a GGUF adapter was asked for, and the model is classifier, not causal: export it with --out"
    )


def test_a_target_that_gguf_cannot_name(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.TensorNameMap, "get_name", lambda *args: None)
    assert message(tuned(folders("llama")[0]), tmp_path / "a.gguf") == (
        "a GGUF adapter was asked for, and GGUF has no name for 'model.layers.0.self_attn.q_proj' of a llama model: "
        "leave it out of model.lora_targets, or export a PEFT adapter with --out"
    )


def test_adapters_of_several_alphas(folders, tmp_path):
    model = tuned(folders("llama")[0])
    layer = next(iter(gguf_adapter._layers(model).values()))
    layer.scaling["default"] *= 2
    assert message(model, tmp_path / "a.gguf") == (
        "a GGUF adapter has one alpha, and the layers of this one have 2: export it with --out"
    )


def test_adapters_that_are_more_than_pairs(folders, tmp_path):
    model = tuned(folders("llama")[0])
    layer = next(iter(gguf_adapter._layers(model).values()))
    layer.lora_B["default"].bias = torch.nn.Parameter(torch.zeros(32))
    assert message(model, tmp_path / "a.gguf") == (
        "a GGUF adapter holds pairs of A and B, and this one has 1 other tensors, such as "
        "'base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.bias': export it with --out"
    )


def test_the_package_is_asked_for(folders, tmp_path, monkeypatch):
    model, path = tuned(folders("llama")[0]), tmp_path / "a.gguf"
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    assert message(model, path) == f"adapter {str(path)!r}: GGUF files need the package gguf: pip install '.[gguf]'"
