"""A task looked at before anything runs: its prompts, counts, lengths, cuts and doubts, and the clients' shares.

Reads the task's files and, where a model is named, its tokenizer; loads no weights and trains nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import presets
from .assembly import TASK_KEY
from .config import Recipe
from .data.counts import Counts, count_examples, describe_counts, doubts
from .data.encoding import EncodedSet, encode
from .data.examples import Example, ModelKind, Task
from .data.files import SUFFIXES, read_rows, split_files
from .data.guess import guess_task
from .data.partition import partition
from .data.tasks import KNOWN, load_task
from .errors import DataError, unknown
from .models.load import kind_of, load_tokenizer
from .recipe_text import build, merged
from .zo import noise

SHOWN_PROMPTS = 3
SHOWN_TOKENS = 200
_UNCUT = 2**40


@dataclass(frozen=True)
class Subject:
    """What is looked at: a recipe, of which only model, task and partition matter.

    `names_model`: whether the user or the recipe named the model. `guessed`: settings of [task] that columns suggest.
    """

    recipe: Recipe
    names_model: bool
    guessed: Mapping[str, Any]


def find_subject(name: str, model: str | None, over: Mapping[str, Any]) -> Subject:
    """A known task, a recipe (known or a TOML file), or a table, with `over` laid over it.

    Raises:
        SeedtuneError: none of these, or settings, columns or a model that cannot be used.
    """
    named: dict[str, Any] = merged({"model": {"name": model}} if model else {}, _part(over, "model"))
    if name.endswith(".toml") or name in presets.names("recipes"):
        return Subject(presets.composed(name, None, named, dict(over)), True, {})
    if name in KNOWN and name != "custom":
        return Subject(build(merged(merged({"task": {"name": name}}, named), over), f"task {name}"), bool(named), {})
    if not Path(name).exists():
        known = sorted(KNOWN)
        raise DataError(f"{unknown('task', name, known)}; or give a recipe (.toml) or a table ({', '.join(SUFFIXES)})")
    return _guessed(name, named, over)


def _guessed(path: str, named: Mapping[str, Any], over: Mapping[str, Any]) -> Subject:
    """A table with settings of [task] that its columns suggest; those of `over` are kept."""
    given = build({"task": {**over.get("task", {}), "path": path}}, path).task
    kind: ModelKind = kind_of(build(named, path).model) if named else "causal"
    rows = read_rows(next(iter(split_files(Path(path)).values()))[0])
    guessed = guess_task(path, rows, given, kind)
    values = merged(merged({"task": guessed}, named), over)
    taken = {key: value for key, value in guessed.items() if key not in over.get("task", {})}
    return Subject(build(values, path), bool(named), taken)


def _part(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {section: values[section]} if section in values else {}


def describe_task(subject: Subject, num_prompts: int = SHOWN_PROMPTS) -> dict[str, Any]:
    """Everything that `seedtune task` shows, as plain data.

    Tokens, lengths in tokens and cuts are there where a model was named. Cost: the task's files, and a pass of the
    model's tokenizer over all prompts, twice where some are cut.

    Raises:
        SeedtuneError: a task that cannot be read, or that the model's tokenizer cannot put.
    """
    config = subject.recipe.task
    named = subject.names_model
    read: tuple[Any, ModelKind, int] = load_tokenizer(subject.recipe.model) if named else (None, "causal", 0)
    tokenizer, kind, window = read
    task = load_task(config, TASK_KEY, kind, config.training == "nodes")
    train = test = None
    if tokenizer is not None:
        train = encode(task, task.train, tokenizer, kind, window)
        test = encode(task, task.test, tokenizer, kind, window, range(len(task.test)))
    counts = count_examples(task, train, test)
    clients, refused = _shares(subject.recipe, task)
    return {
        "task": config.name, "kind": task.kind, "model": subject.recipe.model.name if named else None,
        "model_kind": kind, "taken": dict(subject.guessed), "counts": describe_counts(counts), **_counted(counts),
        "answers": dict(zip(task.label_names, task.answers, strict=bool(task.answers))) if task.answers else {},
        "prompts": _prompts(task, test, tokenizer, num_prompts),
        "lengths": _lengths(task, train, test, tokenizer, kind, window),
        "doubts": [*doubts(counts), *([refused] if refused else [])],
        "partition": subject.recipe.partition.kind, "clients": clients,
    }  # fmt: skip


def _counted(counts: Counts) -> dict[str, Any]:
    return {
        "train": counts.num_train, "test": counts.num_test, "cut": counts.num_cut,
        "classes": [{"class": name, "train": train, "test": test} for name, train, test in counts.classes],
        "left_out": [{"reason": reason, "rows": rows, "first": first} for reason, rows, first in counts.left_out],
        "shared_prompts": counts.num_shared,
    }  # fmt: skip


def _prompts(task: Task, test: EncodedSet | None, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """The first test examples, one of each class first."""
    order = _one_of_each(task.test)[:count]
    return [_prompt(task.test[i], test.examples[i] if test else None, test, tokenizer) for i in order]


def _one_of_each(examples: Sequence[Example]) -> list[int]:
    first = {example.label: i for i, example in reversed([*enumerate(examples)])}
    rest = [i for i in range(len(examples)) if i not in first.values()]
    return [*sorted(first.values()), *rest]


def _prompt(example: Example, encoded: Any, test: EncodedSet | None, tokenizer: Any) -> dict[str, Any]:
    shown = {"prompt": example.prompt, "answer": example.answer, "group": example.group or None}
    if encoded is None or test is None:
        return shown
    answers = test.answers or encoded.choices
    answer = encoded.answer if example.label is None or not answers else answers[example.label]
    return shown | {"tokens": _pieces(tokenizer, encoded.prompt), "answer_tokens": _pieces(tokenizer, answer)}


def _pieces(tokenizer: Any, ids: np.ndarray) -> list[str]:
    return [tokenizer.decode([i]) for i in ids[:SHOWN_TOKENS].tolist()]


def _lengths(
    task: Task, train: EncodedSet | None, test: EncodedSet | None, tokenizer: Any, kind: ModelKind, window: int
) -> dict[str, Any]:
    """Lengths of examples, prompt and answer together: in tokens with a tokenizer, before and after cutting; else in
    characters."""
    examples = (*task.train, *task.test)
    if train is None or test is None:
        return {"unit": "characters", **_spread([len(e.prompt) + len(e.answer) for e in examples])}
    kept = np.array([_size(e) for part in (train, test) for e in part.examples])
    limit = min(size for size in (task.max_tokens, window, _UNCUT) if size)
    if not train.num_truncated + test.num_truncated:
        return {"unit": "tokens", **_spread(kept), "limit": limit, "cut": None}
    whole = encode(replace(task, max_tokens=_UNCUT), examples, tokenizer, kind)
    lost = np.array([_size(e) for e in whole.examples]) - kept
    cut = _spread(lost[lost > 0]) if (lost > 0).any() else None
    return {"unit": "tokens", **_spread(kept + lost), "limit": limit, "cut": cut}


def _size(encoded: Any) -> int:
    return len(encoded.prompt) + len(encoded.answer)


def _spread(sizes: Sequence[int] | np.ndarray) -> dict[str, int]:
    return {"shortest": int(np.min(sizes)), "median": int(np.median(sizes)), "longest": int(np.max(sizes))}


def _shares(recipe: Recipe, task: Task) -> tuple[list[dict[str, Any]], str | None]:
    """(each client's examples under the partition, why there are none where they cannot be dealt)."""
    if recipe.task.training == "nodes":
        return [], None
    try:
        dealt = partition(task.train, recipe.partition, noise.derive_key(recipe.run.seed, "partition"))
    except DataError as error:
        return [], str(error)
    return [_share(i, [task.train[j] for j in own], task.label_names) for i, own in enumerate(dealt)], None


def _share(client: int, examples: Sequence[Example], labels: Sequence[str]) -> dict[str, Any]:
    counts = Counter(example.label for example in examples)
    groups = sorted({example.group for example in examples if example.group})
    return {
        "client": client, "examples": len(examples),
        "classes": {name: counts[i] for i, name in enumerate(labels)}, "groups": groups,
    }  # fmt: skip
