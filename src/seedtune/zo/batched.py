"""A model's forward at several points at once: Q times the rows, each point's with weights of its own.

Rows q R to (q + 1) R of whatever flows through the model belong to point q, and meet theta + mu z_q; tensors that do
not move meet all rows in one call, which is the gain: a frozen weight under LoRA is read once for all points. A
function that is given a moved tensor runs once a point on that point's rows, with the values that an evaluation there
alone would give it; linear layers chunk by chunk in one scratch as there, small ones in one product, look-ups row by
row. Of the two sides of one direction that stand side by side, each chunk comes from one generation of bits.
So memory is that of a forward of Q times the rows, and the scratch.

What is batched must be a function of rows: each row of the result from the same row of what is given. Where that does
not hold, the function is refused by name, or, where its sizes happen to fit, gives something else. So whoever batches a
model compares it once with single evaluations, as `seedtune.fed.evaluations` does. Losses may differ from theirs in
the last bits, where matrix products of other shapes add in another order.

Not here: where the rows come from (`seedtune.models.batched_forward`), which evaluations are batched
(`seedtune.fed.evaluations`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import ModelError
from ..space import TensorSpec
from . import noise
from .perturb import Perturbation, Perturber, is_plain_lookup

_SMALL_BYTES = 2**18
"""Of all points' values of a weight, up to which one product takes them; more leave a core's cache before they are
used, which cost 2 to 3 % of a suffix."""

_Sides = tuple[int, ...]
"""The places of points whose values are made together: one, or the two sides of a direction."""


@contextmanager
def each_at(perturber: Perturber, points: Sequence[Perturbation | None]) -> Iterator[None]:
    """Within it, the module computes rows q R to (q + 1) R at theta + mu z of `points[q]`; None is theta itself. No
    autograd graph is built.

    It may stand within `Perturber.at` of tensors that move alike for all rows.

    Raises:
        ModelError: names the function that cannot be run by rows; or a forward ended without having used every tensor
            that was to move.
        ValueError: points of unlike tensors, or none that moves any.
    """
    moving = [point for point in points if point is not None]
    if len({point.names for point in moving}) != 1:
        raise ValueError(f"{len(points)} points move unlike tensors, or none: give some that move the same ones")
    moved = perturber.moved_by(moving[0])
    with perturber.running(_ByRows(moved, tuple(points), perturber.scratch_bytes), moved.values()):
        yield


def _by_sides(points: Sequence[Perturbation | None]) -> list[_Sides]:
    """All places in order, those of a direction's two sides together where they are neighbours."""
    sides: list[_Sides] = []
    for q, point in enumerate(points):
        if sides and len(sides[-1]) == 1 and _are_opposite(points[q - 1], point):
            sides[-1] = (q - 1, q)
        else:
            sides.append((q,))
    return sides


def _are_opposite(one: Perturbation | None, other: Perturbation | None) -> bool:
    return one is not None and other is not None and other == replace(one, mu=-one.mu)


