"""Floating-point operations of forward passes, counted from the model that runs.

The operators of a pass are watched once for each shape, with the formulas of `torch.utils.flop_counter`; later passes
of that shape add the number found then. Counted are matrix products, convolutions and attention, a multiply-add as two
operations, padding and masked positions included, since they are computed. Not counted: elementwise work, norms,
softmax, lookups, and what makes directions and moves weights. An operator of another library that multiplies inside
itself is counted where `_FORMULAS` names it (those of bitsandbytes), else not.

It times nothing, keeps no totals of a run, and knows no model: what a pass costs must follow from the shape of its
batch and from the part of the model that runs.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..data.batches import Batch
from .estimators import LossAt

BACKPROPAGATION_FORWARDS = 3
"""A step of backpropagation in forwards: one, and a backward of twice its operations. The convention holds for frozen
weights too, whose gradients nobody computes: with adapters a backward needs about half as much."""

WHOLE = "whole"
"""The part of a model that is all of it."""
FROZEN = "frozen"
"""The part before the first tuned tensor, computed when a batch is made."""

Value = TypeVar("Value")
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Shape:
    """What of a batch a forward's operations depend on: [S, T] tokens, C candidates (None: the whole vocabulary), B
    labels (None: texts), n scored positions; and how many frozen layers hand on what they gave before."""

    tokens: tuple[int, ...]
    num_candidates: int | None
    num_labels: int | None
    num_scored: int
    num_frozen: int = 0


def shape_of(batch: Batch) -> Shape:
    """The shape of a batch.

    >>> two = torch.zeros(2, dtype=torch.int64)
    >>> shape_of(Batch(torch.zeros(2, 5), torch.ones(2, 5), two, two, None, torch.arange(3), two, 2))
    Shape(tokens=(2, 5), num_candidates=3, num_labels=2, num_scored=2, num_frozen=0)
    """
    num_candidates, num_labels = (None if given is None else len(given) for given in (batch.candidates, batch.labels))
    num_frozen = batch.frozen.num_layers if batch.frozen else 0
    return Shape(tuple(batch.input_ids.shape), num_candidates, num_labels, len(batch.rows), num_frozen)


def new_frozen_flops(batch: Batch) -> int:
    """Return the operations that frozen layers took when the batch was made."""
    return batch.frozen.num_new_flops if batch.frozen else 0


@dataclass
class _Costs:
    """What is known of one part: the operations of one batch of each length, and of one scored position more."""

    found: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)  # (scored positions, operations)
    of_position: int | None = None

    def expected(self, length: tuple[int, ...], num_scored: int) -> int | None:
        """The operations of a batch, None where they must be counted."""
        known, flops = self.found.get(length, (None, 0))
        if known == num_scored:
            return flops
        if known is None or self.of_position is None:
            return None
        return flops + self.of_position * (num_scored - known)

    def note(self, length: tuple[int, ...], num_scored: int, flops: int) -> None:
        known, others = self.found.setdefault(length, (num_scored, flops))
        if known != num_scored:
            slope, rest = divmod(flops - others, num_scored - known)
            self.of_position = None if rest else slope


class Meter:
    """Counts the forwards of one model, one thread at a time; it holds what shapes cost and no results.

    Guarantees: `call` runs exactly once, its value has the bits that it has without a meter, and the count depends on
    shape and part alone, not on what was counted before.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, _Costs] = defaultdict(_Costs)

    def counted(self, shape: Shape, part: Hashable, call: Callable[[], Value]) -> tuple[Value, int]:
        """(what `call` returns, its floating-point operations).

        `part` names what of the model runs: `WHOLE`, or anything that `call`'s operations depend on, such as the layer
        of a cut. A scored position must cost the same in sequences of every length, as an output head makes it: it is
        learned once a part, so that one batch of each length is counted. Whatever `call` raises passes through, and
        nothing is kept of it. It must not enter `torch.inference_mode`, in which operators do not show what they are
        made of.

        Cost: a forward that is counted takes about 10 microseconds longer for each operator that it runs; others 2 in
        all.
        """
        lengths, costs = shape.tokens[1:], self._costs(shape, part)
        flops = costs.expected(lengths, shape.num_scored)
        if flops is not None:
            return call(), flops
        with _Watching() as watching:
            value = call()
        costs.note(lengths, shape.num_scored, watching.flops)
        return value, watching.flops

    def known(self, shape: Shape, part: Hashable) -> int | None:
        """Return the operations of a forward, None where none of its shape was counted."""
        return self._costs(shape, part).expected(shape.tokens[1:], shape.num_scored)

    def _costs(self, shape: Shape, part: Hashable) -> _Costs:
        return self._known[shape.tokens[0], shape.num_candidates, shape.num_labels, shape.num_frozen, part]


