"""A model cut in two before a layer: the prefix computed once, the suffix as often as wanted, with no code copied.

The layers are the members of a `ModuleList` that a model runs one after another, as those of Hugging Face do. Whoever
evaluates a batch gives one `call`, such as `lambda: loss(model, batch)`, which runs the whole model. `Cut.prefix` runs
it up to the end of layer k - 1 and keeps that layer's output and what else was made before the cut and is read behind
it: rotary tables, position biases. `Cut.suffix` runs the same call; the modules before the cut hand on what was kept
without computing, and everything from layer k on computes. So masks and heads are the model's own.

Block 1 is every parameter that is read before the cut, block 2 all others. A tensor that is read on both sides, as an
embedding that is also the output head, is of block 1 (`Cut.shared`): the prefix depends on it, so a suffix must see it
as its prefix did. The model at (block 1 perturbed, block 2 perturbed) is thus a prefix that perturbs `block1`, and a
suffix that perturbs `shared` in the same way and `block2` in its own.

Not here: which blocks are perturbed when (estimators), frozen layers whose outputs are kept for a whole run
(`seedtune.models.frozen`), models in training mode, whose dropout would differ from run to run, and calls that bring a
cache of keys and values along, which each part would write to.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import ModelError
from .forwards import Wrap, wrapped_forwards

Value = TypeVar("Value")
Arguments = dict[int | str, Any]
"""What a forward was given, by place or name."""


@dataclass(frozen=True, eq=False)
class Activations:
    """What a prefix left for its suffixes.

    inputs: the model's arguments; a suffix must be given equal ones.
    outputs: (module, what it returned) of the outermost calls before the cut, without layers before the last. Where
        nothing behind the cut reads it, it is the shape alone.
    """

    inputs: Arguments
    outputs: tuple[tuple[torch.nn.Module, Any], ...]

    @property
    def nbytes(self) -> int:
        """Bytes held: the last layer's output [batch, time, width], tables that later layers read, the inputs."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors((self.inputs, self.outputs))}
        return sum(storage.nbytes() for storage in storages.values())


@dataclass(frozen=True, eq=False)
class Cut:
    """`module` cut before layer `k`, as `cut_before` makes it.

    layers: the k layers before the cut.
    sides: the modules beside the layers, before or behind the cut.
    spared: those of them whose outputs before the cut are not read behind it, so that their shapes will do.
    block1, block2: names of the parameters read before the cut, and of all others; a tied one by its first name.
    shared: those of block 1 that are read behind the cut as well. unread: those of block 2 that no forward reads.

    Guarantees: at equal weights, suffix(call, prefix(call)) has the bits of call(). Neither computes what is the
    other's. Activations are never written, so any number of suffixes may follow. The module is afterwards what it was,
    also after an error. Other wraps of forwards (`Perturber.at`) belong around `prefix` and `suffix`, not into
    `call`. One thread at a time.
    """

    module: torch.nn.Module
    k: int
    layers: tuple[torch.nn.Module, ...]
    sides: tuple[torch.nn.Module, ...]
    spared: frozenset[torch.nn.Module]
    block1: frozenset[str]
    block2: frozenset[str]
    shared: frozenset[str]
    unread: frozenset[str]

    def block_of(self, name: str) -> int:
        """1 or 2.

        Raises:
            ModelError: no parameter has that (first) name.
        """
        if name not in self.block1 | self.block2:
            model = type(self.module).__name__
            raise ModelError(f"{name!r} is in no block of {model}: give a name that its named_parameters() lists")
        return 1 if name in self.block1 else 2

    @torch.no_grad()
    def prefix(self, call: Callable[[], Any]) -> Activations:
        """Runs `call` up to the cut. Cost: layers 0 to k - 1, what comes before them, and a copy of what that gave.

        Raises:
            ModelError: `call` did not come to the cut within a forward of the module.
        """
        keeping = _Keeping(self)
        with wrapped_forwards(self._wraps(keeping)):
            try:
                call()
            except _AtTheCut:
                if keeping.inputs is not None:
                    return Activations(keeping.inputs, tuple(keeping.outputs))
        raise self._no_run()

    @torch.no_grad()
    def suffix(self, call: Callable[[], Value], activations: Activations) -> Value:
        """What `call` returns, computed from `activations`. Cost: layers k on, what comes behind them, and a copy of
        the activations, one at a time.

        Raises:
            ModelError: `activations` are of another cut or batch, or `call` is not one run of the model.
        """
        if activations.outputs[-1][0] is not self.layers[-1]:
            raise ModelError(f"activations of another cut were given to the cut before layer {self.k}: give its own")
        handing = _Handing(self, activations)
        with wrapped_forwards(self._wraps(handing)):
            value = call()
        if not handing.is_behind:
            raise self._no_run()
        return value

    def _wraps(self, answer: "_Answer") -> list[tuple[torch.nn.Module, Wrap]]:
        """Calls of the module, its layers before the cut and what is beside them are answered by `answer`."""

        def wrap(module: torch.nn.Module, forward: Callable) -> Callable:
            def answered(*args: Any, **kwargs: Any) -> Any:
                return answer(module, partial(forward, *args, **kwargs), dict(enumerate(args)) | kwargs)

            return answered

        return [(module, partial(wrap, module)) for module in (self.module, *self.sides, *self.layers)]

    def _no_run(self) -> ModelError:
        return ModelError(
            f"a call did not run {type(self.module).__name__} as far as layer {self.k - 1}: give a function that runs "
            "the whole model once, by its own forward"
        )


