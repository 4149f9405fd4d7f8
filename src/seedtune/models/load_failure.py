"""What a loader of transformers or of the hub raises, as one line with the remedy that helps.

Not here: what can be seen before loading (`folder_check`, `gguf_file`).
"""

from importlib.util import find_spec
from pathlib import Path

import transformers

_UNREACHABLE = ("couldn't connect", "connection error", "offline", "max retries", "timed out", "cannot send a request",
                "name resolution", "client has been closed")  # fmt: skip
_UNKNOWN_ID = ("not a valid model identifier", "repository not found", "404", "gated", "401", "403")


def hub_failure(what: str, name: str, error: Exception) -> str:
    """The line for a model or a tokenizer that the hub did not give."""
    reason, whole = first_line(error), _chain(error)
    if "safetensors" in reason:
        return f"model {name!r}: the hub has no safetensors weights of it, and pickled ones are refused: convert it"
    if line := _of_transformers(f"model {name!r}", whole):
        return line
    given = f"{what} {name!r}: is neither a folder nor a file here"
    if any(words in whole for words in _UNREACHABLE):
        return (
            f"{given}, and the Hugging Face hub cannot be reached ({reason}): check the name, or download it elsewhere "
            "and give its folder; 'seedtune run quickstart' needs no network"
        )
    if any(words in whole for words in _UNKNOWN_ID):
        return (
            f"{given}, and the Hugging Face hub does not give it ({reason}): check the id; for a gated model, accept "
            "its terms and log in with 'hf auth login'"
        )
    return f"{given}, and what the Hugging Face hub gives cannot be loaded ({reason}): check the id"


def folder_failure(what: str, name: str, folder: Path, error: Exception) -> str:
    """The line for a folder that looks whole, and yet cannot be loaded."""
    given = f"{what} in folder {name!r} cannot be loaded"
    if line := _of_transformers(f"model folder {name!r}", _chain(error)):
        return line
    if what == "tokenizer":
        return f"{given} ({first_line(error)}): {_tokenizer_remedy(folder)}"
    return f"{given} ({first_line(error)}): fetch it again, or load it where it loads and save it with save_pretrained"


def file_failure(what: str, name: str, error: Exception) -> str:
    """The line for a GGUF file that passed the checks, and yet cannot be loaded."""
    return (
        f"{what} of file {name!r} cannot be loaded by transformers {transformers.__version__} ({first_line(error)}): "
        "give the model as a folder"
    )


def first_line(error: Exception) -> str:
    """The first line of what it says, at most 200 characters."""
    return next((line.strip(" :.") for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _of_transformers(given: str, words: str) -> str | None:
    if "trust_remote_code" in words or "custom code" in words:
        return (
            f"{given}: needs code that it brings along, which is never run here: choose a model that transformers knows"
        )
    if "does not recognize this architecture" in words:
        return (
            f"{given}: its model type is unknown to transformers {transformers.__version__}: install a version that "
            "knows it, or choose another model"
        )
    return None


def _tokenizer_remedy(folder: Path) -> str:
    if (folder / "tokenizer.json").is_file():
        return "fetch its tokenizer files again"
    if (folder / "tokenizer.model").is_file() and find_spec("sentencepiece") is None:
        return "tokenizer.model needs the package sentencepiece: pip install sentencepiece protobuf"
    return "save its tokenizer beside the weights with save_pretrained"


def _chain(error: BaseException | None) -> str:
    """What it says and what it came from, in lower case."""
    words = ""
    while error is not None:
        words += f"{type(error).__name__} {error} ".lower()
        error = error.__cause__ or error.__context__
    return words
