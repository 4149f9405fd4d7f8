"""Floating-point operations of forward passes, counted from the model that runs.

A pass of a shape that was not met before runs under `torch.utils.flop_counter`; later ones of that shape add the number
found then. Counted are matrix products, convolutions and attention, a multiply-add as two operations, padding and
masked positions included, since they are computed. Not counted: elementwise work, norms, softmax, lookups, and what
makes directions and moves weights. An operator of another library that multiplies inside itself is counted where
`_FORMULAS` names it (those of bitsandbytes), else not.

It times nothing, keeps no totals of a run, and knows no model: what a pass costs must follow from the shape of its
batch and from the part of the model that runs.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..data.batches import Batch
from .estimators import LossAt

BACKPROPAGATION_FORWARDS = 3
"""A step of backpropagation in forwards: one, and a backward of twice its operations. The convention holds for frozen
weights too, whose gradients nobody computes: with adapters a backward needs about half as much."""

WHOLE, REUSED = "whole", "reused"
"""Parts of a model: all of it; and what is left where the frozen prefix was kept from the step's first evaluation."""

Value = TypeVar("Value")
Kept = TypeVar("Kept")
_Known = dict[int, int]  # operations by the number of scored positions


@dataclass(frozen=True)
class Shape:
    """What of a batch a forward's operations depend on: [S, T] tokens, C candidates (None: the whole vocabulary), B
    labels (None: texts), n scored positions."""

    tokens: tuple[int, ...]
    num_candidates: int | None
    num_labels: int | None
    num_scored: int


def shape_of(batch: Batch) -> Shape:
    """The shape of a batch.

    >>> two = torch.zeros(2, dtype=torch.int64)
    >>> shape_of(Batch(torch.zeros(2, 5), torch.ones(2, 5), two, two, None, torch.arange(3), two, 2))
    Shape(tokens=(2, 5), num_candidates=3, num_labels=2, num_scored=2)
    """
    sizes = (None if given is None else len(given) for given in (batch.candidates, batch.labels))
    return Shape(tuple(batch.input_ids.shape), *sizes, len(batch.rows))


class Meter:
    """Counts the forwards of one model, one thread at a time; it holds what shapes cost and no results.

    Guarantees: `call` runs exactly once, its value has the bits that it has without a meter, and the count depends on
    shape and part alone, not on what was counted before.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, _Known] = {}

    def counted(self, shape: Shape, part: Hashable, call: Callable[[], Value]) -> tuple[Value, int]:
        """(what `call` returns, its floating-point operations).

        `part` names what of the model runs: `WHOLE`, `REUSED`, or anything else that `call`'s operations depend on,
        such as the layer of a cut. At one `part` they must be affine in `num_scored`, as an output head makes them:
        two numbers of scored positions are counted, further ones follow. Whatever `call` raises passes through, and
        nothing is kept of it.

        Cost: a forward of a new shape about 20 microseconds longer for each operator that it runs; else 2
        microseconds.
        """
        known = self._known.setdefault((shape.tokens, shape.num_candidates, shape.num_labels, part), {})
        flops = _expected(known, shape.num_scored)
        if flops is not None:
            return call(), flops
        with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
            value = call()
        known[shape.num_scored] = flops = counter.get_total_flops()
        return value, flops


class Tally:
    """The forwards of one step, which evaluates one batch at several points within `Perturber.one_batch`."""

    def __init__(self, meter: Meter, shape: Shape):
        self._meter, self._shape = meter, shape
        self.num_forwards = 0
        self.flops = 0

    def metered(self, loss_at: LossAt) -> LossAt:
        """`loss_at`, counted; its first evaluation runs the whole model, later ones may reuse the frozen prefix."""

        def counted(point: Any) -> float:
            part = REUSED if self.num_forwards else WHOLE
            value, flops = self._meter.counted(self._shape, part, lambda: loss_at(point))
            self.num_forwards += 1
            self.flops += flops
            return value

        return counted


def counted_parts(
    meter: Meter, shape: Shape, cut: Hashable, prefix: Callable[[], Kept], suffix: Callable[[Kept], Value]
) -> tuple[Value, tuple[int, int]]:
    """(the value of suffix(prefix()), (F1, F2)): the operations of the two blocks of a model that `cut` divides."""
    kept, first = meter.counted(shape, ("prefix", cut), prefix)
    value, second = meter.counted(shape, ("suffix", cut), lambda: suffix(kept))
    return value, (first, second)


def _expected(known: _Known, num_scored: int) -> int | None:
    """The operations at `num_scored` positions, None where they must be counted."""
    if num_scored in known or len(known) < 2:
        return known.get(num_scored)
    (n, flops), (m, others) = list(known.items())[:2]
    slope, rest = divmod(others - flops, m - n)
    return None if rest else flops + slope * (num_scored - n)


def _product(left: tuple[int, ...], *args: Any, out_shape: tuple[int, ...], **options: Any) -> int:
    """A product over the last dimension of its first operand."""
    return 2 * prod(out_shape) * left[-1]


def _attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *args: Any, **options: Any) -> int:
    """Two products a head, [T, d] x [d, T'] and [T, T'] x [T', d']; nothing is saved by causal masks, or by keys that
    heads share."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_FORMULAS: dict[str, Callable[..., int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._grouped_mm": _product,  # mixtures of experts
    "aten.mv": _product,
    "aten.dot": _product,
    "bitsandbytes.gemm_4bit": _product,
    "bitsandbytes.gemv_4bit": _product,
    "bitsandbytes.int8_linear_matmul": _product,
    "bitsandbytes.int8_scaled_mm": _product,
    "bitsandbytes.int8_mixed_scaled_mm": lambda *args, out_shape, **options: _product(*args, out_shape=out_shape[0]),
}
"""Operators that torch 2.13's own table lacks. Formulas take shapes in place of tensors."""


def _formulas() -> dict[Any, Callable[..., int]]:
    """`_FORMULAS` by operator, those that exist in this process."""
    named = ((name.partition("."), formula) for name, formula in _FORMULAS.items())
    found = ((getattr(getattr(torch.ops, space), name, None), formula) for (space, _, name), formula in named)
    return {operator: formula for operator, formula in found if operator is not None}
