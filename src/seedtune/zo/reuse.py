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
from functools import partial
from typing import Any

import torch

from ..models.forwards import wrapped_forwards

_Place = tuple[int, int]  # a stack of layers, and the index of one in it


@contextmanager
def clean_prefix(module: torch.nn.Module, owners: Sequence[torch.nn.Module]) -> Iterator["Prefix"]:
    """Within it, evaluations of `module` must be of one batch, with weights that differ only in those of `owners`.

    Memory: one layer's output. Cost: the frozen prefix once, whatever the number of evaluations.
    """
    prefix = Prefix()
    wraps = [(owner, prefix.marking_tuned) for owner in owners]
    wraps += [(layer, partial(prefix.computed_once, place)) for place, layer in _layers(module)]
    with wrapped_forwards([*wraps, (module, prefix.counting)]):
        yield prefix


class Prefix:
    """What the first evaluation found: which layers are clean, and what the last of them gave."""

    def __init__(self) -> None:
        self._num_evaluations = 0
        self._reached_tuned = False
        self._clean: set[_Place] = set()
        self._output: Any = None

    @property
    def num_reused(self) -> int:
        """Layers that the next evaluation need not compute."""
        return len(self._clean)

    def counting(self, forward: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._num_evaluations += 1
            return forward(*args, **kwargs)

        return counted

    def marking_tuned(self, forward: Callable) -> Callable:
        def marked(*args: Any, **kwargs: Any) -> Any:
            self._reached_tuned = True
            return forward(*args, **kwargs)

        return marked

    def computed_once(self, place: _Place, forward: Callable) -> Callable:
        def once(*args: Any, **kwargs: Any) -> Any:
            if self._num_evaluations > 1 and place in self._clean:
                return self._output
            output = forward(*args, **kwargs)
            if self._num_evaluations == 1:
                self._note(place, output)
            return output

        return once

    def _note(self, place: _Place, output: Any) -> None:
        stack, index = place
        if not self._reached_tuned and (index == 0 or (stack, index - 1) in self._clean):
            self._clean.add(place)
            self._output = output
        elif place in self._clean:  # shared, and it runs again behind tuned tensors: nothing can be skipped
            self._clean.clear()


def _layers(module: torch.nn.Module) -> list[tuple[_Place, torch.nn.Module]]:
    """Members of the outermost ModuleLists, in the order in which they are registered."""
    if isinstance(module, torch.nn.ModuleList):
        return [((id(module), index), layer) for index, layer in enumerate(module)]
    return [found for child in module.children() for found in _layers(child)]
