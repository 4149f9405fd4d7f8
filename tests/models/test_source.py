import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny_models import gaussian, tiny_tokenizer
from transformers.utils import logging

from seedtune.errors import ModelError
from seedtune.models import load_failure, source
from seedtune.models.load import load
from seedtune.models.source import find
from seedtune.sections import ModelConfig


def message(folder, **options):
    with pytest.raises(ModelError) as caught:
        load(ModelConfig(name=str(folder), **options), 2, gaussian)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy of the tiny Llama's folder, to be damaged."""
    for path in Path(tiny("llama")).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def changed(folder, **settings):
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "~/nowhere", r"models\x"])
def test_a_path_to_nowhere(name):
    assert message(name) == (
        f"model {name!r}: there is no such folder or file; give a folder, a GGUF file, a hub id or one of 'starter', "
        "'smollm2-135m-instruct'"
    )


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = message("nobody/nothing")
    assert found.startswith(
        "tokenizer 'nobody/nothing': is neither a folder nor a file here, and the Hugging Face hub cannot be reached ("
    )
    assert found.endswith(
        "): check the name, or download it elsewhere and give its folder; 'seedtune run quickstart' needs no network"
    )


def test_a_hub_model_with_pickled_weights_only(monkeypatch):
    class Loader:
        @staticmethod
        def from_pretrained(*args, **options):
            raise OSError("x/y does not appear to have a file named model.safetensors")

    with pytest.raises(ModelError) as caught:
        source.from_pretrained(Loader, source.find("x/y"))
    assert str(caught.value) == (
        "model 'x/y': the hub has no safetensors weights of it, and pickled ones are refused: convert it"
    )


def test_a_folder_without_a_configuration(tmp_path):
    assert message(tmp_path) == (
        f"model folder {str(tmp_path)!r}: has no config.json; give a folder that save_pretrained wrote"
    )


def test_a_folder_without_weights(copied):
    (copied / "model.safetensors").unlink()
    assert message(copied) == (
        f"model folder {str(copied)!r}: has no model.safetensors; save the weights beside config.json"
    )


