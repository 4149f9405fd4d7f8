"""A model's folder looked at before anything is loaded: each way in which it cannot be loaded has its own remedy.

Only names, sizes and headers are read: milliseconds, whatever the size of the weights. Not here: what a loader says
all the same (`load_failure`).
"""

import json
import struct
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING

from ..errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_LFS = b"version https://git-lfs"
_READ = ("config.json", "tokenizer.json", "tokenizer.model", ADAPTER_CONFIG)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model which can be loaded.

    Raises:
        ModelError: no config.json or a broken one; a model type or code that the installed transformers does not have;
            no weights, pickled or missing or unfinished ones; Git LFS pointers in place of files.
    """
    given = f"model folder {str(folder)!r}"
    _check_pointers(folder, given)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{given}: has no config.json{_instead(folder)}")
    _check_config(read_json(folder / "config.json", given), given)
    _check_weights(folder, given)


def is_adapter(folder: Path) -> bool:
    """Return True for a folder with an adapter's settings and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return the settings of a saved adapter.

    Raises:
        ModelError: its files are broken, unfinished or missing, or it is no LoRA.
    """
    given = f"adapter folder {str(folder)!r}"
    _check_pointers(folder, given)
    settings = read_json(folder / ADAPTER_CONFIG, given)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"{given}: is of PEFT type {settings.get('peft_type')!r}, and LORA is what can be loaded: merge it into "
            "its base with PEFT and give that folder"
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(
            f"{given}: has no adapter_model.safetensors: save the adapter there with PEFT's save_pretrained"
        )
    _check_whole(weights, given)
    return settings


def read_json(path: Path, given: str) -> dict[str, Any]:
    """
    Raises:
        ModelError: not JSON, or no table.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0][:100]
        raise ModelError(f"{given}: {path.name} cannot be read as JSON ({reason}): fetch that file again") from None
    if not isinstance(values, dict):
        raise ModelError(f"{given}: {path.name} is no table of settings: fetch that file again")
    return values


def _instead(folder: Path) -> str:
    """What to do, by what lies in the folder."""
    if files := sorted(path.name for path in folder.glob("*.gguf")):
        return f" but {files[0]}: give that file itself"
    return "; give a folder that save_pretrained wrote"


def _check_pointers(folder: Path, given: str) -> None:
    for path in [*(folder / name for name in _READ), *sorted(folder.glob("*.safetensors"))]:
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise ModelError(f"{given}: {path.name} is a Git LFS pointer, not the file: run 'git lfs pull' there")


def _check_config(config: dict[str, Any], given: str) -> None:
    model_type = config.get("model_type")
    if model_type is None or model_type in CONFIG_MAPPING:
        return
    if config.get("auto_map"):
        raise ModelError(
            f"{given}: needs code that it brings along, which is never run here: choose a model that transformers knows"
        )
    raise ModelError(
        f"{given}: its model type {model_type!r} is unknown to transformers {transformers.__version__}: install a "
        "version that knows it, or choose another model"
    )


def _check_weights(folder: Path, given: str) -> None:
    if (folder / _INDEX).is_file():
        _check_shards(folder, given)
    weights = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    for path in weights:
        _check_whole(path, given)
    if weights:
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise ModelError(
            f"{given}: holds pickled weights ({pickled[0]}), which can run code and are refused: load it where you "
            "trust it and save it with save_pretrained"
        )
    raise ModelError(f"{given}: has no model.safetensors; save the weights beside config.json")


def _check_shards(folder: Path, given: str) -> None:
    named = read_json(folder / _INDEX, given).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ModelError(f"{given}: {_INDEX} has no weight_map: fetch that file again")
    shards = sorted(set(named.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{given}: lacks {len(missing)} of the {len(shards)} files that {_INDEX} names, such as {missing[0]!r}: "
            "fetch them too"
        )


def _check_whole(path: Path, given: str) -> None:
    """The header of a safetensors file says where its last tensor ends."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 0 < length <= size - 8 else b""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise ModelError(
            f"{given}: {path.name} ({size:,} bytes) is no whole safetensors file: fetch it again"
        ) from None
    if size < wanted:
        raise ModelError(f"{given}: {path.name} has {size:,} of its {wanted:,} bytes, half a download: fetch it again")
