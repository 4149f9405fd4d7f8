"""Whose memory is measured: a model's shape, what of it is tuned, and whether it is likely to fit into free memory.

Sizes come from a model without storage, so that asking costs no memory. Not here: any measurement (`memory`).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models import lora
from ..models.random_models import shape, skeleton
from ..sections import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
METHODS = ("inference", "two-point", "SGD", "AdamW")
# Copies of the tuned tensors beside the weights: gradients; AdamW's two moments.
EXTRA_COPIES = {"inference": 0, "two-point": 0, "SGD": 1, "AdamW": 3}
LIBRARIES_BYTES = 700e6  # resident before a model is made, kernels included: measured 450 to 560 MB
LOADING_BYTES = 4  # a weight, of which 2 are the 16-bit checkpoint


@dataclass(frozen=True)
class Case:
    """One row of the tables. `num_layers` 0: as many as the config has.

    `quantisation`: how a base that is loaded from `folder` is stored, 'none' in `dtype`; empty: weights are made in
    place.
    """

    model: str
    dtype: str
    tuned: str
    num_tokens: int
    num_scored: int
    num_layers: int
    targets: tuple[str, ...]
    lora_rank: int
    device: str
    quantisation: str = ""
    folder: str = ""

    def row(self) -> dict[str, Any]:
        name = f"{self.model}, {self.num_layers} layers" if self.num_layers else self.model
        tuned = f"LoRA r={self.lora_rank}" if self.tuned == "lora" else "all weights"
        base = {"base": self.quantisation} if self.quantisation else {}
        return {"model": name, "dtype": self.dtype, **base, "tuned": tuned, "tokens": self.num_tokens}

    def adapter(self) -> ModelConfig | None:
        if self.tuned != "lora":
            return None
        base: dict[str, Any] = {}
        if self.folder:
            base = {"name": self.folder, "dtype": self.dtype, "quantisation": self.quantisation}
        return ModelConfig(
            adapter="lora", lora_rank=self.lora_rank, lora_alpha=2.0 * self.lora_rank, lora_targets=tuple(self.targets),
            **base,
        )  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Elements: of the model, of its adapters, of its largest tensor, and of all linear layers' inputs and outputs."""

    model: int
    adapters: int
    largest: int
    per_token: int
    vocabulary: int
    num_layers: int


def size_of(case: Case) -> Size:
    config = shape(case.model, case.num_layers)
    module = skeleton(config, DTYPES[case.dtype])
    linear: dict[str, Any] = {name: module.get_submodule(name).weight for name in lora.linear_names(module)}
    adapted = [w for name, w in linear.items() if case.tuned == "lora" and name.rpartition(".")[2] in case.targets]
    text = config.get_text_config()
    return Size(
        model=sum(p.numel() for p in module.parameters()),
        adapters=case.lora_rank * sum(sum(w.shape) for w in adapted),
        largest=max(p.numel() for p in module.parameters()),
        per_token=sum(sum(w.shape) for w in linear.values()),
        vocabulary=text.vocab_size,
        num_layers=text.num_hidden_layers,
    )


def parameters_of(case: Case) -> int:
    """Of the model itself, adapters left out."""
    return size_of(case).model


def bytes_needed(case: Case, method: str) -> int:
    """An estimate from above: weights, gradients and optimizer state, activations, libraries.

    A base that is loaded counts as unpacked, beside its mapped checkpoint and as much again that packing leaves.
    """
    size, width = size_of(case), DTYPES[case.dtype].itemsize
    tuned = 4 * size.adapters if case.tuned == "lora" else width * size.model
    weights = width * size.model + 4 * size.adapters + EXTRA_COPIES[method] * tuned
    weights += LOADING_BYTES * size.model if case.quantisation else 0
    activations = 2 * width * case.num_tokens * size.per_token
    if method in ("inference", "two-point"):
        activations = 4 * activations // size.num_layers
    elif case.tuned == "full":
        weights += 2 * width * size.largest  # gradients are summed and moments combined tensor by tensor
    logits = 16 * case.num_scored * size.vocabulary
    libraries = 0 if case.device == "cuda" else LIBRARIES_BYTES
    return int(weights + activations + logits + libraries)


def bytes_free(device: str) -> int:
    """What can be allocated now; where the system does not tell, all memory that there is."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shortage(case: Case, method: str) -> dict[str, Any] | None:
    """A row that says what is needed and what is free, unless that leaves a tenth to spare."""
    needed, free = bytes_needed(case, method), bytes_free(case.device)
    if 1.1 * needed <= free:
        return None
    return {**case.row(), "skipped": method, "needs, MB": round(needed / 1e6), "free, MB": round(free / 1e6)}
