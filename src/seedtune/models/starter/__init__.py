"""The starter: a small causal language model that comes with the package, so that a first run needs no download.

`pretrain` says how it was made. This module does not load it: `seedtune.models.load` does, under the name 'starter'.
"""

from pathlib import Path


def starter_folder() -> Path:
    """Where the starter's config.json, model.safetensors and tokenizer files lie; not checked to exist."""
    return Path(__file__).parent / "weights"
