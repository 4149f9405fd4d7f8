"""Activations of the frozen layers before the first tuned tensor, computed once for all evaluations of a step.

A step evaluates one batch at several points that differ in tuned tensors alone. Layers that end before any module with
tuned tensors begins give the same output each time; so the first evaluation keeps the last such output, and in the
later ones these layers hand it on without computing. Bits are the same with and without. Where the first thing that a
forward does is tuned (an embedding, say), there is nothing to reuse and nothing changes.

Evaluations may be parts of a forward (`seedtune.models.blocks`): a layer counts as clean only right behind a clean one,
so what the first evaluation skipped, and what comes after that, is computed each time. Activations that were made
within a batch serve within it only.

It finds layers as the members of a model's outermost `ModuleList`s, run one after another, as Hugging Face models have
them. It chooses no tensors, and it knows nothing of perturbation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..models.forwards import wrapped_forwards

Place = tuple[int, int]  # a stack of layers, and the index of one in it


@contextmanager
def clean_prefix(
    module: torch.nn.Module, owners: Sequence[torch.nn.Module], layers: Sequence[tuple[Place, torch.nn.Module]]
) -> Iterator["Prefix"]:
    """Within it, evaluations of `module` must be of one batch, with weights that differ only in those of `owners`; of
    several batches, if the prefix is told which one comes next (`Prefix.turn_to`). `layers`: `layers_of` the module.

    Memory: one layer's output a batch. Cost: the frozen prefix once, whatever the number of evaluations.
    """
    prefix = Prefix()
    wraps = [(owner, prefix.marking_tuned) for owner in owners]
    wraps += [(layer, partial(prefix.computed_once, place)) for place, layer in layers]
    with wrapped_forwards([*wraps, (module, prefix.counting)]):
        yield prefix


@dataclass
class Found:
    """What the first evaluation of a batch found: which layers are clean, and what the last of them gave."""

    num_evaluations: int = 0
    reached_tuned: bool = False
    clean: set[Place] = field(default_factory=set)
    output: Any = None

    @property
    def num_bytes(self) -> int:
        """That are kept for the evaluations to come."""
        return sum(kept.nbytes for kept in tree_leaves(self.output) if isinstance(kept, torch.Tensor))


class Prefix:
    """Layers that compute once a batch; at first there is one batch, of which nothing is found."""

    def __init__(self) -> None:
        self._found = Found()

    def turn_to(self, found: Found) -> None:
        """The evaluations that follow are of the batch that `found` belongs to; a new one where it is new."""
        self._found = found

    @property
    def num_reused(self) -> int:
        """Layers that the next evaluation need not compute."""
        return len(self._found.clean)

    def counting(self, forward: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._found.num_evaluations += 1
            return forward(*args, **kwargs)

        return counted

    def marking_tuned(self, forward: Callable) -> Callable:
        def marked(*args: Any, **kwargs: Any) -> Any:
            self._found.reached_tuned = True
            return forward(*args, **kwargs)

        return marked

    def computed_once(self, place: Place, forward: Callable) -> Callable:
        def once(*args: Any, **kwargs: Any) -> Any:
            found = self._found
            if found.num_evaluations > 1 and place in found.clean:
                return found.output
            output = forward(*args, **kwargs)
            if found.num_evaluations == 1:
                _note(found, place, output)
            return output

        return once


def _note(found: Found, place: Place, output: Any) -> None:
    stack, index = place
    if not found.reached_tuned and (index == 0 or (stack, index - 1) in found.clean):
        found.clean.add(place)
        found.output = output
    elif place in found.clean:  # shared, and it runs again behind tuned tensors: nothing can be skipped
        found.clean.clear()


def layers_of(module: torch.nn.Module) -> list[tuple[Place, torch.nn.Module]]:
    """Members of the outermost ModuleLists, in the order in which they are registered."""
    if isinstance(module, torch.nn.ModuleList):
        return [((id(module), index), layer) for index, layer in enumerate(module)]
    return [found for child in module.children() for found in layers_of(child)]
