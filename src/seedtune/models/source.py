"""Where a model comes from: the starter, a folder or the Hugging Face hub, read through transformers.

Every failure of a loader becomes one line: what was asked, what was found, what to do. Weights are read from
safetensors only, and code that a checkpoint brings along is never run. The loaders' chatter is silenced, errors are
not. The global random generator is left as it was, although loaders draw from it for tensors that they make.

Not here: what is done with the loaded parts (`seedtune.models.load`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import ModelError
from .starter import starter_folder

Network = Any
"""A model of transformers, or PEFT around one. Torch declares what a module may have besides as a tensor or a module,
and theirs have methods and settings."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Source:
    """`name` as the user gave it, `location` as transformers takes it, `base_id` as a trajectory records it."""

    name: str
    location: str
    base_id: str

    @property
    def is_folder(self) -> bool:
        return Path(self.location).is_dir()


def find(name: str) -> Source:
    """The source that a name stands for: 'starter', an existing folder (base id: its last part), else a hub id.

    Raises:
        ModelError: the starter's weights are missing, a path leads to no folder, or a folder holds no model.
    """
    if name == "starter":
        if not (starter_folder() / "model.safetensors").is_file():
            raise ModelError("model 'starter': this installation lacks its weights; install seedtune again")
        return Source(name, str(starter_folder()), name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return Source(name, str(folder), folder.resolve().name)
    if name.startswith((".", "~")) or folder.is_absolute() or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"model {name!r}: there is no such folder; give a folder, a hub id or 'starter'")
    return Source(name, name, name)


def read_config(source: Source) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        ModelError: it cannot be read, or the model is an encoder-decoder.
    """
    config = from_pretrained(AutoConfig, source)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"model {source.name!r} is an encoder-decoder: use a causal LM, a masked LM or an encoder")
    return config


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer; one without a pad token pads with its end token, so the vocabulary is not widened.

    Raises:
        ModelError: there is none, or it knows no tokens (transformers makes empty ones where files are missing).
    """
    tokenizer = from_pretrained(AutoTokenizer, source)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"model {source.name!r}: has no tokenizer files; save its tokenizer beside the weights")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def from_pretrained(auto: Any, source: Source, **options: Any) -> Network:
    """`auto.from_pretrained` of a source, quiet, without remote code, its failures as one line.

    Raises:
        ModelError: whatever went wrong.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            return auto.from_pretrained(source.location, trust_remote_code=False, **options)
    except Exception as error:  # many libraries' loaders meet here, and a user can act on none of their tracebacks
        raise ModelError(_explained(auto, source, error)) from error


def _explained(auto: Any, source: Source, error: Exception) -> str:
    reason = next((line.strip(" :.") for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    what = "tokenizer" if auto is AutoTokenizer else "model"
    if not source.is_folder and "safetensors" in reason:
        return (
            f"model {source.name!r}: the hub has no safetensors weights of it, and pickled ones are refused: convert it"
        )
    if not source.is_folder:
        return (
            f"{what} {source.name!r}: is neither a folder here nor available from the Hugging Face hub ({reason}): "
            "check the id; without a network, download it elsewhere and give its folder"
        )
    return f"{what} in folder {source.name!r} cannot be loaded ({reason}): write the folder again with save_pretrained"


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {str(folder)!r}: has no config.json; give a folder that save_pretrained wrote")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise ModelError(
            f"model folder {str(folder)!r}: holds pickled weights ({pickled[0]}), which can run code and are refused: "
            "load it where you trust it and save it with save_pretrained"
        )
    raise ModelError(f"model folder {str(folder)!r}: has no model.safetensors; save the weights beside config.json")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, load reports and Python warnings; puts everything back."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it tells of every retry
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
