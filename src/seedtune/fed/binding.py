"""Digests of an order and of its run, to which the masks of a secure sum are bound.

    context    of the run: its recipe, but for the places that each node chooses, and what its header stands on
    binding    of one round: the context, the round, its learning rates, and the weights that the client itself holds

Pairwise masks are derived from the binding (`privacy.secure_sum`), shares are sealed under the context (`Roster`). So
values measured under unlike orders have masks that do not cancel, and their sum tells nothing: the attack of Pasquini
et al. 2022 (arXiv 2111.07380) by unlike models, rates or recipes. Each side digests what it computes with, never what
it was told a digest of. What clients missed is not in it, since that differs by client: where it led to is.

Digests have 32 bytes: two states with one digest of 16 (`space.digest`) could be found with 2^64 tries.
"""

import json
import struct
from hashlib import blake2b

import torch

from ..config import Recipe
from ..space import Weights
from ..zo.trajectory import Header

BINDING_BYTES, SHOWN_BYTES = 32, 16
"""Of a binding; of what a client shows of it to the server, which names who masked another order."""
_OWN_PLACES = {"model": {"name"}, "task": {"path", "test_path"}}


def run_context(recipe: Recipe, header: Header) -> bytes:
    """Return the 32 bytes that all parties of a run agree on before its first round."""
    stands_on = [header.base_digest, header.space, header.seed, header.keys, header.distribution.value,
                 header.key_pool, header.noise_version, str(header.split)]  # fmt: skip
    text = json.dumps([recipe.model_dump(mode="json", exclude=_OWN_PLACES), stands_on], sort_keys=True)
    return blake2b(text.encode(), digest_size=BINDING_BYTES, person=b"secure context").digest()


def order_binding(context: bytes, round_: int, rate: float, rate_ratio: float | None, weights: Weights) -> bytes:
    """Return the 32 bytes of one round's order. Cost: one read of `weights`."""
    ratio = b"" if rate_ratio is None else struct.pack("<d", rate_ratio)
    numbers = struct.pack("<qd", round_, rate) + ratio
    state = blake2b(context + numbers, digest_size=BINDING_BYTES, person=b"secure order")
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        state.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        state.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return state.digest()
