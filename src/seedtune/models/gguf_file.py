"""A GGUF file as a base: checked before seconds are spent on it, read once, its weights dequantized by transformers.

What `check` refuses costs milliseconds: another kind of file, one that is cut short, an architecture that transformers
cannot read. `parsed_once` makes transformers' loader quick: it parses a file anew for the configuration, the tokenizer
and the weights, and makes the map of tensor names anew for every module of the model.

transformers passes over metadata and tensors that it has no place for. Rotary settings among them change what a model
computes: `with_rotary_settings` puts them back, or refuses the file. Weights that no parameter takes are refused by
`check_all_read`.

Not here: GGUF adapters (`gguf_adapter`), finding files by name (`source`).
"""

import hashlib
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any
from unittest.mock import patch

import numpy as np
import transformers
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..errors import ModelError

MAGIC = b"GGUF"
_one_at_a_time = RLock()
_VERSIONS = (2, 3)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of every Llama 3.1, 3.2 and 3.3: a GGUF file keeps the factors that follow from them, not these numbers."""


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, 64 hex digits; computed once a process while size and time of the file stay.

    Cost: one read, about 1 s for 1 GB.
    """
    known = path.stat()
    return _file_digest(str(path.resolve()), known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=8)
def _file_digest(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path) -> None:
    """Refuse a file that cannot be a base, from its first bytes, its metadata and its size.

    Raises:
        ModelError: the package gguf is missing; not GGUF, cut short, of another version, a part of a split model, an
            adapter, without a tokenizer, or of an architecture that transformers does not read.
    """
    given = f"model {str(path)!r}"
    check_package(given)
    _check_start(path, given)
    metadata = _metadata(path, given)
    architecture = metadata["general.architecture"]
    if metadata.get("general.type", "model") != "model":
        raise ModelError(f"{given}: holds an {metadata['general.type']}, not a model: give the model that it is for")
    if metadata.get("split.count", 0) > 1 or _SPLIT.search(path.name):
        raise ModelError(
            f"{given}: is one part of a model in several files: join them with 'llama-gguf-split --merge' of llama.cpp "
            "and give the file that it writes"
        )
    if architecture not in _architectures():
        raise ModelError(
            f"{given}: is of architecture {architecture!r}, which transformers {transformers.__version__} does not "
            f"read: choose one of {', '.join(sorted(_architectures()))}, or give the model as a folder"
        )
    if not metadata.get("tokenizer.ggml.tokens"):
        raise ModelError(f"{given}: has no tokenizer in it: give a file that has, or the model as a folder")


def check_package(given: str) -> None:
    """
    Raises:
        ModelError: gguf, or a transformers that takes a GGUF file apart with it, is not installed.
    """
    if find_spec("gguf") is None or not hasattr(transformers, "GgufConfig"):
        raise ModelError(f"{given}: GGUF files need the package gguf: pip install '.[gguf]'")


def _check_start(path: Path, given: str) -> None:
    with open(path, "rb") as file:
        start = file.read(24)
    if start[:4] != MAGIC:
        found = "a Git LFS pointer: fetch the file itself with 'git lfs pull'" if start.startswith(b"version ") else (
            f"no GGUF file (it begins with {start[:4]!r}): give a .gguf file, or a folder that save_pretrained wrote"
        )  # fmt: skip
        raise ModelError(f"{given}: is {found}")
    if len(start) < 24:
        raise ModelError(_cut_short(path, given))
    (version,) = struct.unpack_from("<I", start, 4)
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise ModelError(
            f"{given}: is GGUF of version {version}, and versions {known} in little-endian order are read: convert the "
            "model anew with llama.cpp"
        )


def _metadata(path: Path, given: str) -> dict[str, Any]:
    """What the file says of the model; arrays of texts as their length."""
    from transformers.integrations.gguf import read_gguf_metadata

    try:
        metadata, _ = read_gguf_metadata(str(path))
        return metadata
    except Exception as error:  # a reader of foreign bytes: whatever it raises, the file is not whole
        if "general.architecture" in str(error):
            raise ModelError(f"{given}: names no architecture: convert the model anew with llama.cpp") from error
        raise ModelError(_cut_short(path, given)) from error


def _cut_short(path: Path, given: str) -> str:
    return f"{given}: ends too early or is damaged ({path.stat().st_size:,} bytes): download it again"


def _architectures() -> set[str]:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import GGUF_ARCHS

    spelled = {"qwen2moe", "qwen3moe", "gpt-oss", "minimax-m2"}  # its own names of these have a _
    return {*GGUF_ARCHS, *GGUF_CONFIG_MAPPING, *spelled} - {
        "general", "tokenizer", "t5", "umt5", "qwen2_moe", "qwen3_moe", "gpt_oss", "minimax_m2"
    }  # fmt: skip


