"""Activations of the frozen layers before the first tuned tensor, computed once for all evaluations of a step.

A step evaluates one batch at several points that differ in tuned tensors alone. Layers that end before any module with
tuned tensors begins give the same output each time; so the first evaluation keeps the last such output, and in the
later ones these layers hand it on without computing. Bits are the same with and without. Where the first thing that a
forward does is tuned (an embedding, say), there is nothing to reuse and nothing changes.

It finds layers as the members of a model's outermost `ModuleList`s, run one after another, as Hugging Face models have
them. It chooses no tensors, and it knows nothing of perturbation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .forwards import wrapped_forwards


@contextmanager
def clean_prefix(module: torch.nn.Module, owners: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Within it, evaluations of `module` must be of one batch, with weights that differ only in those of `owners`.

    Memory: one layer's output. Cost: the frozen prefix once, whatever the number of evaluations.
    """
    prefix = _Prefix()
    wraps = [(owner, prefix.marking_tuned) for owner in owners]
    wraps += [(layer, prefix.computed_once) for layer in _layers(module)]
    with wrapped_forwards([*wraps, (module, prefix.counting)]):
        yield


class _Prefix:
    """What the first evaluation found: which layers are clean, and what the last of them gave."""

    def __init__(self) -> None:
        self._num_evaluations = 0
        self._reached_tuned = False
        self._clean: set[object] = set()
        self._output: Any = None

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

    def computed_once(self, forward: Callable) -> Callable:
        this = object()

        def once(*args: Any, **kwargs: Any) -> Any:
            if self._num_evaluations > 1 and this in self._clean:
                return self._output
            output = forward(*args, **kwargs)
            if self._num_evaluations == 1:
                self._note(this, output)
            return output

        return once

    def _note(self, layer: object, output: Any) -> None:
        if not self._reached_tuned:
            self._clean.add(layer)
            self._output = output
        elif layer in self._clean:  # shared, and it runs again behind tuned tensors: nothing can be skipped
            self._clean.clear()


def _layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Members of the outermost ModuleLists, in the order in which they are registered."""
    if isinstance(module, torch.nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in _layers(child)]
