"""Digests of everything that a run computes from, part by part, as its trajectory's header keeps them.

| part | what it covers |
|---|---|
| recipe | every setting, resolved; not names, places of files, and which snapshots stay on disk |
| base file | of a base that is one GGUF file: that file, and with it configuration and tokenizer |
| model config | config.json, but for what changes no loss |
| tokenizer | vocabulary, rules, special tokens, chat template |
| answers | the answer words of the task as tokens, its window, its kind |
| training examples | each client's encoded examples and labels, held-out ones too, and who has which |
| test examples | the encoded examples that the run is evaluated on |

The weights have their own entry in the header (`base_digest`). A part that differs is refused by name; library versions
that differ are said, since directions and updates are exact in all of them and losses may differ in their last bits.

Privacy. Where the run is differentially private, the digest of the training examples is keyed by the run's secret: of a
header that travels, nobody without the secret can tell whether it is of data that they guess. Where nodes have data of
their own, their examples are in no header; each node keeps its own digest. Not here: reading any of it.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import numpy as np

from .config import Recipe
from .data.encoding import EncodedSet
from .data.examples import Task
from .errors import DigestMismatch
from .models.fingerprints import digest_config, digest_json, digest_tokenizer
from .models.load import Tuned
from .models.source import find, locate_tokenizer
from .sections import ModelConfig
from .space import DIGEST_BYTES

Inputs = Mapping[str, str]
"""Hex digests of 16 bytes by the name of the part."""

RECIPE, TRAINING, TEST = "recipe", "training examples", "test examples"
BASE = ("base file", "model config", "tokenizer")
"""Of a folder the last two; of a GGUF file the first, and the last where an adapter brings a tokenizer of its own."""
EXAMPLES = (TRAINING, TEST)
_REMEDIES = {
    RECIPE: "put recipe.json back",
    "base file": "give the base as that GGUF file",
    "model config": "put the base's config.json back",
    "tokenizer": "put the base's tokenizer files back",
    "answers": "put the task's answers back",
    TRAINING: "put the task's files back",
    TEST: "put the task's files back",
}
_NO_RESULT = {"model": {"name"}, "task": {"path", "test_path"}, "run": {"method", "keep_snapshots"}}
"""Settings that say where things are, or what they are called: what lies there has digests of its own."""


def digest_inputs(
    recipe: Recipe,
    model: Tuned,
    task: Task,
    train: EncodedSet,
    test: EncodedSet,
    dealt: Sequence[Sequence[np.ndarray]],
    own: Collection[int] | None,
    secret: bytes,
) -> Inputs:
    """Return the parts of a run as they are found here.

    Args:
        dealt: indices into `train`, of each client's training examples and of its held-out ones.
        own: set where the examples are a node's own, which no header tells; then only what all parties share.
        secret: of a private run's server. A party without it has no digest of the training examples.

    Cost: one hash over all tokens, 0.7 s of a core for 67,000 examples of 24 tokens.
    """
    parts = {RECIPE: digest_recipe(recipe), **digest_base(recipe.model, model)}
    parts["answers"] = digest_json([task.kind, task.max_tokens, task.ends, *(a.tolist() for a in train.answers)])
    if own is not None:
        return parts
    if recipe.task.training == "shared" and (secret or not recipe.is_private):
        parts[TRAINING] = digest_examples(train, [own for each in dealt for own in each], secret)
    return parts | {TEST: digest_examples(test, [np.arange(len(test))])}


def digest_recipe(recipe: Recipe) -> str:
    """Return the digest of the settings that change results."""
    return digest_json(recipe.model_dump(mode="json", exclude=_NO_RESULT))


def digest_base(config: ModelConfig, model: Tuned) -> Inputs:
    """Return the parts of a base beside its weights, or the one file that holds them all."""
    source = find(config.name, config.base)
    file, settings, words = BASE
    if source.file:
        parts = {file: source.file_digest[: 2 * DIGEST_BYTES]}
        return parts if locate_tokenizer(source).file else parts | {words: digest_tokenizer(source, model.tokenizer)}
    return {settings: digest_config(source), words: digest_tokenizer(source, model.tokenizer)}


def digest_examples(encoded: EncodedSet, groups: Sequence[np.ndarray], secret: bytes = b"") -> str:
    """Return the digest of the examples of each group, in order, keyed where there is a secret."""
    state = blake2b(digest_size=DIGEST_BYTES, key=secret)
    state.update(b"".join(_pieces((encoded.kind, encoded.pad_token, encoded.answers))))
    for group in groups:
        examples = (encoded.examples[i] for i in group)
        state.update(b"group %d;" % len(group))
        state.update(b"".join(piece for example in examples for piece in _pieces(tuple(vars(example).values()))))
    return state.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    """Bytes of arrays, numbers, texts and sequences of them, each behind its length."""
    if isinstance(value, np.ndarray):
        yield b"a%d:" % len(value)
        yield value.tobytes()
    elif isinstance(value, list | tuple):
        yield b"l%d:" % len(value)
        for each in value:
            yield from _pieces(each)
    else:
        text = json.dumps(value).encode()
        yield b"v%d:" % len(text)
        yield text


def share_inputs(recipe: Recipe, inputs: Inputs) -> Inputs:
    """Return the parts that each node of a run can check: no examples of private runs, or of nodes with their own."""
    hidden = EXAMPLES if recipe.is_private or recipe.task.training == "nodes" else ()
    return {name: digest for name, digest in inputs.items() if name not in hidden}


def check_inputs(recorded: Inputs, found: Inputs, names: Collection[str] | None = None) -> None:
    """Compare parts of a trajectory's header with those found here; by default all that either of them has.

    Raises:
        DigestMismatch: a part differs or is missing; names every such part and what to do.
    """
    names = [*recorded, *(found.keys() - recorded.keys())] if names is None else names
    different = [name for name in names if recorded.get(name) != found.get(name)]
    if different:
        given = ", ".join(f"{name} ({found.get(name)}, recorded {recorded.get(name)})" for name in different)
        recorded_ones = (name for name in different if name in recorded)  # what was not there cannot be put back
        remedies = dict.fromkeys(_REMEDIES.get(name, f"put the {name} back") for name in recorded_ones)
        advice = f"{' and '.join(remedies)}, or start another run" if remedies else "start another run"
        raise DigestMismatch(f"changed since the trajectory began: {given}: {advice}")


def library_versions(recipe: Recipe | None = None) -> dict[str, str]:
    """Return the versions of what computes losses; of what packs the base too, where the recipe has it packed."""
    names = ["seedtune", "torch", "transformers", "tokenizers", "peft", "numpy"]
    if recipe and recipe.model.quantisation != "none":
        names.append("bitsandbytes")
    return {name: version(name) for name in names}


def describe_versions(recorded: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return a line about versions that differ; empty where none does."""
    different = [name for name in recorded if recorded[name] != found.get(name)]
    changes = ", ".join(f"{name} {recorded[name]} -> {found.get(name, 'none')}" for name in different)
    return f"versions have changed: {changes}; losses may differ in their last bits from here on" if changes else ""
