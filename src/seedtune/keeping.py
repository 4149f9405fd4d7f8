"""Whether and where a run keeps the outputs of its frozen layers: the machine's settings met with a model and its data.

How they are computed and found again is `seedtune.zo.kept_activations`.
"""

import shutil
import tempfile
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from .config import Machine, Recipe
from .data.batches import Batch, eval_batches
from .data.encoding import EncodedSet
from .errors import ModelError, RunStoreError
from .models.frozen import find_frozen
from .models.load import Tuned
from .progress import phase
from .zo.activation_store import ActivationStore
from .zo.kept_activations import KeptActivations
from .zo.meter import Meter
from .zo.trajectory import Header

_BATCH = 64
OFTEN = 3
"""Times that a run draws each example in the mean, from which on all are computed ahead: a twentieth is in vain."""

_shared: ContextVar[dict[Hashable, ActivationStore] | None] = ContextVar("shared", default=None)


@contextmanager
def shared_activations() -> Iterator[None]:
    """Keep outputs of frozen layers from one run to the next, for runs one after another within this context.

    Runs share outputs where base digest, configuration, dtype, device, threads, budget, frozen layers and kept
    positions are equal. Digests of runs are the same as without it; a run counts the operations that it made itself.
    """
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def keep_activations(
    model: Tuned, machine: Machine, meter: Meter, folder: Path | None, header: Header
) -> KeptActivations | None:
    """Return what keeps the outputs of the model's frozen layers; None where it has none, or none that can be kept.

    Cost: a few forwards on a dozen tokens.
    """
    cut = find_frozen(model.module, model.trainable)
    if cut is None:
        return None
    memory = 0 if machine.keep_activations == "none" else machine.activation_memory
    try:
        store = ActivationStore(memory, machine.keep_activations == "auto", folder)
        kept = KeptActivations(model, cut, store, meter)
    except ModelError:
        return None
    if (stores := _shared.get()) is not None:
        kept.store = stores.setdefault(_identify(kept, header), store)
    return kept


def _identify(kept: KeptActivations, header: Header) -> Hashable:
    """Return all that an output depends on beside its sequence, and the budget of its store."""
    store, device = kept.store, str(kept.model.device)
    base = header.base_digest, header.inputs["model config"], str(header.model["dtype"]), header.model["quantisation"]
    return (
        base,
        kept.num_layers,
        kept.keeps_positions,
        device,
        torch.get_num_threads(),
        store.memory_bytes,
        store.on_disk,
    )


def expect_examples(kept: KeptActivations, recipe: Recipe, train: EncodedSet, test: EncodedSet) -> None:
    """Tell which sequences a run will need, so that none is computed in vain.

    Raises:
        RunStoreError: the disk has no room for those that memory does not hold.
    """
    needed = kept.expect(_batches(test))
    is_drawn = len(train) and not recipe.federation.local_epochs
    share = min(1.0, num_drawn(recipe) / len(train)) if is_drawn else 1.0
    needed += int(share * kept.expect(_batches(train)))
    _check_room(kept.store, needed)


def compute_ahead(kept: KeptActivations | None, recipe: Recipe, num_train: int) -> int:
    """Compute the frozen layers of all training examples before the first round, where nearly all will be needed.

    Returns:
        The operations that it took, 0 where a round computes those of its own examples.
    """
    if kept is None or kept.num_expected == 0 or num_drawn(recipe) < OFTEN * num_train:
        return 0
    with phase("computing the frozen layers of training examples, once", kept.num_expected) as told:
        return kept.compute_expected(told.advance)


def num_drawn(recipe: Recipe) -> int:
    """Return how many examples the batches of a run hold in all, at most."""
    federation = recipe.federation
    clients = federation.cohort_size or recipe.partition.num_clients
    return federation.num_rounds * clients * federation.batch_size * federation.local_steps


def describe_savings(kept: KeptActivations | None) -> dict[str, int] | None:
    """Return what a process kept and was spared so far, as a summary holds it; None where nothing is frozen.

    sequences: computed, each once unless there was no room. bytes_in_memory, bytes_on_disk: kept. flops: operations
    that frozen layers took, evaluations included. flops_without: those that they would have taken in every evaluation.
    """
    if kept is None:
        return None
    store, savings = kept.store, kept.savings
    return {
        "layers": kept.num_layers, "sequences": savings.num_sequences, "bytes_in_memory": store.bytes_in_memory,
        "bytes_on_disk": store.bytes_on_disk, "flops": savings.flops_spent, "flops_without": savings.flops_replaced,
    }  # fmt: skip


def _batches(encoded: EncodedSet) -> Iterable[Batch]:
    return eval_batches(encoded, _BATCH) if len(encoded) else ()


def _check_room(store: ActivationStore, needed: int) -> None:
    left = store.memory_bytes - store.bytes_in_memory
    if not store.on_disk or needed <= left:
        return
    folder = store.folder or Path(tempfile.gettempdir())
    free, more = shutil.disk_usage(folder).free, needed - left
    if free < more:
        raise RunStoreError(
            f"activations of frozen layers take {more / 1e6:.0f} MB on disk beyond {store.memory_bytes / 1e6:.0f} MB "
            f"in memory, and {folder} has {free / 1e6:.0f} MB free: free some, give more memory with "
            "--activation-memory, or pass --keep-activations memory, which computes the rest each time"
        )
