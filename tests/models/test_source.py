import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from tiny_models import gaussian, tiny_tokenizer
from transformers.utils import logging

from seedtune.errors import ModelError
from seedtune.models import source
from seedtune.models.load import load
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


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "~/nowhere", r"models\x"])
def test_a_path_to_nowhere(name):
    assert message(name) == f"model {name!r}: there is no such folder; give a folder, a hub id or 'starter'"


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = message("nobody/nothing")
    assert found.startswith(
        "tokenizer 'nobody/nothing': is neither a folder here nor available from the Hugging Face hub ("
    )
    assert found.endswith("): check the id; without a network, download it elsewhere and give its folder")


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


def test_damaged_weights(copied):
    (copied / "model.safetensors").write_bytes(b"no tensors here")
    found = message(copied)
    assert found.startswith(f"model in folder {str(copied)!r} cannot be loaded (")
    assert found.endswith("): write the folder again with save_pretrained")


def test_no_tokenizer_at_all(copied):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    found = message(copied)
    assert found.startswith(f"tokenizer in folder {str(copied)!r} cannot be loaded (")


def test_a_tokenizer_without_tokens(tiny, tmp_path):
    (tmp_path / "config.json").write_text((Path(tiny("encoder")) / "config.json").read_text())
    (tmp_path / "model.safetensors").touch()
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
    (tmp_path / "model.safetensors").touch()
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
