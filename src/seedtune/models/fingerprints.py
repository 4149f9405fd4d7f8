"""Digests of a base's configuration and tokenizer: the parts of its function that its weights do not hold.

Both are taken from the files as they lie, so that another version of a library finds the same. Not here: the weights
(`seedtune.space.model_digest`), and comparing digests (`seedtune.pinned_inputs`).
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..space import DIGEST_BYTES
from .source import Source, locate_tokenizer, quiet

_UNUSED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""Keys of config.json that change no loss: storage is `model.dtype`'s to say, and no forward here keeps a cache."""
_PROBE = "a"


def digest_config(source: Source) -> str:
    """Return 32 hex digits that change with any value of config.json that may change the function.

    Cost: reads one small file.
    """
    with quiet():
        values, _ = PretrainedConfig.get_config_dict(source.location)
    return digest_json({name: value for name, value in values.items() if name not in _UNUSED})


def digest_tokenizer(source: Source, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 32 hex digits that change with the vocabulary, its rules, special tokens, window or chat template.

    Cost: reads tokenizer.json; where there is none, the loaded tokenizer is serialized.
    """
    state = blake2b(_rules(source, tokenizer), digest_size=DIGEST_BYTES)
    special = {name: tokenizer.convert_tokens_to_ids(text) for name, text in tokenizer.special_tokens_map.items()}
    state.update(json.dumps([
        special, sorted(tokenizer.all_special_ids), tokenizer.model_max_length, tokenizer.chat_template,
        tokenizer(_PROBE)["input_ids"],  # with what goes before and after a text
    ], sort_keys=True).encode())  # fmt: skip
    return state.hexdigest()


def digest_json(values: Any) -> str:
    """Return 32 hex digits of plain data, whatever the order of its keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _rules(source: Source, tokenizer: PreTrainedTokenizerBase) -> bytes:
    file = cached_file(
        locate_tokenizer(source).location,
        "tokenizer.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is not None:
        return Path(file).read_bytes()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest_json(tokenizer.get_vocab()).encode()
    values = json.loads(backend.to_str())
    return digest_json(
        {name: value for name, value in values.items() if name not in ("padding", "truncation")}
    ).encode()
