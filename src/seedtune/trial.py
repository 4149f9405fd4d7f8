"""One forward before round 0: model, tokenizer and task fit together, and every tuned tensor is used.

What would fail in the first round on every client fails here, at once and with what to do about it. Nothing is trained
and nothing is changed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch

from .data.batches import Batch, batch_of
from .data.encoding import Encoded, EncodedSet
from .errors import ModelError
from .foreign_text import describe, quote
from .models.load import Tuned
from .models.objective import loss
from .models.source import Network
from .zo.perturb import Perturber

MOST_NAMED = 12


def check_tokens(model: Tuned, sets: Iterable[EncodedSet]) -> None:
    """Check that every token of some examples has a row in the model's embedding.

    Raises:
        ModelError: one has none.
    """
    for encoded in sets:
        tokens = [part for example in encoded.examples for part in (example.prompt, example.answer, *example.choices)]
        check_rows(model, int(np.concatenate([np.array([encoded.pad_token]), *encoded.answers, *tokens]).max()))


def check_rows(model: Tuned, largest: int) -> None:
    """Check that the largest of some tokens has a row in the model's embedding.

    Raises:
        ModelError: it has none.
    """
    num_rows = _num_embedding_rows(model.module)
    if num_rows is not None and largest >= num_rows:
        word = quote(model.tokenizer.convert_ids_to_tokens(largest))
        raise ModelError(
            f"model {model.base_id!r}: its tokenizer gives token {largest} ({word}), and its embedding has rows for 0 "
            f"to {num_rows - 1}: save the tokenizer that the model was trained with beside its weights"
        )


def _num_embedding_rows(module: Network) -> int | None:
    """None where a model does not tell which table its tokens are looked up in."""
    try:
        return len(module.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError, TypeError):
        return None


def check_forward(model: Tuned, perturber: Perturber, sets: Sequence[EncodedSet], needs_all: bool = True) -> None:
    """Run the longest of some examples through the model and check that it fits and what was read.

    Args:
        needs_all: whether each tuned tensor must be used, as it must where projected gradients are measured.

    Raises:
        ModelError: the model takes no sequence of this length, or none at all, or leaves tuned tensors unused.

    Cost: one forward of one example at a perturbed point; some more where it fails.
    """
    found = _longest(sets)
    if found is None:
        return
    encoded, place = found
    batch = batch_of(encoded, [place]).to(model.device)
    try:
        used = perturber.find_used(lambda: loss(model, batch))
    except Exception as error:  # whatever a model's own code raises for what it does not take
        raise ModelError(_explain(model, batch, error)) from error
    unused = [name for name in model.trainable if name not in used]
    if needs_all and unused:
        raise ModelError(
            f"tensor {unused[0]!r} ({len(unused)} in all) is tuned but the model's forward does not use it: "
            f"{_advise(model, unused)}"
        )


def _longest(sets: Sequence[EncodedSet]) -> tuple[EncodedSet, int] | None:
    places = [(encoded, i) for encoded in sets for i in range(len(encoded))]
    return max(places, key=lambda place: _length(place[0].examples[place[1]]), default=None)


def _length(example: Encoded) -> int:
    return len(example.prompt) + len(example.answer)


def _explain(model: Tuned, batch: Batch, error: Exception) -> str:
    length = batch.input_ids.shape[1]
    most = _most_positions(model, batch) if model.device.type == "cpu" else 0
    if 0 < most < length:
        return (
            f"model {model.base_id!r} takes at most {most} tokens, and the longest example has {length}: set "
            f"task.max_tokens = {most}, or fewer"
        )
    return (
        f"model {model.base_id!r}: its forward fails on an example of {length} tokens ({describe(error)}): choose "
        "another model, or another task"
    )


def _most_positions(model: Tuned, batch: Batch) -> int:
    """The most tokens of a batch's sequences that the model takes, by bisection; 0 where it takes none."""
    fits, fails = 0, batch.input_ids.shape[1]
    if _takes(model, batch, fails):  # its length is not what made it fail
        return fails
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _takes(model, batch, middle) else (fits, middle)
    return fits


@torch.no_grad()
def _takes(model: Tuned, batch: Batch, num_tokens: int) -> bool:
    try:
        model.module(input_ids=batch.input_ids[:1, :num_tokens], attention_mask=batch.attention_mask[:1, :num_tokens])
    except Exception:  # as in `check_forward`
        return False
    return True


def _advise(model: Tuned, unused: Sequence[str]) -> str:
    """What a user can set so that exactly tensors that are used are tuned."""
    used = [name for name in model.trainable if name not in set(unused)]
    if model.adapter == "lora":
        targets = list(_lora_targets(used, unused))
        if targets:
            return f"name the modules that LoRA adapts, model.lora_targets = {targets}"
        return "LoRA finds nothing to adapt in it: set model.adapter = 'none' and name tensors with model.trainable"
    patterns = _patterns(used, unused)
    if not patterns:
        return "none of the tuned tensors is used: name others with model.trainable"
    shown = ", ".join(map(repr, patterns[:MOST_NAMED])) + (", ..." if len(patterns) > MOST_NAMED else "")
    return f"name those to tune, model.trainable = [{shown}]"


def _lora_targets(used: Sequence[str], unused: Sequence[str]) -> Iterator[str]:
    """Last names of modules all of whose adapters are used."""
    spared = {_adapted(name) for name in unused}
    yield from dict.fromkeys(name for name in map(_adapted, used) if name and name not in spared)


def _adapted(name: str) -> str:
    """The last name of the module that a LoRA factor belongs to, "" for another tensor."""
    module, lora, _ = name.partition(".lora_")
    return module.rpartition(".")[2] if lora else ""


def _patterns(used: Sequence[str], unused: Sequence[str]) -> list[str]:
    """Patterns (fnmatch) that match every used tensor and no unused one, the shortest beginnings that do."""
    found: dict[str, None] = {}
    for name in used:
        if not any(fnmatchcase(name, pattern) for pattern in found):
            found[next(filter(_matches_none(unused), _beginnings(name)), name)] = None
    return list(found)


def _beginnings(name: str) -> Iterator[str]:
    """
    >>> list(_beginnings("model.layers.3.mlp.weight"))
    ['model.*', 'model.layers.*', 'model.layers.*.mlp.*', 'model.layers.*.mlp.weight']
    """
    parts = re.sub(r"\.\d+(?=\.)", ".*", name).split(".")
    starts = (".".join(parts[:n]) + (".*" if n < len(parts) else "") for n in range(1, len(parts) + 1))
    yield from dict.fromkeys(start.replace(".*.*", ".*") for start in starts)


def _matches_none(names: Sequence[str]) -> Callable[[str], bool]:
    return lambda pattern: not any(fnmatchcase(name, pattern) for name in names)