def num_layers(module: torch.nn.Module) -> int:
    """The number of layers that a cut divides.

    Raises:
        ModelError: the model has no `ModuleList` of at least 2.
    """
    return len(layer_stack(module)[1])


def default_cut(module: torch.nn.Module) -> int:
    """Half depth: a guess of ours. Where FedSPZO (arXiv 2502.10239) cuts by default is not known to us.

    Raises:
        ModelError: as `num_layers`.
    """
    return num_layers(module) // 2


def cut_before(module: torch.nn.Module, k: int) -> Cut:
    """`module` cut before layer `k`, 1 to `num_layers`; `num_layers` itself is behind the last layer.

    Blocks are read off a trial on a sequence of three tokens, the last one masked. It also compares suffix after prefix
    with the whole model, to the bit, and finds what need not be kept: it becomes NaN and the result stays the same.
    The blocks follow from the model's code and configuration alone, not from its weights.

    Args:
        module: in evaluation mode; its forward takes `input_ids` and `attention_mask` and returns logits or hidden
            states first.

    Raises:
        ModelError: `k` is out of range, or the model cannot be cut, with what was looked for and what was found.

    Cost: two forwards on three tokens, and a suffix for each module before the layers.
    """
    path, stack = layer_stack(module)
    if not 1 <= k <= len(stack):
        raise ModelError(
            f"cut of {type(module).__name__} before layer {k}: {path!r} has {len(stack)} layers; choose 1 to "
            f"{len(stack) - 1}, or {len(stack)} for a cut behind the last"
        )
    try:
        return _tried(module, path, stack, k)
    except ModelError:
        raise
    except Exception as error:  # whatever a model's own code raises where it is run in a way that it does not expect
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        raise _uncuttable(module, f"its trial on three tokens failed ({reason})") from error


