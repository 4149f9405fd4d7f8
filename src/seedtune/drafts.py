"""A first recipe for a user's own table: commented TOML that runs as it is, and says what to change.

The columns are guessed by `data.guess`, the window measured with the model's tokenizer. Nothing is trained.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .assembly import TASK_KEY
from .data.encoding import answer_tokens, encode
from .data.examples import ModelKind, Task
from .data.files import Row, read_rows, split_files
from .data.guess import guess_group, letter_answers
from .data.tasks import load_task
from .errors import ConfigError, DataError
from .models.load import load_tokenizer
from .previews import find_subject
from .recipe_text import build, merged
from .run_folder import replace_text, writing
from .sections import TaskConfig

_UNCUT = 2**40
COVERED = 95
"""Percent of the examples that the drafted window holds whole."""


def draft_recipe(path: str, model: str, over: Mapping[str, Any], name: str = "recipe.toml") -> str:
    """The TOML text of a recipe for the table at `path`, checked: it builds, and its task loads for the model.

    `name`: the file that it will be written to, for the commands in its first lines.

    Raises:
        SeedtuneError: columns that cannot be guessed, a table or a model that cannot be used.
    """
    tokenizer, kind, window = load_tokenizer(build(merged({"model": {"name": model}}, over)).model)
    config = find_subject(path, model, over).recipe.task
    config, task = _with_usable_answers(config, kind, tokenizer)
    rows = read_rows(next(iter(split_files(Path(path)).values()))[0])
    text = _format_recipe(name, model, config, kind, task, rows, _max_tokens(task, tokenizer, kind, window))
    load_task(build(tomllib.loads(text), "the drafted recipe").task, TASK_KEY, kind)
    return text


def check_free(path: Path) -> None:
    """Check that a recipe can be written there, before anything is read.

    Raises:
        ConfigError: the file is there, or its name does not end in .toml.
    """
    if path.suffix != ".toml":
        raise ConfigError(f"--out {path}: a recipe's name ends in .toml, as in {path.stem or 'recipe'}.toml")
    if path.exists():
        raise ConfigError(f"--out {path}: is there already and is not overwritten: choose another name or remove it")


def write_recipe(path: Path, text: str) -> None:
    """Write a recipe to a file.

    Raises:
        RunStoreError: it cannot be written.
    """
    with writing(path.parent, "choose another file with --out"):
        replace_text(path, text)


def _with_usable_answers(config: TaskConfig, kind: ModelKind, tokenizer: Any) -> tuple[TaskConfig, Task]:
    """The task, with letters as answers where the labels' own words cannot be told apart by their first token."""
    task = load_task(config, TASK_KEY, kind)
    try:
        answer_tokens(task, tokenizer, kind)
    except DataError:
        config = config.model_copy(update={"answers": letter_answers(task.label_names)})
        task = load_task(config, TASK_KEY, kind)
    return config, task


def _max_tokens(task: Task, tokenizer: Any, kind: ModelKind, window: int) -> int:
    """Tokens that hold most examples whole, a multiple of 8, within the model's window."""
    whole = encode(Task(**{**vars(task), "max_tokens": _UNCUT}), task.train, tokenizer, kind)
    sizes = [len(e.prompt) + len(e.answer) for e in whole.examples]
    extra = max((len(answer) - 1 for answer in whole.answers), default=0)
    wanted = int(-(-(np.percentile(sizes, COVERED) + extra) // 8) * 8)
    return min(max(wanted, 16), window or wanted)


def _format_recipe(
    name: str, model: str, config: TaskConfig, kind: ModelKind, task: Task, rows: Sequence[Row], max_tokens: int
) -> str:
    num_clients = max(1, min(8, len(task.train) // 4))
    lines = [
        f"# A first recipe for {config.path}. Look at its task, run it, and use what it tuned on new rows:",
        f"#   seedtune task {name}",
        f"#   seedtune run {name} --out runs/mine",
        "#   seedtune predict runs/mine new-rows.csv",
        "",
        "[model]",
        f"name = {_quoted(model)}  # a folder or a hub id; 'starter' is a tiny model to try things with",
        *_label_descriptions(kind, task),
        "",
        "[task]",
        *_task_lines(config, rows),
        f"max_tokens = {max_tokens}  # holds {COVERED} in 100 of the examples whole; what is longer is cut",
        "# test_path = 'held-out.csv'  # without it, every fifth row, chosen by a hash of its text, is for testing",
        "# max_train = 1000  # use fewer rows; max_eval limits the test rows",
        "",
        "[partition]",
        *_partition_lines(rows, config),
        f"num_clients = {num_clients}",
        "",
        "[federation]",
        "num_rounds = 100",
        "batch_size = 16",
        "",
        "[local]",
        "num_directions = 8  # more directions a step are steadier and slower",
        'learning_rate = "auto"  # measured before the first round and while it runs',
        'perturbation_scale = "auto"  # measured before the first round',
    ]
    return "\n".join(lines) + "\n"


def _label_descriptions(kind: ModelKind, task: Task) -> list[str]:
    """An encoder's new head starts from the embeddings of some text for each label."""
    if kind != "classifier":
        return []
    listed = ", ".join(map(_quoted, task.label_names))
    return [f"label_descriptions = [{listed}]  # say in some words what each label means: its head starts from there"]


def _task_lines(config: TaskConfig, rows: Sequence[Row]) -> list[str]:
    """The settings of the task; those that a user is likely to change say so."""
    lines = [
        f"name = {_quoted(config.name)}",
        f"path = {_quoted(config.path or '')}  # {len(rows):,} rows with the columns {_listed(rows[0])}",
    ]
    if config.name != "custom":
        return lines
    lines += [f"template = {_quoted(config.template or '')}  # what the model reads; columns in braces"]
    if config.kind == "text":
        return [*lines, 'kind = "text"', f"answer = {_quoted(config.answer or '')}  # what it learns to write"]
    lines.append(f"label_column = {_quoted(config.label_column or '')}")
    if config.answers:
        pairs = ", ".join(f"{_quoted(label)} = {_quoted(answer)}" for label, answer in config.answers.items())
        lines.append("# The word that stands for each label. No two may begin with the same token; words that")
        lines += ["# would follow the prompt in running text are learned soonest.", f"answers = {{ {pairs} }}"]
    return lines


def _partition_lines(rows: Sequence[Row], config: TaskConfig) -> list[str]:
    column = guess_group(rows) if config.name == "custom" else None
    hint = f"'natural' with task.group_column = {_quoted(column)}" if column else "'dirichlet', skewed by label"
    return [f'kind = "iid"  # every client has the same mix; or {hint}']


def _listed(row: Row) -> str:
    names = " ".join(", ".join(row).split())
    return names if len(names) <= 100 else f"{names[:97]}..."


def _quoted(text: str) -> str:
    """A TOML string: TOML's basic strings escape as JSON does."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