def test_pickled_weights_are_refused(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert message(copied) == (
        f"model folder {str(copied)!r}: holds pickled weights (pytorch_model.bin), which can run code and are refused: "
        "load it where you trust it and save it with save_pretrained"
    )


@pytest.mark.parametrize("data", [b"no tensors here", b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 8 + b"{}"])
def test_damaged_weights(copied, data):
    (copied / "model.safetensors").write_bytes(data)
    assert message(copied) == (
        f"model folder {str(copied)!r}: model.safetensors ({len(data)} bytes) is no whole safetensors file: fetch it "
        "again"
    )


def test_half_a_download(copied):
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[:-1000])
    assert message(copied) == (
        f"model folder {str(copied)!r}: model.safetensors has {len(data) - 1000:,} of its {len(data):,} bytes, half a "
        "download: fetch it again"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_git_lfs_pointers(copied, name):
    (copied / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert message(copied) == (
        f"model folder {str(copied)!r}: {name} is a Git LFS pointer, not the file: run 'git lfs pull' there"
    )


def test_a_shard_that_is_missing(copied):
    weights = copied / "model.safetensors"
    weights.rename(copied / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert message(copied) == (
        f"model folder {str(copied)!r}: lacks 1 of the 2 files that model.safetensors.index.json names, such as "
        "'model-00002-of-00002.safetensors': fetch them too"
    )
    (copied / "model.safetensors.index.json").write_text("{}")
    assert message(copied) == (
        f"model folder {str(copied)!r}: model.safetensors.index.json has no weight_map: fetch that file again"
    )


def test_a_broken_configuration(copied):
    (copied / "config.json").write_text('{"model_type": "lla')
    found = message(copied)
    assert found.startswith(f"model folder {str(copied)!r}: config.json cannot be read as JSON (Unterminated string")
    assert found.endswith("): fetch that file again")
    (copied / "config.json").write_text("[]")
    assert message(copied) == (
        f"model folder {str(copied)!r}: config.json is no table of settings: fetch that file again"
    )
    (copied / "config.json").write_text("[" * 100_000)
    assert message(copied).startswith(f"model folder {str(copied)!r}: config.json cannot be read as JSON (")


def test_a_model_type_of_the_future(copied):
    changed(copied, model_type="llama9")
    assert message(copied) == (
        f"model folder {str(copied)!r}: its model type 'llama9' is unknown to transformers {transformers.__version__}: "
        "install a version that knows it, or choose another model"
    )


def test_code_that_a_checkpoint_brings_along(copied):
    changed(copied, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    assert message(copied) == (
        f"model folder {str(copied)!r}: needs code that it brings along, which is never run here: choose a model that "
        "transformers knows"
    )


def test_no_tokenizer_at_all(copied):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    found = message(copied)
    assert found.startswith(f"tokenizer in folder {str(copied)!r} cannot be loaded (")
    assert found.endswith("): save its tokenizer beside the weights with save_pretrained")


def test_a_broken_tokenizer(copied):
    (copied / "tokenizer.json").write_text("{")
    found = message(copied)
    assert found.startswith(f"tokenizer in folder {str(copied)!r} cannot be loaded (")
    assert found.endswith("): fetch its tokenizer files again")


def test_a_tokenizer_of_sentencepiece_without_the_package(copied, monkeypatch):
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer.model").write_bytes(b"\x0a\x0e")
    monkeypatch.setattr(load_failure, "find_spec", lambda name: None)
    error = load_failure.folder_failure("tokenizer", "x", copied, ValueError("no slow tokenizer"))
    assert error == (
        "tokenizer in folder 'x' cannot be loaded (no slow tokenizer): tokenizer.model needs the package "
        "sentencepiece: pip install sentencepiece protobuf"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError("x/y is not a valid model identifier listed on the hub"),
            "model 'x/y': is neither a folder nor a file here, and the Hugging Face hub does not give it (x/y is not a "
            "valid model identifier listed on the hub): check the id; for a gated model, accept its terms and log in "
            "with 'hf auth login'",
        ),
        (
            ValueError("The checkpoint has model type `z` but Transformers does not recognize this architecture"),
            f"model 'x/y': its model type is unknown to transformers {transformers.__version__}: install a version "
            "that knows it, or choose another model",
        ),
        (
            ValueError("x/y contains custom code: set trust_remote_code=True"),
            "model 'x/y': needs code that it brings along, which is never run here: choose a model that transformers "
            "knows",
        ),
        (
            RuntimeError("size mismatch"),
            "model 'x/y': is neither a folder nor a file here, and what the Hugging Face hub gives cannot be loaded "
            "(size mismatch): check the id",
        ),
    ],
)
def test_what_the_hub_may_say(error, expected):
    assert load_failure.hub_failure("model", "x/y", error) == expected


def test_a_folder_that_looks_whole(copied):
    changed(copied, hidden_size=24)
    found = message(copied)
    assert found.startswith(f"model in folder {str(copied)!r} cannot be loaded (")
    assert found.endswith("): fetch it again, or load it where it loads and save it with save_pretrained")


def test_a_name_that_cannot_be_one():
    with pytest.raises(ModelError) as caught:
        find("x" * 100_000)
    assert str(caught.value) == (
        f"model {'x' * 80!r}: cannot be a name or a path: give a folder, a GGUF file or a hub id"
    )


def test_a_tokenizer_without_tokens(tiny, tmp_path):
    (tmp_path / "config.json").write_text((Path(tiny("encoder")) / "config.json").read_text())
    save_file({}, tmp_path / "model.safetensors")
    assert message(tmp_path) == (
        f"model {str(tmp_path)!r}: has no tokenizer files; save its tokenizer beside the weights"
    )


def test_a_configuration_that_names_no_architecture(copied):
    config = json.loads((copied / "config.json").read_text())
    del config["architectures"]
    (copied / "config.json").write_text(json.dumps(config))
    assert message(copied) == f"model {str(copied)!r}: config.json names no architecture; set model.kind"
    assert load(ModelConfig(name=str(copied), kind="causal"), 2, gaussian).kind == "causal"


def test_an_encoder_decoder_is_refused(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    assert message(tmp_path) == (
        f"model {str(tmp_path)!r} is an encoder-decoder: use a causal LM, a masked LM or an encoder"
    )


def test_the_starter_without_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "starter_folder", lambda: tmp_path)
    assert message("starter") == "model 'starter': this installation lacks its weights; install seedtune again"


def test_loaders_are_silent_and_their_settings_return(tiny, capfd):
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    state = torch.get_rng_state()
    load(ModelConfig(name=tiny("encoder")), 2, gaussian)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)
    assert torch.equal(torch.get_rng_state(), state)
