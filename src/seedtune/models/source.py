"""Where a model comes from: a known name, a folder, a GGUF file or the Hugging Face hub, read through transformers.

Every failure of a loader becomes one line: what was asked, what was found, what to do. Weights are read from
safetensors and GGUF only, and code that a checkpoint brings along is never run. The loaders' chatter is silenced,
errors are not. The global random generator is left as it was, although loaders draw from it for tensors that they make.

Not here: what is done with the loaded parts (`seedtune.models.load`).
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import ModelError
from . import folder_check, gguf_file, load_failure, packaged
from .starter import starter_folder

Network = Any
"""A model of transformers, or PEFT around one. Torch declares what a module may have besides as a tensor or a module,
and theirs have methods and settings."""
KNOWN = ("starter", packaged.NAME)
"""Names of models that need no path."""


@dataclass(frozen=True)
class Source:
    """Where a model is found.

    `name` as the user gave it, `location` as transformers takes it, `base_id` as a trajectory records it. `gguf_file`:
    the file in the folder `location`, where the model is one. `adapter`: the folder of a saved LoRA adapter that
    belongs on top of all this.
    """

    name: str
    location: str
    base_id: str
    gguf_file: str = ""
    adapter: str = ""

    @property
    def is_folder(self) -> bool:
        return Path(self.location).is_dir()

    @property
    def file(self) -> Path | None:
        """The GGUF file."""
        return Path(self.location) / self.gguf_file if self.gguf_file else None

    @property
    def reference(self) -> str:
        """What an adapter's settings say of its base: a name that `find` knows, from wherever it is asked."""
        return self.base_id if self.base_id in KNOWN else str(self.file.resolve()) if self.file else self.location

    @property
    def file_digest(self) -> str:
        """sha256 of the GGUF file, hex; empty for anything else, whose digest is that of the loaded weights."""
        return gguf_file.file_digest(self.file) if self.file else ""


def find(name: str, base: str | None = None) -> Source:
    """Return the source that a name stands for.

    It is 'starter', the packaged model, an existing GGUF file or folder (base id: its last part), else a hub id. A
    folder with nothing but an adapter is its base with the adapter on top; `base` says where the base is now, by
    default it is where the adapter's settings say.

    Raises:
        ModelError: the weights of a known name are missing, a path leads nowhere, or what is there is no model.
    """
    if name == "starter":
        if not (starter_folder() / "model.safetensors").is_file():
            raise ModelError("model 'starter': this installation lacks its weights; install seedtune again")
        return Source(name, str(starter_folder()), name)
    if name == packaged.NAME:
        return _of_file(name, packaged.packaged_file(), name)
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long for a path, or the home of a user who is not there
        raise ModelError(
            f"model {name[:80]!r}: cannot be a name or a path: give a folder, a GGUF file or a hub id"
        ) from None
    if is_folder:
        return _of_folder(name, path, base)
    if is_file:
        return _of_file(name, path, path.name)
    looks_like_a_path = name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1 or "\\" in name
    if looks_like_a_path or path.suffix.lower() == ".gguf":
        raise ModelError(
            f"model {name!r}: there is no such folder or file; give a folder, a GGUF file, a hub id or one of "
            f"{', '.join(map(repr, KNOWN))}"
        )
    return Source(name, name, name)


def _of_folder(name: str, folder: Path, base: str | None) -> Source:
    if folder_check.is_adapter(folder):
        return _of_adapter(name, folder, base)
    folder_check.check_folder(folder)
    return Source(name, str(folder), folder.resolve().name)


def _of_file(name: str, path: Path, base_id: str) -> Source:
    gguf_file.check(path)
    return Source(name, str(path.parent), base_id, path.name)


def _of_adapter(name: str, folder: Path, base: str | None) -> Source:
    recorded = folder_check.check_adapter(folder).get("base_model_name_or_path")
    place = base or recorded
    if not isinstance(place, str):
        raise ModelError(f"adapter folder {name!r}: does not say what its base is: name it with --base")
    if folder_check.is_adapter(Path(place)):
        raise ModelError(f"adapter folder {name!r}: its base {place!r} is an adapter too: merge that one first")
    try:
        below = find(place)
    except ModelError as error:
        hint = "" if base else ": if its base has moved, name it with --base"
        raise ModelError(f"adapter folder {name!r}: its base is not found ({error}){hint}") from None
    return replace(below, name=name, base_id=folder.resolve().name, adapter=str(folder))


def read_config(source: Source) -> PretrainedConfig:
    """Return the model's configuration.

    Raises:
        ModelError: it cannot be read, or the model is an encoder-decoder.
    """
    if source.file:
        with gguf_file.parsed_once(source.file):
            config = gguf_file.plain_config(from_pretrained(AutoConfig, source), source.file)
    else:
        config = from_pretrained(AutoConfig, source)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"model {source.name!r} is an encoder-decoder: use a causal LM, a masked LM or an encoder")
    return config


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Return the tokenizer; one without a pad token pads with its end token, so the vocabulary is not widened.

    An adapter's own comes before its base's.

    Raises:
        ModelError: there is none, or it knows no tokens (transformers makes empty ones where files are missing).
    """
    source = locate_tokenizer(source)
    tokenizer = from_pretrained(AutoTokenizer, source)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"model {source.name!r}: has no tokenizer files; save its tokenizer beside the weights")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def locate_tokenizer(source: Source) -> Source:
    """Return the source that a tokenizer is read from: an adapter's folder, where it has one of its own."""
    if source.adapter and (Path(source.adapter) / "tokenizer_config.json").is_file():
        return replace(source, location=source.adapter, gguf_file="")
    return source


def from_pretrained(auto: Any, source: Source, **options: Any) -> Network:
    """Return `auto.from_pretrained` of a source, quiet, without remote code, its failures as one line.

    Raises:
        ModelError: whatever went wrong.
    """
    if source.file:
        options = {"gguf_file": str(source.file.resolve()), **options}
    try:
        with quiet(), torch.random.fork_rng(devices=[]), _parsed(source), _place(source) as place:
            return auto.from_pretrained(place, trust_remote_code=False, **options)
    except ModelError:
        raise
    except Exception as error:  # many libraries' loaders meet here, and a user can act on none of their tracebacks
        raise ModelError(_explained(auto, source, error)) from error


@contextmanager
def _place(source: Source) -> Iterator[str]:
    """Where transformers is to look: for a GGUF file a folder with nothing in it, as it reads what lies beside one."""
    if not source.file:
        yield source.location
        return
    with tempfile.TemporaryDirectory() as empty:
        yield empty


def _parsed(source: Source) -> AbstractContextManager[None]:
    return gguf_file.parsed_once(source.file) if source.file else nullcontext()


def _explained(auto: Any, source: Source, error: Exception) -> str:
    what = "tokenizer" if auto is AutoTokenizer else "model"
    if source.file:
        return load_failure.file_failure(what, source.name, error)
    if source.is_folder:
        return load_failure.folder_failure(what, source.name, Path(source.location), error)
    return load_failure.hub_failure(what, source.name, error)


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