class Tally:
    """The evaluations of one step, all of one batch.

    runs, flops_of: by the part of the model, how often it ran and its operations in all; what frozen layers took when
    the batch was made is the part `FROZEN`.
    """

    def __init__(self, meter: Meter, shape: Shape, num_frozen_flops: int = 0):
        self._meter, self._shape = meter, shape
        self.runs: Counter[Hashable] = Counter()
        self.flops_of: Counter[Hashable] = Counter({FROZEN: num_frozen_flops} if num_frozen_flops else {})

    @property
    def flops(self) -> int:
        return self.flops_of.total()

    def counted(self, part: Hashable, call: Callable[[], Value], num: int = 1) -> Value:
        """What `call` returns, which runs `part` of the model `num` times, in one forward or in several."""
        known = part if num == 1 else (part, num)
        value, flops = self._meter.counted(self._shape, known, call)
        self.runs[part] += num
        self.flops_of[part] += flops
        return value

    def metered(self, loss_at: LossAt) -> LossAt:
        """`loss_at`, an evaluation of the whole model, counted."""
        return lambda point: self.counted(WHOLE, lambda: loss_at(point))


def counted_parts(
    meter: Meter, shape: Shape, cut: Hashable, prefix: Callable[[], Kept], suffix: Callable[[Kept], Value]
) -> tuple[Value, tuple[int, int]]:
    """(suffix(prefix()), (F1, F2)): the operations of the two blocks of a model that `cut` divides."""
    kept, first = meter.counted(shape, ("prefix", cut), prefix)
    value, second = meter.counted(shape, ("suffix", cut), lambda: suffix(kept))
    return value, (first, second)


class _Watching(TorchDispatchMode):
    """Adds up the operations of what runs within it; changes nothing.

    As `torch.utils.flop_counter.FlopCounterMode`, which also records modules and tries to take operators apart: that
    costs 23 microseconds an operator.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._formulas = _formulas()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "overloadpacket", func))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def _product(left: torch.Tensor, *args: Any, out_val: Any, **options: Any) -> int:
    """A product over the last dimension of its first operand; the first of its results counts."""
    out = out_val[0] if isinstance(out_val, tuple) else out_val
    return 2 * out.numel() * left.shape[-1]


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any) -> int:
    """Two products a head, [T, d] x [d, T'] and [T, T'] x [T', d']; nothing is saved by causal masks, or by keys that
    heads share."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


_FORMULAS: dict[str, Callable[..., int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_flash_attention": _attention,  # these three as older torch does not take shared keys
    "aten._scaled_dot_product_efficient_attention": _attention,
    "aten._scaled_dot_product_cudnn_attention": _attention,
    "aten._grouped_mm": _product,  # mixtures of experts
    "aten.mv": _product,
    "aten.dot": _product,
    "bitsandbytes.gemm_4bit": _product,
    "bitsandbytes.gemv_4bit": _product,
    "bitsandbytes.int8_linear_matmul": _product,
    "bitsandbytes.int8_scaled_mm": _product,
    "bitsandbytes.int8_mixed_scaled_mm": _product,
}
"""Operators that torch 2.13's own table lacks, or that are better counted so."""


def _formulas() -> dict[Any, Callable[..., int]]:
    """Formulas by operator, of those that exist in this process; called with its arguments and its result."""
    table = dict(flop_registry)
    for name, formula in _FORMULAS.items():
        space, _, operator = name.partition(".")
        if hasattr(getattr(torch.ops, space), operator):
            table[getattr(getattr(torch.ops, space), operator)] = formula
    return table