def layer_stack(module: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """Return the dotted name of the layers and the layers: of the outermost ModuleLists, that with most parameters.

    Raises:
        ModelError: the model has no `ModuleList` of at least 2.
    """
    stacks = dict(_outermost(module))
    long = [(name, stack) for name, stack in stacks.items() if len(stack) > 1]
    if not long:
        found = ", ".join(f"{name!r} of {len(stack)}" for name, stack in stacks.items())
        raise _uncuttable(module, f"its ModuleLists are {found}" if found else "it has no ModuleList")
    return max(long, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _outermost(module: torch.nn.Module, path: str = "") -> Iterator[tuple[str, torch.nn.ModuleList]]:
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ModuleList):
            yield path + name, child
        else:
            yield from _outermost(child, f"{path}{name}.")


def _sides(module: torch.nn.Module, path: str) -> tuple[torch.nn.Module, ...]:
    """The modules beside those on the way to the layers, each once."""
    way: list[Any] = [module]
    for name in path.split("."):
        way.append(getattr(way[-1], name))
    beside = [child for parent in way[:-1] for child in parent.children() if child not in way]
    called = [each for child in beside for each in _called(child)]
    return tuple(dict.fromkeys(each for each in called if each not in set(way[-1])))


def _called(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The module itself, or the members of a container, which has no forward."""
    if isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict):
        return [called for child in module.children() for called in _called(child)]
    return [module]


def _tried(module: torch.nn.Module, path: str, stack: torch.nn.ModuleList, k: int) -> Cut:
    tokens = torch.arange(3, device=next(module.parameters()).device)[None]
    call = partial(module, input_ids=tokens, attention_mask=(tokens < 2).long())
    whole, order, reads = _traced(module, stack, k, call)
    if order != list(range(len(stack))):
        raise _uncuttable(module, f"the {len(stack)} members of {path!r} ran in the order {order}")
    names, before = frozenset(name for name, _ in module.named_parameters()), frozenset(reads.before)
    blocks = before, names - before, before & reads.behind, names - before - reads.behind
    cut = Cut(module, k, tuple(stack[:k]), _sides(module, path), frozenset(), *blocks)
    activations = cut.prefix(call)
    if not _equal(cut.suffix(call, activations)[0], whole[0]):
        raise _uncuttable(
            module, f"layer {k} or what follows reads more of the layers before than the last one's output"
        )
    return replace(cut, spared=frozenset(_not_read(cut, call, activations, whole)))


def _not_read(cut: Cut, call: Callable[[], Any], activations: Activations, whole: Any) -> Iterator[torch.nn.Module]:
    """The modules that ran before the cut and whose outputs could be anything in a suffix."""
    for module in {module for module, _ in activations.outputs[:-1]}:
        outputs = tuple((each, _blank(output) if each is module else output) for each, output in activations.outputs)
        with suppress(Exception):  # a model's code may take NaN ill: then it reads it
            if _equal(cut.suffix(call, replace(activations, outputs=outputs))[0], whole[0]):
                yield module


@torch.no_grad()
def _traced(
    module: torch.nn.Module, stack: torch.nn.ModuleList, k: int, call: Callable[[], Any]
) -> tuple[Any, list[int], "_Reads"]:
    """(what `call` returns, the layers in the order in which they ran, the parameters read)."""
    order, reads = [], _Reads(module)

    def noting(index: int, forward: Callable) -> Callable:
        def noted(*args: Any, **kwargs: Any) -> Any:
            order.append(index)
            output = forward(*args, **kwargs)
            reads.is_behind |= index == k - 1
            return output

        return noted

    with wrapped_forwards([(layer, partial(noting, index)) for index, layer in enumerate(stack)]), reads:
        return call(), order, reads


class _Reads(TorchFunctionMode):
    """Notes the parameters whose values torch functions are given, before and behind the cut."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.before: set[str] = set()
        self.behind: set[str] = set()
        self.is_behind = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != "__get__" or isinstance(value, torch.Tensor):  # not a shape or dtype
            found = {self._names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._names}
            (self.behind if self.is_behind else self.before).update(found)
        return value


class _AtTheCut(BaseException):
    """Ends a prefix; no `except Exception` in a model's code stops it."""


class _Keeping:
    """Answers the calls of a prefix: they compute, and the outermost ones' outputs are kept."""

    def __init__(self, cut: Cut):
        self._cut, self._depth = cut, 0
        self.inputs: Arguments | None = None
        self.outputs: list[tuple[torch.nn.Module, Any]] = []

    def __call__(self, module: torch.nn.Module, run: Callable[[], Any], arguments: Arguments) -> Any:
        if module is self._cut.module:
            self.inputs = _copied(arguments)
            return run()
        self._depth += 1
        try:
            output = run()
        finally:
            self._depth -= 1
        if module is self._cut.layers[-1]:
            self.outputs.append((module, output))
            raise _AtTheCut
        if self._depth == 0 and module not in self._cut.layers:
            kept = _blank if module in self._cut.spared else _copied  # the code around may write it: `hidden += bias`
            self.outputs.append((module, kept(output)))
        return output


class _Handing:
    """Answers the calls of a suffix: those before the cut with what the prefix kept of them, the others compute."""

    def __init__(self, cut: Cut, activations: Activations):
        self._cut, self._activations = cut, activations
        self._left = iter(activations.outputs)
        self._is_compared = False
        self.is_behind = False

    def __call__(self, module: torch.nn.Module, run: Callable[[], Any], arguments: Arguments) -> Any:
        layers = self._cut.layers
        if module is self._cut.module:
            self._compare(arguments)
            return run()
        if self.is_behind and module not in layers:
            return run()
        if not self.is_behind and module in layers[:-1]:
            return _copied(_blank(self._activations.outputs[-1][1]))
        known, output = next(self._left, (None, None))
        if known is not module or not self._is_compared:
            raise ModelError(
                "a suffix ran other modules before the cut than its prefix: give both the same call, which runs the "
                "whole model once, by its own forward"
            )
        self.is_behind = module is layers[-1]
        return _copied(output)

    def _compare(self, arguments: Arguments) -> None:
        known = self._activations.inputs
        for name in [*known, *arguments]:
            if not _equal(known.get(name), arguments.get(name)):
                raise ModelError(
                    f"activations of another batch were given: the model's argument {name!r} differs; run the prefix "
                    "on this batch"
                )
        self._is_compared = True


_Answer = _Keeping | _Handing


def _uncuttable(module: torch.nn.Module, found: str) -> ModelError:
    return ModelError(
        f"{type(module).__name__} cannot be cut in two: {found}; looked for a ModuleList of at least 2 layers that run "
        "one after another, in order, each once and each on the output of the one before: use an estimator without "
        "blocks, or another model"
    )


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _copied(tree: Any) -> Any:
    return tree_map_only(torch.Tensor, torch.clone, tree)


def _blank(tree: Any) -> Any:
    """The same shapes, floating-point values all NaN in the memory of one."""

    def blank(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.new_full((), torch.nan).expand(tensor.shape) if tensor.is_floating_point() else tensor

    return tree_map_only(torch.Tensor, blank, tree)


def _equal(one: Any, other: Any) -> bool:
    ones, others = tree_leaves(one), tree_leaves(other)
    return len(ones) == len(others) and all(map(_is_same, ones, others))


def _is_same(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return one is other or (type(one) is type(other) and one == other)
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
