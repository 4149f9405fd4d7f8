"""A model, or the suffix of a cut one, run once for several points: on the batch as often as there are points.

`call` runs the whole model on one batch, once for each point: the first time the model computes all points' rows, point
by point, and hands on the first one's part of its output; each further time it hands on the next part. So whatever a
caller makes of a model's output, such as a loss, it makes of each point's as it would of a single one's.

What of a prefix's activations is repeated was found out on batches of two and of three sequences: the tensors with a
row a sequence. Tables that all sequences share stay as they are.

Not here: that each point's rows meet weights of their own (`seedtune.zo.batched`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from ..errors import ModelError
from . import answer_head
from .blocks import Activations, Cut
from .forwards import wrapped_forwards

Value = TypeVar("Value")


def batched_forward(module: torch.nn.Module, call: Callable[[], Value], num: int) -> list[Value]:
    """What `call` returns for each of `num` points. Cost: one forward of `num` times the rows.

    Raises:
        ModelError: `call` runs the model on something else each time, or more than once.
    """
    widened = _Widened(num)
    with wrapped_forwards([(module, widened.wrap)]):
        return [call() for _ in range(num)]


@dataclass(frozen=True, eq=False)
class BatchedSuffix:
    """The suffix of `cut` for several points at once.

    has_rows: for each leaf of what a prefix kept, in order, whether it has a row a sequence.
    """

    cut: Cut
    has_rows: tuple[bool, ...]

    def __call__(self, call: Callable[[], Value], activations: Activations, num: int) -> list[Value]:
        """What `call` returns for each of `num` points. Cost: one suffix of `num` times the rows.

        Raises:
            ModelError: as `Cut.suffix` and `batched_forward`.
        """
        each = partial(batched_forward, self.cut.module, call, num)
        return self.cut.suffix(each, self._repeated(activations, num))

    def _repeated(self, activations: Activations, num: int) -> Activations:
        leaves, tree = tree_flatten([output for _, output in activations.outputs])
        if len(leaves) != len(self.has_rows):
            raise _unlike(self.cut)
        wide = [_rows(leaf, num) if has_rows else leaf for leaf, has_rows in zip(leaves, self.has_rows, strict=True)]
        modules, outputs = (module for module, _ in activations.outputs), tree_unflatten(wide, tree)
        inputs = tree_map_only(torch.Tensor, partial(_rows, num=num), activations.inputs)
        return replace(activations, inputs=inputs, outputs=tuple(zip(modules, outputs, strict=True)))


def batched_suffix(cut: Cut) -> BatchedSuffix:
    """The suffix of `cut` for several points. Cost: two prefixes of a few tokens.

    Raises:
        ModelError: what a prefix keeps changes its form with the number of sequences.
    """
    kept = [tree_leaves([output for _, output in cut.prefix(trial_call(cut.module, n)).outputs]) for n in (2, 3)]
    if len(kept[0]) != len(kept[1]):
        raise _unlike(cut)
    return BatchedSuffix(cut, tuple(_first(two) != _first(three) for two, three in zip(*kept, strict=True)))


def trial_call(module: torch.nn.Module, num_sequences: int) -> Callable[[], Any]:
    """Runs the model on `num_sequences` of four tokens each, the last one masked in the first."""
    device = next(module.parameters()).device
    tokens = (torch.arange(4, device=device) + torch.arange(num_sequences, device=device)[:, None]) % 5
    mask = torch.ones_like(tokens)
    mask[0, -1] = 0
    return partial(module, input_ids=tokens, attention_mask=mask)


class _Widened:
    """Runs a module on its inputs repeated, once, and hands on the parts of what it gave, one a call."""

    def __init__(self, num: int):
        self._num, self._count = num, 0
        self._given: list[Any] = []
        self._output: Any = None

    def wrap(self, forward: Callable) -> Callable:
        def widened(*args: Any, **kwargs: Any) -> Any:
            given = tree_leaves((args, kwargs))
            if self._count == 0:
                self._given = given
                wide_args, wide_kwargs = tree_map_only(torch.Tensor, partial(_rows, num=self._num), (args, kwargs))
                with answer_head.directions(self._num):
                    self._output = forward(*wide_args, **wide_kwargs)
            elif self._count == self._num or not _are_equal(given, self._given):
                raise ModelError("a call ran the model more than once or on other inputs each time: let it run it once")
            self._count += 1
            return tree_map_only(torch.Tensor, self._part, self._output)

        return widened

    def _part(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 0 or len(tensor) % self._num:
            return tensor
        return tensor.unflatten(0, (self._num, -1))[self._count - 1]


def _rows(tensor: torch.Tensor, num: int) -> torch.Tensor:
    """[B, ...] to [num B, ...]: all of it `num` times; what is one row in memory stays so."""
    if tensor.dim() == 0:
        return tensor
    if tensor.stride(0) == 0:
        return tensor[:1].expand(num * len(tensor), *tensor.shape[1:])
    return tensor.repeat(num, *(1 for _ in tensor.shape[1:]))


def _first(leaf: Any) -> int | None:
    return len(leaf) if isinstance(leaf, torch.Tensor) and leaf.dim() else None


def _are_equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
        for a, b in zip(one, other, strict=True)
    )


def _unlike(cut: Cut) -> ModelError:
    return ModelError(
        f"what {type(cut.module).__name__} keeps before layer {cut.k} differs in form from batch to batch"
    )
