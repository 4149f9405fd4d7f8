"""Modules whose forward is wrapped for a while, and is afterwards exactly what it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Wrap = Callable[[Callable], Callable]


@contextmanager
def wrapped_forwards(wraps: Sequence[tuple[torch.nn.Module, Wrap]]) -> Iterator[None]:
    """Within it each module's forward is `wrap(forward)`, in the order given, also where a module is named twice.

    Restores instance attributes of that name, which other libraries may have set, also after an error. They are set
    past `Module.__setattr__`, which looks for parameters first and takes ten times as long.
    """
    before = [module.__dict__.get("forward") for module, _ in wraps]
    try:
        for module, wrap in wraps:
            module.__dict__["forward"] = wrap(module.forward)
        yield
    finally:
        for (module, _), forward in zip(wraps, before, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward
