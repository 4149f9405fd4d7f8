"""A model whose weights were really moved: what evaluations without moving them are compared with."""

import copy
from collections.abc import Mapping

import torch

from seedtune.space import Space
from seedtune.zo import noise
from seedtune.zo.perturb import Perturbation


def moved_apart(module: torch.nn.Module, space: Space, points: Mapping[str, Perturbation]) -> torch.nn.Module:
    """A deep copy with each tensor at the point of its name, if any, made from the definition of directions."""
    moved = copy.deepcopy(module)
    parameters = dict(moved.named_parameters())
    for spec in space.tensors:
        if at := points.get(spec.name):
            z = noise.values(at.key, spec.start, spec.num_elements, at.distribution).view(spec.shape)
            data = parameters[spec.name].data
            data.copy_((data.float() + torch.tensor(at.mu, dtype=torch.float32) * z).to(data.dtype))
    return moved


def moved_copy(module: torch.nn.Module, space: Space, point: Perturbation) -> torch.nn.Module:
    """A deep copy with every tensor of `space` at `point`."""
    return moved_apart(module, space, {spec.name: point for spec in space.tensors})
