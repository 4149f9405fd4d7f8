"""Tasks by name: `load_task` reads a task's files, fills its prompts and splits it.

The two built-in tasks read the running Python's own docstrings and need no file. Tokens are made in `encoding`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import DataError, unknown
from ..sections import TaskConfig
from . import stdlib
from .benchmarks import BENCHMARKS
from .examples import Example, ModelKind, Task
from .keyed import keyed_balanced_choice, keyed_choice, keyed_shots, sub_key
from .labelled import load_benchmark, load_custom
from .prompts import MASK_SLOT, fill
from .snippets import load_snippets
from .splits import split_by_hash
from .texts import load_instruction, load_plain_text, load_prompt_completion

__all__ = ["KNOWN", "Example", "ModelKind", "Task", "load_task"]

_TOPIC_DESCRIPTIONS = (
    "asynchronous code: event loops, coroutines, tasks, futures, streams and transports",
    "mail messages: headers, addresses, MIME parts, charsets, parsing and generating messages",
    "the web protocol: clients and servers, requests, responses, status codes, cookies",
    "the import system: finders, loaders, module specs, resources, package metadata",
    "log messages: loggers, handlers, formatters, filters, levels and their configuration",
    "processes that run in parallel: pools, queues, pipes, locks, shared memory, managers",
    "tests: test cases, suites, runners, assertions and mock objects",
    "XML documents: elements, trees, nodes, attributes, SAX handlers and parsers",
)


def load_task(config: TaskConfig, seed_key: int, kind: ModelKind = "causal", is_undivided: bool = False) -> Task:
    """The task that `config` asks for, put as a model of `kind` reads it.

    Where it `is_undivided`, all its examples train and all of them test: for a party that does only one of the two.

    Guarantees: the same files, configuration and key give the same examples in the same order; the split into train
    and test does not depend on the key; `max_train` and `max_eval` choose by key (of a balanced task, equally many
    of each group), and what they keep stays in order.

    Raises:
        DataError: no such task, a file, column, label or template that cannot be used, or a task that a model of
            this kind cannot read.
    """
    if config.name not in KNOWN:
        raise DataError(unknown("task", config.name, KNOWN))
    load, settings = KNOWN[config.name]
    _check_settings(config, settings)
    task = load(config, kind)
    if task.kind == "text" and kind != "causal":
        raise DataError(
            f"task {config.name!r} is to write text, which a {kind} model cannot: choose model.kind = 'causal'"
        )
    if is_undivided:
        task = replace(task, train=task.train + task.test, test=task.train + task.test)
    if config.shots:
        task = replace(task, train=_few_shots(task, config.shots, sub_key(seed_key, "shots")))
    for split, examples in (("train", task.train), ("test", task.test)):
        if not examples:
            raise DataError(_without_examples(task, split))
    return replace(
        task,
        train=_limited(task, task.train, config.max_train, sub_key(seed_key, "train")),
        test=_limited(task, task.test, config.max_eval, sub_key(seed_key, "test")),
        max_tokens=config.max_tokens or task.max_tokens,
        cut=config.cut,
    )


def _without_examples(task: Task, split: str) -> str:
    told = f"task {task.name!r} has no {split} examples"
    if not task.left_out:
        return f"{told}: give it files with more rows"
    first = task.left_out[0]
    return (
        f"{told}: {len(task.left_out):,} rows were left out, the first of them {first.place}, {first.reason}; mend "
        f"them or give it files with more rows"
    )


def _check_settings(config: TaskConfig, settings: tuple[str, ...]) -> None:
    for name in (*_CUSTOM, "path", "group_column"):
        if getattr(config, name) and name not in settings:
            raise DataError(
                f"task.{name} is set, but task {config.name!r} does not use it: leave it out, or choose "
                f"task.name = 'custom'"
            )


def _few_shots(task: Task, count: int, key: int) -> tuple[Example, ...]:
    if task.kind != "choice":
        raise DataError(f"task.shots = {count}: counts examples of a class, and task {task.name!r} has no classes: use "
                        f"task.max_train")  # fmt: skip
    labels = np.array([example.label for example in task.train], np.int64)
    return tuple(task.train[i] for i in keyed_shots(key, labels, count))


def _limited(task: Task, examples: tuple[Example, ...], count: int, key: int) -> tuple[Example, ...]:
    if task.is_balanced:
        groups = np.unique([example.group for example in examples], return_inverse=True)[1]
        return tuple(examples[i] for i in keyed_balanced_choice(key, groups, count))
    return tuple(examples[i] for i in keyed_choice(key, len(examples), count))


def _held_back() -> tuple[stdlib.Docstring, ...]:
    found = stdlib.held_back_docstrings()
    if not found:
        raise DataError("this Python was installed without the sources of its standard library: choose another task")
    return found


def _stdlib_topics(config: TaskConfig, kind: ModelKind) -> Task:
    template = {"causal": stdlib.FORM, "masked": f"{stdlib.FORM} {MASK_SLOT}.", "classifier": "{text}"}[kind]
    answers = tuple(f" {package}" for package in stdlib.HELD_BACK)

    def example(d: stdlib.Docstring) -> Example:
        label = stdlib.HELD_BACK.index(d.package)
        return Example(*fill(template, {"text": stdlib.masked(d)}), answers[label], label, d.package)

    docstrings = _held_back()
    train, test = split_by_hash([example(d) for d in docstrings], [d.text for d in docstrings])
    shown = () if kind == "classifier" else answers
    return Task(config.name, "choice", shown, stdlib.HELD_BACK, train, test, stdlib.MAX_TOKENS, _TOPIC_DESCRIPTIONS)


def _stdlib_text(config: TaskConfig, kind: ModelKind) -> Task:
    examples = [Example("", "", "", d.text, None, d.package) for d in _held_back()]
    return Task(config.name, "text", (), (), *split_by_hash(examples), 128)


_CUSTOM = ("test_path", "template", "answer", "label_column", "answers", "choices_column")

KNOWN: dict[str, tuple[Callable[[TaskConfig, ModelKind], Task], tuple[str, ...]]] = {
    "stdlib-topics": (_stdlib_topics, ()),
    "stdlib-text": (_stdlib_text, ()),
    "rated-snippets": (load_snippets, ("path",)),
    **{name: (load_benchmark, ("path", "group_column")) for name in BENCHMARKS},
    "instruction": (load_instruction, ("path", "group_column")),
    "prompt-completion": (load_prompt_completion, ("path",)),
    "plain-text": (load_plain_text, ("path", "group_column")),
    "custom": (load_custom, (*_CUSTOM, "path", "group_column")),
}
"""How each task is loaded, and the settings that it uses apart from the limits on tokens and examples."""
