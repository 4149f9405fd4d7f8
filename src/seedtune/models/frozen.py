"""Frozen layers that hand on outputs computed before, in place of computing them.

`find_frozen` finds the layers that end before the first tuned tensor is read; `install` lets them take their outputs
from the batch (`Batch.frozen`) while `handing_on` is active. Everything else of the model runs as it is: embeddings,
masks, rotary tables, later layers. So wraps of forwards, cuts and autograd see an ordinary forward.

Does not compute or keep outputs (`seedtune.zo.kept_activations`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..data.batches import Batch, FrozenOutputs
from ..errors import ModelError
from .blocks import Cut, cut_before, layer_stack

_handed: ContextVar[FrozenOutputs | None] = ContextVar("handed", default=None)


def find_frozen(module: torch.nn.Module, tuned: Sequence[str]) -> Cut | None:
    """Return the cut behind the layers that no tuned tensor reaches; None where there are none.

    Args:
        tuned: names of the tuned parameters, as `module.named_parameters()` gives them.

    Cost: as `cut_before`.
    """
    try:
        path, stack = layer_stack(module)
        layers = [name.removeprefix(f"{path}.").partition(".")[0] for name in tuned if name.startswith(f"{path}.")]
        num_frozen = min((int(index) for index in layers), default=len(stack))
        if num_frozen == 0 or not tuned:
            return None
        cut = cut_before(module, num_frozen)
    except ModelError:  # a model that cannot be cut computes everything each time
        return None
    return None if cut.block1.intersection(tuned) else cut


def install(cut: Cut, gives_tuple: bool) -> None:
    """Let the layers before `cut` hand on outputs within `handing_on`, in place.

    The modules keep their names, parameters and class hierarchy, and may be copied with `copy.deepcopy`.

    Args:
        gives_tuple: the layers return their output as the only member of a tuple.
    """
    for layer in cut.layers:
        kind: type = type(layer)
        layer.__class__ = _handing_class(kind, gives_tuple, layer is cut.layers[-1])


@contextmanager
def handing_on(batch: Batch) -> Iterator[None]:
    """Make the installed layers of the model hand on what `batch.frozen` holds; a batch without it computes.

    Within it the model must run once, on `batch`, or on its sequences repeated a whole number of times.
    """
    if batch.frozen is not None:
        batch.frozen.note_use(batch.frozen.num_flops)
    token = _handed.set(batch.frozen)
    try:
        yield
    finally:
        _handed.reset(token)


@cache
def _handing_class(kind: type[torch.nn.Module], gives_tuple: bool, is_last: bool) -> type[torch.nn.Module]:
    """Derive from a layer's class one that hands on: the last one the outputs kept, those before it their input."""

    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        frozen = _handed.get()
        if frozen is None:
            return kind.forward(self, *args, **kwargs)
        hidden = _hidden(tree_leaves((args, kwargs)))
        values = _repeated(frozen.values, len(hidden)) if is_last else hidden
        return (values,) if gives_tuple else values

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _hidden(given: list[Any]) -> torch.Tensor:
    """The hidden states among what a layer was given: the first [S, T, d]."""
    return next(leaf for leaf in given if isinstance(leaf, torch.Tensor) and leaf.dim() == 3)


def _repeated(values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return a copy of `values`, as often as makes `num_rows`: models may write into it."""
    return values.repeat(num_rows // len(values), 1, 1)


def compute_frozen(cut: Cut, call: Callable[[], Any]) -> tuple[torch.Tensor, bool]:
    """Run the layers before `cut`; return the last one's output, [S, T, d], and whether it came in a tuple.

    Raises:
        ModelError: the output is not one tensor of that form.
    """
    output = cut.prefix(call).outputs[-1][1]
    gives_tuple = isinstance(output, tuple)
    values = output[0] if gives_tuple else output
    if (gives_tuple and len(output) > 1) or not isinstance(values, torch.Tensor) or values.dim() != 3:
        raise ModelError(f"layers of {type(cut.module).__name__} return more than one tensor of hidden states")
    return values, gives_tuple