class _ByRows(TorchFunctionMode):
    """Runs torch functions that are given moved tensors once a point, on its rows.

    _derived: every point's value of what functions of moved tensors alone gave, such as a norm's 1 + weight, by the
    identity of the first one's, which stands for all of them until rows meet it.
    """

    def __init__(self, moved: dict[int, TensorSpec], points: tuple[Perturbation | None, ...], scratch_bytes: int):
        super().__init__()
        self._moved, self._points, self._scratch_bytes = moved, points, scratch_bytes
        self._sides = _by_sides(points)
        self._scratch: dict[torch.dtype, torch.Tensor] = {}
        self._derived: dict[int, list[torch.Tensor]] = {}
        self.used: set[str] = set()

    def __exit__(self, *raised: Any) -> None:
        self._derived.clear()
        super().__exit__(*raised)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(self._is_moved(value) for value in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func is functional.linear and id(args[1]) in self._moved and args[1].dim() == 2:
            return self._linear(*args, **kwargs)
        if func is functional.embedding and is_plain_lookup(args, kwargs, self._moved):
            return self._embedding(*args[:2])
        if getattr(func, "__name__", "") == "__get__" and not isinstance(value := func(*args), torch.Tensor):
            return value  # shape, dtype, device and their like: no value is read
        return self._one_by_one(func, args, kwargs)

    def _is_moved(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and (id(value) in self._moved or id(value) in self._derived)

    # Any function

    def _one_by_one(self, func: Callable, args: tuple, kwargs: dict) -> torch.Tensor:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        rows = [value for value in tensors if not self._is_moved(value) and _has_rows(value)]
        if any(len(value) % len(self._points) for value in rows):
            raise self._refused(func, rows)
        results = []
        for sides in self._sides:
            own = {id(value): self._own(value, sides) for value in tensors}
            for i in range(len(sides)):
                own_args, own_kwargs = tree_map_only(torch.Tensor, lambda value: own[id(value)][i], (args, kwargs))  # noqa: B023
                results.append(func(*own_args, **own_kwargs))
        if not self._fits(results, rows):
            raise self._refused(func, rows)
        if rows:
            return torch.cat(results)
        self._derived[id(results[0])] = results
        return results[0]

    def _fits(self, results: Sequence[Any], rows: Sequence[torch.Tensor]) -> bool:
        """Whether each point's result has its rows or, made of moved tensors alone, is small."""
        if not all(isinstance(result, torch.Tensor) for result in results):
            return False
        if not rows:
            return sum(result.nbytes for result in results) <= self._scratch_bytes
        return all(result.dim() and len(result) * len(self._points) == len(rows[0]) for result in results)

    def _own(self, value: torch.Tensor, sides: _Sides) -> list[torch.Tensor]:
        """What each of these points has of an argument."""
        if id(value) in self._derived:
            return [self._derived[id(value)][q] for q in sides]
        if id(value) in self._moved:
            if (first := self._points[sides[0]]) is None:
                return [self._theta(value, 0, len(value))]
            out = [torch.empty_like(value.data, memory_format=torch.contiguous_format) for _ in sides]
            self._write(out, value, first, 0)
            return out
        if not _has_rows(value):
            return [value] * len(sides)
        return [value.unflatten(0, (len(self._points), -1))[q] for q in sides]

    def _theta(self, parameter: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Its rows `first` to `last` as they are."""
        self.used.add(self._moved[id(parameter)].name)
        return parameter.data[first:last]

    def _write(self, outs: Sequence[torch.Tensor], parameter: torch.Tensor, at: Perturbation, first: int) -> None:
        """Rows from `first` on of theta + mu z at a point, and of theta - mu z where there is room for both."""
        spec = self._moved[id(parameter)]
        self.used.add(spec.name)
        weights = parameter.data[first : first + len(outs[0])].reshape(-1)
        start = spec.start + first * (parameter.numel() // max(1, len(parameter)))
        one, *other = (out.view(-1) for out in outs)
        if other:
            noise.perturb_both(one, other[0], weights, at.key, start, at.mu, at.distribution)
        else:
            noise.perturb(one, weights, at.key, start, at.mu, at.distribution)

    def _refused(self, func: Callable, rows: Sequence[torch.Tensor]) -> ModelError:
        name = getattr(func, "__name__", str(func))
        shapes = ", ".join(str(list(value.shape)) for value in rows) or "nothing else"
        return ModelError(
            f"{name} was given a tuned tensor with {shapes}: not rows of {len(self._points)} points, each of which "
            "has weights of its own"
        )

    # Linear layers

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        num = len(self._points)
        if not _has_rows(input) or len(input) % num or self._is_moved(input):
            raise self._refused(functional.linear, [input])
        rows = input.reshape(num, -1, input.shape[-1])
        biases = None if bias is None else [own for sides in self._sides for own in self._own(bias, sides)]
        if num * weight.nbytes <= min(self._scratch_bytes, _SMALL_BYTES):
            out = self._in_one(rows, weight, biases)
        else:
            out = self._in_chunks(rows, weight, biases)
        return out.view(*input.shape[:-1], len(weight))

    def _in_one(self, rows, weight, biases) -> torch.Tensor:
        stack = self._chunks(weight, len(weight), len(self._points))
        for sides in self._sides:
            if (first := self._points[sides[0]]) is None:
                stack[sides[0]] = self._theta(weight, 0, len(weight))
            else:
                self._write([stack[q] for q in sides], weight, first, 0)
        if biases is None:
            return torch.bmm(rows, stack.transpose(1, 2))
        return torch.baddbmm(torch.stack(biases).unsqueeze(1), rows, stack.transpose(1, 2))

    def _in_chunks(self, rows, weight, biases) -> torch.Tensor:
        num_rows, row = weight.shape
        step = max(1, self._scratch_bytes // (row * weight.element_size()))
        step = -(-num_rows // -(-num_rows // step))  # chunks of about equal size
        out = rows.new_empty(*rows.shape[:2], num_rows)
        for first in range(0, num_rows, step):
            last = min(first + step, num_rows)
            for sides in self._sides:
                for q, chunk in zip(sides, self._of_sides(weight, first, last, sides), strict=True):
                    if biases is None:
                        torch.mm(rows[q], chunk.T, out=out[q, :, first:last])
                    else:
                        torch.addmm(biases[q][first:last], rows[q], chunk.T, out=out[q, :, first:last])
        return out

    def _of_sides(self, weight: torch.Tensor, first: int, last: int, sides: _Sides) -> Sequence[torch.Tensor]:
        """Rows `first` to `last` of a weight at these points, in the scratch that the next ones overwrite."""
        if (point := self._points[sides[0]]) is None:
            return [self._theta(weight, first, last)]
        chunks = self._chunks(weight, last - first, len(sides))
        self._write(list(chunks), weight, point, first)
        return list(chunks)

    def _chunks(self, weight: torch.Tensor, num_rows: int, num: int) -> torch.Tensor:
        """Room for `num` pieces of a weight, [num, num_rows, row], which the next call overwrites."""
        size = num * num_rows * weight.shape[1]
        held = self._scratch.get(weight.dtype)
        if held is None or held.numel() < size:
            held = self._scratch[weight.dtype] = torch.empty(size, dtype=weight.dtype, device=weight.device)
        return held[:size].view(num, num_rows, weight.shape[1])

    # Look-ups

    def _embedding(self, rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        if not _has_rows(rows) or len(rows) % len(self._points):
            raise self._refused(functional.embedding, [rows])
        spec, out = self._moved[id(table)], table.new_empty(*rows.shape, table.shape[1])
        self.used.add(spec.name)
        indices = rows.reshape(len(self._points), -1).to(torch.int64).contiguous()
        looked_up = out.view(len(self._points), -1, table.shape[1])
        for own, index, point in zip(looked_up, indices, self._points, strict=True):
            if point is None:
                torch.index_select(table.data, 0, index, out=own)
            else:
                noise.perturb_rows(own, table.data, index, point.key, spec.start, point.mu, point.distribution)
        return out


def _has_rows(value: torch.Tensor) -> bool:
    """Whether it has a part for each point: parameters and single numbers are the same for all."""
    return value.dim() > 0 and not isinstance(value, torch.nn.Parameter)
