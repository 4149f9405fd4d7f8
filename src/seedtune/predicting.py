"""A tuned model applied to new rows: the most likely label with its probability, or the text that it writes.

Nothing here trains, and no row needs a label.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import run_store
from .assembly import initial_values, load_replayed
from .config import Machine
from .data.encoding import ANSWER_RESERVE, encode
from .data.examples import ModelKind
from .data.files import Row, read_rows
from .data.forms import FORM_FILE, TaskForm, find_form, read_form
from .errors import DataError, ModelError
from .inspection import opened
from .models.evaluation import predict_probabilities
from .models.generate import generate
from .models.load import Tuned, load
from .models.placement import device_of
from .run_folder import replace_text, writing
from .sections import ModelConfig, TaskConfig

PREDICTION, CONFIDENCE = "prediction", "confidence"
OUTPUTS = (".csv", ".jsonl")
_CPU = Machine()


@dataclass(frozen=True)
class Predictions:
    """New rows with what the model makes of them.

    `labels`: of each row, the label's name, its own choice or the text written. `probabilities`: float32 [N, C] in the
    order of `label_names`, or of each row's own choices where there are no names; None for texts.
    """

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    label_names: tuple[str, ...]
    probabilities: np.ndarray | None

    def as_rows(self) -> list[dict[str, Any]]:
        """The rows' own columns, then prediction and, for choices, confidence and the score of each label."""
        return [
            {**row, PREDICTION: label, **self._scores(i)}
            for i, (row, label) in enumerate(zip(self.rows, self.labels, strict=True))
        ]

    def _scores(self, i: int) -> dict[str, float]:
        if self.probabilities is None:
            return {}
        values = [round(float(p), 6) for p in self.probabilities[i]]
        return {CONFIDENCE: max(values), **dict(zip(map(_score_name, self.label_names), values, strict=False))}


def _score_name(label: str) -> str:
    return f"score_{label}"


def predict(
    subject: str,
    path: Path,
    task: TaskConfig | None = None,
    base: str | None = None,
    machine: Machine = _CPU,
) -> Predictions:
    """Apply a run's tuned model, or a folder that `replay` wrote, to the rows of a file.

    `task`: another task than the one that the run or folder names. `base`: where a run's base is found now.

    Cost: loads the model, replays the run, one forward a batch of 64 rows; texts are generated, at most 50 tokens each.

    Raises:
        SeedtuneError: no such run, folder or file; a folder that names no task; a row without a column of the template.
    """
    rows = read_rows(path)
    run = run_store.is_run(Path(subject))
    model, form = (_of_run if run else _of_folder)(subject, task, base, machine)
    _check_free_columns(path, rows, form)
    data = form.as_task(rows, str(path))
    encoded = encode(data, data.test, model.tokenizer, model.kind, model.window, range(len(rows)))
    if form.kind == "text":
        prompts = [example.prompt.tolist() for example in encoded.examples]
        written = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in _generate(model, prompts)]
        return Predictions(tuple(rows), tuple(str(text).strip() for text in written), (), None)
    probabilities = predict_probabilities(model, encoded)
    each = [[text.strip() for text in example.choices] or form.label_names for example in data.test]
    labels = tuple(names[i] for names, i in zip(each, probabilities.argmax(1), strict=True))
    return Predictions(tuple(rows), labels, form.label_names, probabilities)


def _generate(model: Tuned, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return generate(model, prompts, ANSWER_RESERVE)


def _of_run(subject: str, task: TaskConfig | None, base: str | None, machine: Machine) -> tuple[Tuned, TaskForm]:
    recipe, (state, snapshot) = run_store.recipe_of(Path(subject)), opened(Path(subject))
    device = device_of(machine, recipe.model)
    model, _ = load_replayed(state, base or recipe.model.name, None, snapshot)
    model.module.to(device)
    return model, find_form(task or recipe.task, model.kind)


def _of_folder(subject: str, task: TaskConfig | None, base: str | None, machine: Machine) -> tuple[Tuned, TaskForm]:
    if base:
        raise ModelError(f"--base {base!r}: is for runs, and {subject!r} is none: leave it out")
    config, kind = _task_of_folder(subject) if task is None else (task, None)
    settings = ModelConfig(name=subject, kind=kind or "auto")
    device = device_of(machine, settings)
    form = find_form(config, kind) if kind else None
    model = load(settings, len(form.label_names) or None if form else None, initial_values(0))
    model.module.to(device)
    return model, form or find_form(config, model.kind)


def _task_of_folder(subject: str) -> tuple[TaskConfig, ModelKind]:
    found = read_form(Path(subject))
    if found is None:
        raise DataError(
            f"{subject!r}: says no task (there is no {FORM_FILE}, which 'seedtune replay' writes for a run): name it "
            f"with --task"
        )
    return found


def _check_free_columns(path: Path, rows: Sequence[Row], form: TaskForm) -> None:
    added = [PREDICTION] if form.kind == "text" else [PREDICTION, CONFIDENCE, *map(_score_name, form.label_names)]
    taken = [name for name in added if name in rows[0]]
    if taken:
        raise DataError(f"{path}: has a column {taken[0]!r} already, which predictions are written to: rename it")


def format_rows(rows: Sequence[dict[str, Any]], suffix: str) -> str:
    """Rows as csv or as JSON lines; in a csv, lists and objects are JSON."""
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    stream = io.StringIO()
    table = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
    return stream.getvalue()


def check_output(path: Path | None) -> None:
    """Check that predictions can be written there, before anything is computed.

    Raises:
        DataError: an unknown suffix, or a file that is there.
    """
    if path is None:
        return
    if path.suffix.lower() not in OUTPUTS:
        raise DataError(f"--out {path}: cannot write {path.suffix or 'a file without suffix'}: give .csv or .jsonl")
    if path.exists():
        raise DataError(f"--out {path}: is there already and is not overwritten: choose another name or remove it")


def write_output(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write predictions to a file, whole or not at all.

    Raises:
        RunStoreError: it cannot be written.
    """
    with writing(path.parent, "choose another file with --out"):
        replace_text(path, format_rows(rows, path.suffix.lower()))
