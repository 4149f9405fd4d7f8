"""The tuned tensors of a model, each at its place on one line of coordinates.

Directions, updates, digests and trajectories speak of coordinates only; this module says which coordinate belongs to
which weight. Tensors are ordered by name, so the order in which a library registers its modules does not matter, and
each begins at a multiple of `ALIGNMENT`, so that noise kernels work in whole blocks. It knows nothing about noise,
tasks or files, and it never copies weights unless its name says so.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import prod

import torch

from .errors import ModelError

ALIGNMENT = 2**16
DIGEST_BYTES = 16
ALL_TENSORS = -1
"""The mask of every tensor of a space, whatever their number."""

Weights = Mapping[str, torch.Tensor]
"""Tuned tensors by canonical name. Whoever holds one may point a model at it with `bind`."""


@dataclass(frozen=True)
class TensorSpec:
    """One tuned tensor: `start` is the coordinate of its first element, elements follow in row-major order."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Space:
    """All tuned tensors, sorted by name."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def num_parameters(self) -> int:
        return sum(spec.num_elements for spec in self.tensors)

    @cached_property
    def num_bytes(self) -> int:
        return sum(spec.num_elements * getattr(torch, spec.dtype).itemsize for spec in self.tensors)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that two spaces share exactly if names, shapes, dtypes and coordinates agree."""
        rows = [[spec.name, spec.shape, spec.dtype, spec.start] for spec in self.tensors]
        return blake2b(json.dumps(rows).encode(), digest_size=DIGEST_BYTES).hexdigest()

    def part(self, mask: int) -> "Space":
        """The tensors i for which bit i of `mask` is 1, at their coordinates; `~mask` are the others."""
        if mask == ALL_TENSORS:
            return self
        return Space(tuple(spec for i, spec in enumerate(self.tensors) if mask >> i & 1))


def space_of(module: torch.nn.Module, names: Iterable[str]) -> Space:
    """The space of the named parameters of `module`; a tied parameter is there once, under its first name.

    Raises:
        ModelError: a name that is no parameter, or no names at all.
    """
    parameters = dict(module.named_parameters())
    wanted = sorted(set(names))
    missing = [name for name in wanted if name not in parameters]
    if missing or not wanted:
        given = f"{missing[0]!r} is not a parameter" if missing else "no parameter was chosen"
        raise ModelError(f"{given} of {type(module).__name__}, which has {len(parameters)} parameters")
    specs, start = [], 0
    for name in wanted:
        tensor = parameters[name]
        specs.append(TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), start))
        start += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return Space(tuple(specs))


def bound_weights(module: torch.nn.Module, space: Space) -> dict[str, torch.Tensor]:
    """The storage that `module` reads now, by name: no copy."""
    parameters = dict(module.named_parameters())
    return {spec.name: parameters[spec.name].data for spec in space.tensors}


def copied(weights: Weights) -> dict[str, torch.Tensor]:
    """The same values in storage of their own."""
    return {name: tensor.clone() for name, tensor in weights.items()}


def copy_into(target: Weights, source: Weights) -> None:
    """Overwrites the values of `target` with those of `source`."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


def bind(module: torch.nn.Module, weights: Weights) -> None:
    """Points the parameters of `module` at `weights`, without a copy; tied parameters stay tied."""
    parameters = dict(module.named_parameters())
    for name, tensor in weights.items():
        parameters[name].data = tensor


def digest(weights: Weights) -> bytes:
    """16 bytes (BLAKE2b) that change if any name, dtype, shape or bit of `weights` changes. Cost: one read."""
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing releases the interpreter's lock
        parts = pool.map(_tensor_digest, sorted(weights), [weights[name] for name in sorted(weights)])
        return blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest()


def model_digest(module: torch.nn.Module) -> bytes:
    """The digest of every parameter of `module`, tuned or not: what a base is recognised by.

    Of a layer whose weights are packed (parameters of a class of their own), all that it saves: the scales too.
    """
    tensors = {name: parameter.data for name, parameter in module.named_parameters()}
    for name, layer in module.named_modules():
        if any(type(parameter) is not torch.nn.Parameter for parameter in layer.parameters(recurse=False)):
            tensors |= {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    return digest(tensors)


def _tensor_digest(name: str, tensor: torch.Tensor) -> bytes:
    state = blake2b(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), digest_size=DIGEST_BYTES)
    state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.digest()