@contextmanager
def parsed_once(path: Path) -> Iterator[None]:
    """Within it, transformers gets the same parsed file and the same name maps however often it asks for them.

    Neither library has a setting for it, nor one for the progress bar, so their names are replaced for the moment.

    Raises:
        ModelError: the file ends before its tensors do, or is damaged.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    reader: Any = gguf.GGUFReader
    quick = reader if not isinstance(reader, type) else cache(_reader_class())  # nested calls share what is parsed
    with (
        _one_at_a_time,
        patch.object(gguf, "GGUFReader", quick),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        patch.object(loader, "tqdm", lambda tensors, **options: tensors),
    ):
        _parsed(path)
        yield


def _parsed(path: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(str(path))
    except Exception as error:  # numpy's words for bytes that are not there
        raise ModelError(_cut_short(path, f"model {str(path)!r}")) from error


@cache
def _reader_class() -> type:
    import gguf

    class QuickReader(gguf.GGUFReader):
        """gguf's reader over a plain array, as each of its small slices of a memory map takes three times as long.

        Texts in arrays (vocabulary and merges) are counted and left unread: the loader asks for their number, and the
        tokenizer is read by another reader.
        """

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data: Any = np.asarray(mapped)

        def _get_field_parts(self, start: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            kinds = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]
            if [raw_type, *self._get(start, np.uint32)] != kinds:
                return super()._get_field_parts(start, raw_type)
            (count,) = struct.unpack_from("<Q", self._data, start + 4)
            end = start + 12
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", self._data, end)[0]
            return end - start, [self._data[:0]], [0] * count, kinds

    return QuickReader


def plain_config(config: PretrainedConfig, path: Path) -> PretrainedConfig:
    """Return a configuration as a folder of the model would have it: its class named, its rotary settings whole.

    Raises:
        ModelError: rotary settings that transformers cannot express.
    """
    class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    config.architectures = [class_name] if class_name else None
    vars(config).pop("_model_name_or_path", None)  # the file's title, which is no path
    _set_rotary(config, path)
    return config


def _set_rotary(config: PretrainedConfig, path: Path) -> None:
    """Put back what transformers leaves out: the base of the rotation, and what stretches it."""
    metadata, rope = _metadata(path, f"model {str(path)!r}"), getattr(config, "rope_parameters", None)
    architecture = metadata["general.architecture"]
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return
    rope["rope_theta"] = metadata.get(f"{architecture}.rope.freq_base", rope["rope_theta"])
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    factors = [tensor.data for tensor in _parsed(path).tensors if tensor.name == "rope_freqs.weight"]
    if scaling != "none" and rope.get("rope_type", "default") == "default":
        raise ModelError(_rotary_refusal(path, f"scaling {scaling!r}"))
    if factors and not _stretched_as_llama3(config, rope, np.asarray(factors[0], np.float64)):
        raise ModelError(_rotary_refusal(path, "factors other than Llama 3's"))


def _stretched_as_llama3(config: PretrainedConfig, rope: dict[str, Any], factors: np.ndarray) -> bool:
    """Set Llama 3's scaling where it explains the file's factors; False where it does not."""
    if np.allclose(factors, 1.0):
        return True
    found = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(len(factors)) / len(factors))
    smooth = (8192 / wavelengths - 1.0) / (4.0 - 1.0)
    expected = 1 / ((1 - smooth.clip(0, 1)) / found["factor"] + smooth.clip(0, 1))
    if not np.allclose(factors, expected, rtol=1e-4):
        return False
    rope.update(found)
    return True


def _rotary_refusal(path: Path, found: str) -> str:
    return (
        f"model {str(path)!r}: turns positions by {found}, which is lost when transformers reads the file: give the "
        "model as a folder"
    )


def check_all_read(module: Any, path: Path) -> None:
    """Refuse a file with tensors that no parameter of the loaded model took.

    Raises:
        ModelError: there are such tensors; names the first.
    """
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    names = [tensor.name for tensor in _parsed(path).tensors if tensor.name != "rope_freqs.weight"]
    architecture = _metadata(path, f"model {str(path)!r}")["general.architecture"]
    if architecture in GGUF_ARCHS:  # read by transformers' newer loader, which tells of what it does not take
        return
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=module.config.to_dict())
    taken = get_gguf_hf_weights_map(module, processor)
    left = [name for name in names if name not in taken]
    if left:
        raise ModelError(
            f"model {str(path)!r}: {len(left)} of its tensors have no place in {type(module).__name__}, such as "
            f"{left[0]!r}: give the model as a folder"
        )
