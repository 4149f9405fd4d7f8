"""A model's forward pass at theta + mu z, without ever writing theta.

A perturbed weight exists only where it is used: while a module that owns tuned parameters runs its own forward, every
torch function that receives one of them receives theta + mu z in its place, made for that call alone. A linear layer
is perturbed in chunks of rows, an embedding only in the rows looked up, anything else (norms, biases, convolutions)
as a whole. So nothing is ever restored, theta is byte-identical before and after, also when the forward raises, 16-bit
weights do not drift, and memory is inference plus one chunk.

It does not choose directions (estimators) and does not move weights (update). A module that reads another module's
parameter from outside that module's forward is not seen; `Perturber` then names the tensors that no forward used.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from ..models.forwards import wrapped_forwards
from ..space import Space, TensorSpec, Weights
from . import noise
from .noise import Distribution


@dataclass(frozen=True)
class Perturbation:
    """The point theta + `mu` z(`key`): `mu` is signed, in units of the weights.

    names: the tensors that it moves, tuned or not; None: every tuned one. A tensor's part of z is the same either way.
    """

    key: int
    mu: float
    distribution: Distribution
    names: frozenset[str] | None = None

    def moves(self, spec: TensorSpec) -> bool:
        return self.names is None or spec.name in self.names


_Moved = dict[int, tuple[TensorSpec, Perturbation]]  # by the identity of the parameter


class Perturber:
    """Runs a module's forward at perturbed points; one object serves one module, one thread at a time.

    Args:
        module: the model; its parameters may be re-pointed (`space.bind`) between evaluations.
        space: the tuned tensors.
        scratch_bytes: largest chunk of perturbed rows that a linear layer holds at once.

    Attributes:
        parameters: the tuned tensors as the module has them, by name.
    """

    def __init__(self, module: torch.nn.Module, space: Space, scratch_bytes: int = 2**22):
        specs = {spec.name: spec for spec in space.tensors}
        self.space = space
        self._specs = {id(p): specs[name] for name, p in module.named_parameters() if name in specs}
        self.parameters = {name: p for name, p in module.named_parameters() if name in specs}
        self._owners = [m for m in module.modules() if any(id(p) in self._specs for p in m._parameters.values())]
        self.scratch_bytes = scratch_bytes

    def bind(self, weights: Weights) -> None:
        """Points the tuned tensors at `weights`, as `space.bind` does, without a walk through the module."""
        for name, tensor in weights.items():
            self.parameters[name].data = tensor

    @contextmanager
    def at(self, *perturbations: Perturbation | None) -> Iterator[None]:
        """Within it, the module computes at theta + mu z; `None` is theta itself. No autograd graph is built.

        Several perturbations move tensors of their own each, as the two blocks of a model that is cut in two.

        Raises:
            ModelError: a forward ended without having used every tensor that was to move; the message names one.
            ValueError: two perturbations move one tensor.
        """
        moved = self._moved([point for point in perturbations if point is not None])
        if not moved:
            with torch.no_grad():
                yield
            return
        with self.running(_AtUse(moved, self.scratch_bytes), [spec for spec, _ in moved.values()]):
            yield

    @contextmanager
    def running(self, mode: "Mode", specs: Iterable[TensorSpec]) -> Iterator[None]:
        """Within it, the forwards of modules that own tuned tensors run in `mode`, which is to use all `specs`.

        Raises:
            ModelError: it did not.
        """
        running = _Running(mode)
        with wrapped_forwards([(owner, running.wrap) for owner in self._owners]), torch.no_grad():
            yield
        unused = {spec.name for spec in specs} - mode.used
        if unused:
            raise ModelError(
                f"tensor {min(unused)!r} ({len(unused)} in all) is tuned but no forward pass of its module used it: "
                f"name the tensors to tune with model.trainable, or under LoRA the modules with model.lora_targets"
            )

    def find_used(self, call: Callable[[], Any]) -> frozenset[str]:
        """Return the names of the tuned tensors that `call` uses when it is evaluated at a perturbed point."""
        moved = self._moved([Perturbation(0, 1e-3, Distribution.RADEMACHER)])
        mode = _AtUse(moved, self.scratch_bytes)
        with self.running(mode, ()):
            call()
        return frozenset(mode.used)

    def moved_by(self, point: Perturbation) -> dict[int, TensorSpec]:
        """The tuned tensors that a point moves, by the identity of the parameter."""
        return {ident: spec for ident, spec in self._specs.items() if point.moves(spec)}

    def _moved(self, perturbations: Sequence[Perturbation]) -> _Moved:
        moved: _Moved = {}
        for point in perturbations:
            own = {ident: (spec, point) for ident, spec in self.moved_by(point).items()}
            if twice := own.keys() & moved.keys():
                names = sorted(self._specs[ident].name for ident in twice)
                raise ValueError(f"tensor {names[0]!r} ({len(names)} in all) is moved by two perturbations: give one")
            moved |= own
        return moved


class Mode(Protocol):
    """A way to run torch functions, which notes the names of the tensors that it used."""

    used: set[str]

    def __enter__(self) -> Any: ...

    def __exit__(self, *raised: Any) -> None: ...


class _Running:
    """Forwards within a mode, which is entered once: called by another owner, it would perturb twice."""

    def __init__(self, mode: Mode):
        self._mode, self._is_active = mode, False

    def wrap(self, forward: Callable) -> Callable:
        def perturbed_forward(*args: Any, **kwargs: Any) -> Any:
            if self._is_active:
                return forward(*args, **kwargs)
            self._is_active = True
            try:
                with self._mode:
                    return forward(*args, **kwargs)
            finally:
                self._is_active = False

        return perturbed_forward


class _AtUse(TorchFunctionMode):
    """Replaces moved parameters among the arguments of torch functions."""

    def __init__(self, moved: _Moved, scratch_bytes: int):
        super().__init__()
        self._moved, self._scratch_bytes = moved, scratch_bytes
        self._scratch: dict[torch.dtype, torch.Tensor] = {}
        self.used: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is functional.embedding and is_plain_lookup(args, kwargs, self._moved):
            return self._embedding(*args[:2])
        if getattr(func, "__name__", "") == "__get__" and not isinstance(value := func(*args), torch.Tensor):
            return value  # shape, dtype, device and their like: no value is read
        args = tuple(self._perturbed(value) for value in args)
        return func(*args, **{name: self._perturbed(value) for name, value in kwargs.items()})

    def _perturbed(self, value: Any) -> Any:
        """theta + mu z for a moved parameter, in storage of its own; lists of them likewise; anything else as it is."""
        if type(value) in (list, tuple):  # as torch.cat and recurrent layers are given them
            return type(value)(self._perturbed(part) for part in value)
        if not isinstance(value, torch.Tensor) or id(value) not in self._moved:
            return value
        spec, point = self._used(value)
        out = torch.empty_like(value.data, memory_format=torch.contiguous_format)
        self._write(out, value.data, point, spec.start)
        return out

    def _used(self, parameter: torch.Tensor) -> tuple[TensorSpec, Perturbation]:
        spec, point = self._moved[id(parameter)]
        self.used.add(spec.name)
        return spec, point

    def _write(self, out: torch.Tensor, weights: torch.Tensor, point: Perturbation, start: int) -> None:
        noise.perturb(out.view(-1), weights.reshape(-1), point.key, start, point.mu, point.distribution)

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        value, bias = self._perturbed(input), self._perturbed(bias)
        if id(weight) not in self._moved or weight.dim() != 2:
            return functional.linear(value, self._perturbed(weight), bias)
        step = rows_at_once(weight, self._scratch_bytes)
        if step >= len(weight) or value.dim() < 2:
            return functional.linear(value, self._chunk(weight, 0, len(weight)), bias)
        return linear_by_chunks(value, len(weight), step, partial(self._chunk, weight), bias)

    def _chunk(self, weight: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` of theta + mu z, in the scratch that the next chunk overwrites."""
        spec, point = self._used(weight)
        size = (last - first) * weight.shape[1]
        held = self._scratch.get(weight.dtype)
        if held is None or held.numel() < size:
            held = self._scratch[weight.dtype] = torch.empty(size, dtype=weight.dtype, device=weight.device)
        out = held[:size]
        self._write(out, weight.data[first:last], point, spec.start + first * weight.shape[1])
        return out.view(last - first, weight.shape[1])

    def _embedding(self, rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        spec, point = self._used(table)
        out = table.new_empty(*rows.shape, table.shape[1])
        flat = out.view(-1, table.shape[1])
        index = rows.reshape(-1).to(torch.int64).contiguous()
        noise.perturb_rows(flat, table.data, index, point.key, spec.start, point.mu, point.distribution)
        return out


def is_plain_lookup(args: tuple, kwargs: dict[str, Any], moved: Container[int]) -> bool:
    """Whether `functional.embedding` of these only picks rows of a table whose identity is in `moved`."""
    options = dict(zip(("padding_idx", "max_norm"), args[2:4], strict=False)) | kwargs
    if len(args) < 2 or id(args[1]) not in moved or options.get("max_norm") is not None:
        return False
    return args[1].is_contiguous()


def rows_at_once(weight: torch.Tensor, scratch_bytes: int) -> int:
    """Rows of a linear layer's weight in a chunk; chunks are of about equal size."""
    num_rows, row = weight.shape
    most = max(1, scratch_bytes // (row * weight.element_size()))
    return -(-num_rows // -(-num_rows // most))


def linear_by_chunks(
    value: torch.Tensor,
    num_rows: int,
    step: int,
    chunk: Callable[[int, int], torch.Tensor],
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """`functional.linear` of a value of two dimensions or more, `step` of the weight's rows at a time.

    chunk(first, last): these rows, to be used before it is called again.
    """
    rows, out = value.reshape(-1, value.shape[-1]), value.new_empty(*value.shape[:-1], num_rows)
    columns = out.view(-1, num_rows)
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        weight = chunk(first, last).T
        if bias is None:
            torch.mm(rows, weight, out=columns[:, first:last])
        else:
            torch.addmm(bias[first:last], rows, weight, out=columns[:, first:last])
    return out
