"""The form in which a task puts rows to a model: all that new rows need, without labels and without the task's files.

A form is kept beside an exported model, in `seedtune.json`, so that the folder knows its task.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from ..errors import DataError
from ..sections import TaskConfig
from . import snippets, stdlib
from .benchmark import Benchmark
from .benchmarks import BENCHMARKS
from .examples import Example, ModelKind, Task
from .files import Row, check_texts
from .labelled import CUSTOM_TOKENS, prepare_row, read_labels
from .prompts import MASK_SLOT, columns_of, fill
from .row_choices import continue_prompt, read_choices
from .texts import instruction_columns, instruction_prompt, middle_as_body

FORM_FILE = "seedtune.json"
FORM_VERSION = 1
_UNKNOWN_ANSWER = "?"
"""Stands for the text that is to be written: no prompt depends on it."""

Prompt = tuple[str, str, str]


@dataclass(frozen=True)
class TaskForm:
    """How rows become prompts, and what may be answered.

    `columns` are those that a row must have, `prompt` makes (head, body, tail) of a row. `answers` and `label_names`
    are as in `examples.Task`. `choices` makes the answers of a row that has its own.
    """

    name: str
    kind: Literal["choice", "text"]
    answers: tuple[str, ...]
    label_names: tuple[str, ...]
    max_tokens: int
    columns: tuple[str, ...]
    prompt: Callable[[Row], Prompt]
    ends: bool = True
    choices: Callable[[Row], tuple[str, ...]] | None = None
    cut: Literal["body", "left"] = "body"

    def as_task(self, rows: Sequence[Row], where: str) -> Task:
        """The rows as test examples whose labels are not known (label 0, or a text that stands for any).

        Raises:
            DataError: a row without one of the columns.
        """
        for number, row in enumerate(rows, 1):
            check_texts(row, self.columns, f"{where} row {number}")
        label, answer = (0, "") if self.kind == "choice" else (None, _UNKNOWN_ANSWER)
        own = self.choices or (lambda row: ())
        examples = tuple(Example(*self.prompt(row), answer, label, choices=own(row)) for row in rows)
        return Task(
            self.name, self.kind, self.answers, self.label_names, (), examples, self.max_tokens, ends=self.ends,
            cut=self.cut,
        )  # fmt: skip


def find_form(config: TaskConfig, kind: ModelKind) -> TaskForm:
    """The form of the task that `config` names, for a model of `kind`. Reads a custom classifier's labels only.

    Raises:
        DataError: a task of plain text, which has no prompts, or one without a form for this kind of model.
    """
    special = {
        "custom": _custom,
        "instruction": _instruction,
        "prompt-completion": _prompt_completion,
        "stdlib-topics": _topics,
        "rated-snippets": _snippets,
    }
    if config.name in special:
        return replace(special[config.name](config, kind), cut=config.cut)
    if config.name in BENCHMARKS:
        return replace(_benchmark(config, kind, BENCHMARKS[config.name]), cut=config.cut)
    raise DataError(
        f"task {config.name!r} has no prompts to put new rows into: use 'seedtune generate' to write on from a text"
    )


def _custom(config: TaskConfig, kind: ModelKind) -> TaskForm:
    template = config.template or ""
    labels = read_labels(config, kind) if config.kind == "choice" else ()
    answers = tuple(config.answers[label] for label in labels) if kind != "classifier" else ()
    return TaskForm(
        config.name, config.kind, answers, labels, config.max_tokens or CUSTOM_TOKENS, columns_of(template),
        lambda row: fill(template, row), choices=_custom_choices(config) if config.choices_column else None,
    )  # fmt: skip


def _custom_choices(config: TaskConfig) -> Callable[[Row], tuple[str, ...]]:
    return lambda row: continue_prompt(config, row, read_choices(config, row, "a row for task 'custom'")[0])


def _benchmark(config: TaskConfig, kind: ModelKind, benchmark: Benchmark) -> TaskForm:
    if kind not in benchmark.forms:
        raise DataError(f"task {config.name!r} has no prompt for a {kind} model: choose another model.kind")
    form, names = benchmark.forms[kind], tuple(spellings[1] for spellings in benchmark.labels)

    def prompt(row: Row) -> Prompt:
        made = prepare_row(row, benchmark)
        check_texts(made, columns_of(form.template), f"a row for task {config.name!r}")
        return fill(form.template, made, form.body)

    return TaskForm(
        config.name, "choice" if benchmark.is_choice else "text", form.answers, names,
        config.max_tokens or benchmark.max_tokens, (), prompt, ends=False,
        choices=_benchmark_choices(benchmark),
    )  # fmt: skip


def _benchmark_choices(benchmark: Benchmark) -> Callable[[Row], tuple[str, ...]] | None:
    own = benchmark.choices
    return None if own is None else lambda row: own(prepare_row(row, benchmark))


def _snippets(config: TaskConfig, kind: ModelKind) -> TaskForm:
    form = snippets.FORMS[kind]
    return TaskForm(
        config.name, "choice", form.answers, snippets.LABELS, config.max_tokens or snippets.MAX_TOKENS, ("text",),
        lambda row: fill(form.template, row, form.body), ends=False,
    )  # fmt: skip


def _topics(config: TaskConfig, kind: ModelKind) -> TaskForm:
    template = {"causal": stdlib.FORM, "masked": f"{stdlib.FORM} {MASK_SLOT}.", "classifier": "{text}"}[kind]
    answers = tuple(f" {package}" for package in stdlib.HELD_BACK) if kind != "classifier" else ()
    return TaskForm(
        config.name, "choice", answers, stdlib.HELD_BACK, config.max_tokens or stdlib.MAX_TOKENS, ("text",),
        lambda row: fill(template, row),
    )  # fmt: skip


def _instruction(config: TaskConfig, kind: ModelKind) -> TaskForm:
    def prompt(row: Row) -> Prompt:
        check_texts(row, instruction_columns(row), "a row of instructions")
        return instruction_prompt(row)

    return TaskForm(config.name, "text", (), (), config.max_tokens or 256, (), prompt)


def _prompt_completion(config: TaskConfig, kind: ModelKind) -> TaskForm:
    return TaskForm(
        config.name, "text", (), (), config.max_tokens or 256, ("prompt",), lambda row: middle_as_body(row["prompt"])
    )


def describe_form(config: TaskConfig, kind: ModelKind) -> dict[str, Any]:
    """Return what `seedtune.json` says of a task under "form"; labels that are only in the task's files are added."""
    try:
        form = find_form(config, kind)
    except DataError:  # a task without prompts, or labels in files that are no longer there
        form = None
    if form and config.name == "custom" and config.kind == "choice" and not config.answers:
        config = config.model_copy(update={"answers": {name: name for name in form.label_names}})
    return {"version": FORM_VERSION, "model_kind": kind, "task": config.model_dump(mode="json")}


def read_form(folder: Path) -> tuple[TaskConfig, ModelKind] | None:
    """The task that an exported model was tuned for and the kind of the model; None where the folder does not say.

    Raises:
        DataError: `seedtune.json` is damaged or of a later version.
    """
    file = folder / FORM_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return _parse_form(values["form"]) if "form" in values else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "not as it was written" if isinstance(error, ValidationError) else str(error).split("\n")[0]
        raise DataError(
            f"{file}: cannot be read ({reason}): name the task with --task, or write the folder again with "
            f"'seedtune replay'"
        ) from None


def _parse_form(values: Any) -> tuple[TaskConfig, ModelKind]:
    if values["version"] != FORM_VERSION:
        raise ValueError(f"version {values['version']!r}, this seedtune reads {FORM_VERSION}")
    if values["model_kind"] not in get_args(ModelKind):
        raise ValueError("no known kind of model")
    return TaskConfig.model_validate(values["task"]), values["model_kind"]
