"""Benchmarks and users' own tables: rows from files or from the hub, made into examples.

The benchmarks themselves are in `benchmarks`; free-form instruction and text data in `texts`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from ..sections import TaskConfig
from .benchmark import Benchmark, Form
from .benchmarks import BENCHMARKS
from .examples import Example, LeftOut, ModelKind, Task
from .files import Row, as_text, check_texts, read_rows, split_files, text_of
from .prompts import MASK_SLOT, check_columns, columns_of, fill
from .row_choices import continue_prompt, find_choice, read_choices
from .splits import train_and_test

CUSTOM_TOKENS = 256
NO_LABEL = ("", "-1")
"""Labels of rows that have none, as empty cells and as the hub's data sets have them."""
WITHOUT_LABEL = "without a label"
_NO_GOLD = "-"
"""SNLI's label of rows on which its annotators did not agree."""
_PASSED_OVER = ("mismatched", "dev32", "unlabeled")
"""Files beside a benchmark's own: MNLI's other genres, FewGLUE's 32 development rows and rows without labels."""

Built = Example | LeftOut
"""What becomes of a row."""


def parted(built: Mapping[str, Iterable[Built]]) -> tuple[dict[str, tuple[Example, ...]], tuple[LeftOut, ...]]:
    """(the examples of each split, the rows that are none)."""
    splits = {split: tuple(each) for split, each in built.items()}
    left_out = tuple(one for each in splits.values() for one in each if isinstance(one, LeftOut))
    return {s: tuple(one for one in each if isinstance(one, Example)) for s, each in splits.items()}, left_out


def empty_cell(row: Row, columns: Iterable[str], place: str) -> LeftOut | None:
    """The row as one to leave out, where one of its `columns` is empty or null; else None."""
    empty = next((name for name in columns if isinstance(row[name], str) and not row[name].strip()), None)
    return None if empty is None else LeftOut(f"with an empty {empty!r}", place)


def label_text(value: str) -> str:
    """A label as it is compared: without blanks around it, and whole where pandas made a float of a whole number.

    >>> label_text("1.0"), label_text(" positive"), label_text("0.5")
    ('1', 'positive', '0.5')
    """
    return re.sub(r"^(-?[0-9]+)\.0+$", r"\1", value.strip())


def load_benchmark(config: TaskConfig, kind: ModelKind) -> Task:
    """The benchmark `config.name` as a model of `kind` reads it, from `config.path`, else from the hub.

    Raises:
        DataError: no prompt for this kind of model, or a file, column or label that cannot be used.
    """
    benchmark = BENCHMARKS[config.name]
    if kind not in benchmark.forms:
        raise DataError(
            f"task {config.name!r} has no prompt for a {kind} model, only for: {', '.join(benchmark.forms)}; choose "
            f"another model.kind, or write the prompt yourself with task.name = 'custom'"
        )
    found = _from_files(config.path, benchmark) if config.path else _from_hub(config.name, benchmark)
    form, group = benchmark.forms[kind], config.group_column or benchmark.group
    splits, left_out = parted({s: _built(_place(config, s), rows, benchmark, form, group) for s, rows in found})
    names = tuple(spellings[1] for spellings in benchmark.labels)
    return Task(
        config.name, "choice" if benchmark.is_choice else "text", form.answers, names, *train_and_test(splits),
        benchmark.max_tokens, benchmark.descriptions, ends=False, left_out=left_out,
    )  # fmt: skip


def _place(config: TaskConfig, split: str) -> str:
    return f"task {config.name!r}, {'data' if split == 'all' else split}"


def _from_files(path: str, benchmark: Benchmark) -> list[tuple[str, list[Row]]]:
    files = split_files(Path(path), passed_over=_PASSED_OVER)
    found = {split: [row for p in paths for row in _rows_of(p, benchmark)] for split, paths in files.items()}
    if found.keys() >= {"train", "validation", "test"}:  # GLUE and SuperGLUE publish no labels for their test rows
        found.pop("validation" if _has_labels(found["test"], benchmark) else "test")
    return list(found.items())


def _has_labels(rows: list[Row], benchmark: Benchmark) -> bool:
    first = rows[0] if rows else {}
    given = [label_text(str(first[name])) for name, _ in benchmark.label_columns if name in first]
    return any(label not in NO_LABEL for label in given)


def _rows_of(path: Path, benchmark: Benchmark) -> list[Row]:
    """A file's rows; where its first line names no label column, it is read under a known header of that length."""
    rows = read_rows(path)
    is_named = not rows or any(name in rows[0] for name, _ in benchmark.label_columns)
    headers = [h for h in benchmark.headers if rows and len(h) == len(rows[0])]
    rows = rows if is_named or not headers else read_rows(path, headers[0])
    return _expand(str(path), rows, benchmark)


def _expand(where: str, rows: list[Row], benchmark: Benchmark) -> list[Row]:
    """A row for each of what a nested row holds.

    Raises:
        DataError: something of a nested row is missing or of the wrong type.
    """
    if benchmark.expanded is None:
        return rows
    found: list[Row] = []
    for number, row in enumerate(rows, 1):
        try:
            found += map(as_text, benchmark.expanded(row))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{where} row {number}: is nested as the benchmark's own files are, but {error} is missing or of the "
                f"wrong type: mend it or leave it out"
            ) from None
    return found


def _from_hub(name: str, benchmark: Benchmark) -> list[tuple[str, list[Row]]]:
    """Train and evaluation rows through the Hugging Face `datasets` package, from its cache or the network."""
    if benchmark.hub is None:
        raise DataError(f"task {name!r} has no data set on the hub: set task.path to a folder with its files")
    (data_set, configuration), evaluated = benchmark.hub, benchmark.evaluated
    try:
        import datasets

        loaded = {s: datasets.load_dataset(data_set, configuration, split=s) for s in ("train", evaluated)}
        found = {split: [as_text(row) for row in rows] for split, rows in loaded.items()}
    except Exception as error:  # the hub's clients have no common class of errors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"task {name!r} could not be loaded from the hub as {data_set!r}: {reason}; set task.path to a folder "
            f"with its files (csv, tsv, json, jsonl or parquet)"
        ) from None
    splits = {"train": "train", evaluated: evaluated.partition("_")[0]}
    return [(splits[split], _expand(f"{data_set} {split}", rows, benchmark)) for split, rows in found.items()]


def _built(where: str, rows: list[Row], benchmark: Benchmark, form: Form, group: str) -> Iterable[Built]:
    needed = (*columns_of(form.template), *([group] if group else []))
    for number, given in enumerate(rows, 1):
        row, place = prepare_row(given, benchmark), f"{where} row {number}"
        check_texts(row, needed, place)
        yield empty_cell(row, needed, place) or _example(row, benchmark, form, group, place)


def prepare_row(given: Row, benchmark: Benchmark) -> Row:
    """A file's row with the columns that the benchmark's templates name."""
    row = {k: v.strip() if isinstance(v, str) else v for k, v in given.items()}
    renamed = {ours: row[theirs] for ours, theirs in benchmark.aliases if theirs in row and ours not in row}
    return benchmark.prepared(row | renamed)


def _example(row: Row, benchmark: Benchmark, form: Form, group: str, place: str) -> Built:
    if benchmark.choices:
        return _own_choices(row, benchmark, form, group, place)
    label = _label_of(row, benchmark, place) if benchmark.labels else None
    references = () if benchmark.labels else _references(row, place)
    if benchmark.labels and label is None:
        return LeftOut(WITHOUT_LABEL, place)
    if not benchmark.labels and not references:
        return LeftOut("without an answer", place)
    word = form.answers[label] if form.answers and label is not None else ""
    answer = f" {references[0]}\n" if references else word
    return Example(*fill(form.template, row, form.body), answer, label, row[group] if group else "", references)


def _own_choices(row: Row, benchmark: Benchmark, form: Form, group: str, place: str) -> Built:
    """An example with answers of its own."""
    choices = benchmark.choices(row) if benchmark.choices else ()
    right = benchmark.right(row) if benchmark.right else ()
    if not all(choice.strip() for choice in choices) or len(choices) < 2:
        return LeftOut("without two choices", place)
    if not right:
        return LeftOut(WITHOUT_LABEL, place)
    label = right[0]
    return Example(
        *fill(form.template, row, form.body), choices[label], label, row[group] if group else "",
        choices=choices, accepted=right[1:],
    )  # fmt: skip


def _label_of(row: Row, benchmark: Benchmark, place: str) -> int | None:
    """The row's label, an index into the benchmark's; None where it says that it has none."""
    columns = [(name, first) for name, first in benchmark.label_columns if name in row]
    if not columns:
        wanted = " or ".join(repr(name) for name, _ in benchmark.label_columns)
        raise DataError(f"{place}: has no column {wanted}, only {', '.join(row)}")
    name, first = columns[0]
    value = label_text(row[name])
    if value in (*NO_LABEL, _NO_GOLD):
        return None
    if first and value.isdigit():
        value = str(int(value) - first)
    for label, spellings in enumerate(benchmark.labels):
        if value.lower() in (spelling.lower() for spelling in spellings):
            return label
    known = "; ".join(f"{label + first} or {', '.join(s[1:])}" for label, s in enumerate(benchmark.labels))
    raise DataError(f"{place}: its {name} is {row[name]!r}, expected {known}; mend it or leave the row out")


def _references(row: Row, place: str) -> tuple[str, ...]:
    """All accepted answers of a SQuAD row, the first of which is learned; none where it has none, as in SQuAD 2."""
    answers = row.get("answers")
    texts = answers.get("text") if isinstance(answers, dict) else answers
    if not isinstance(texts, list):
        raise DataError(f'{place}: needs "answers": {{"text": [answers]}}, but has {answers!r}')
    return tuple(dict.fromkeys(text_of(text) for text in texts))


def load_custom(config: TaskConfig, kind: ModelKind) -> Task:
    """The user's own table: `template` over its columns, and answer words for labels or an answer template.

    A causal or masked model needs an answer word for every label; a classifier takes the labels as they are, in the
    order of `answers`, or else sorted. With `choices_column` each row has choices of its own instead. Cut is the
    longest value of each row.

    Raises:
        DataError: a setting that is missing, a column that does not exist, a label without an answer word.

    A row with an empty cell in a column that is used, or without a label (an empty cell or -1, unless `answers` has a
    word for it), is left out and counted. A label 1.0 is the label 1 where there is one.
    """
    _check_custom(config, kind)
    path = Path(config.path or "")
    found = [(s, [r for p in paths for r in read_rows(p)]) for s, paths in split_files(path).items()]
    if config.test_path:
        rows = [row for split, rows in found for row in rows if split in ("train", "all")]
        tests = split_files(Path(config.test_path)).values()
        found = [("train", rows), ("test", [row for paths in tests for p in paths for row in read_rows(p)])]
    for split, rows in found:
        _check_custom_columns(config, _place(config, split), rows)
    labels = _custom_labels(config, kind, [row for _, rows in found for row in rows])
    answers = () if kind == "classifier" else tuple(config.answers[label] for label in labels)
    built = {s: _custom_built(config, _place(config, s), rows, labels, answers) for s, rows in found}
    splits, left_out = parted(built)
    return Task(config.name, config.kind, answers, labels, *train_and_test(splits), CUSTOM_TOKENS, left_out=left_out)


def _check_custom(config: TaskConfig, kind: ModelKind) -> None:
    needed = ["path", "template", *(["label_column"] if config.kind == "choice" else ["answer"])]
    if config.kind == "choice" and kind != "classifier" and not config.choices_column:
        needed.append("answers")
    if config.choices_column:
        _check_own_choices(config, kind)
    for name in needed:
        if not getattr(config, name):
            raise DataError(f"a 'custom' task of kind {config.kind!r} for a {kind} model needs task.{name}: set it")
    if (MASK_SLOT in (config.template or "")) != (kind == "masked"):
        raise DataError(
            f"task.template {config.template!r} must have {MASK_SLOT} for a masked model and only there, but "
            f"model.kind is {kind!r}"
        )


def _check_own_choices(config: TaskConfig, kind: ModelKind) -> None:
    if config.kind == "text" or config.answers:
        other = "task.kind = 'text'" if config.kind == "text" else "task.answers"
        raise DataError(f"task.choices_column = {config.choices_column!r} cannot stand beside {other}: leave one out")
    if kind != "causal":
        raise DataError(
            f"task.choices_column = {config.choices_column!r} needs a causal model, which scores whole texts, but "
            f"model.kind is {kind!r}"
        )


def _check_custom_columns(config: TaskConfig, where: str, rows: Sequence[Row]) -> None:
    if not rows:
        raise DataError(f"{where}: there are no rows")
    for template in _templates(config):
        check_columns(template, rows[0], where)
    settings = [(n, getattr(config, n)) for n in ("label_column", "group_column") if getattr(config, n)]
    for setting, column in settings:
        if column not in rows[0]:
            raise DataError(f"task.{setting} is {column!r}, but {where} has the columns {', '.join(rows[0])}")
    used = [*_used_columns(config), *(column for _, column in settings)]
    for number, row in enumerate(rows, 1):
        check_texts(row, used, f"{where} row {number}")


def _templates(config: TaskConfig) -> tuple[str, ...]:
    return (config.template or "", *([config.answer or ""] if config.kind == "text" else []))


def _used_columns(config: TaskConfig) -> tuple[str, ...]:
    """The columns that a row must have something in."""
    return tuple(dict.fromkeys(name for template in _templates(config) for name in columns_of(template)))


def read_labels(config: TaskConfig, kind: ModelKind) -> tuple[str, ...]:
    """The labels of a custom choice in their order: those of `answers`, else those in its files.

    Raises:
        DataError: the files cannot be read, or have no two labels.
    """
    if config.answers or config.choices_column:
        return tuple(config.answers)
    paths = [path for paths in split_files(Path(config.path or "")).values() for path in paths]
    return _custom_labels(config, kind, [row for path in paths for row in read_rows(path)])


def _custom_labels(config: TaskConfig, kind: ModelKind, rows: Sequence[Row]) -> tuple[str, ...]:
    """The labels in the order of `answers`; for a classifier without answer words, as found, sorted."""
    if config.kind == "text" or config.choices_column:
        return ()
    column = config.label_column or ""
    found = sorted({label_text(row[column]) for row in rows} - {""})
    labels = tuple(config.answers) or tuple(found)
    if "-1" in found and not config.answers:
        raise DataError(
            f"column {column!r} has the label '-1', which may be a class or mean that there is none: name the classes "
            f"in task.answers, or remove these rows"
        )
    if len(labels) < 2:
        one = f"the one label {labels[0]!r}" if labels else "no label"
        raise DataError(f"column {column!r} has {one}: a choice needs two or more")
    return labels


def _custom_built(
    config: TaskConfig, where: str, rows: Sequence[Row], labels: tuple[str, ...], answers: tuple[str, ...]
) -> Iterable[Built]:
    used = (*_used_columns(config), *([config.group_column] if config.group_column else []))
    for number, row in enumerate(rows, 1):
        place = f"{where} row {number}"
        yield empty_cell(row, used, place) or _custom_example(config, row, labels, answers, place)


def _custom_example(
    config: TaskConfig, row: Row, labels: tuple[str, ...], answers: tuple[str, ...], place: str
) -> Built:
    group = row[config.group_column] if config.group_column else ""
    prompt = fill(config.template or "", row)
    if config.kind == "text":
        return Example(*prompt, "".join(fill(config.answer or "", row)), None, group)
    given = row[config.label_column or ""]
    if config.choices_column:
        return _custom_own_choices(config, row, prompt, label_text(given), group, place)
    name = next((text for text in (given, label_text(given)) if text in labels), None)
    if name is not None:
        label = labels.index(name)
        return Example(*prompt, answers[label] if answers else "", label, group)
    if label_text(given) in NO_LABEL:
        return LeftOut(WITHOUT_LABEL, place)
    raise DataError(
        f"{place}: its {config.label_column} is {given!r}, which has no answer word: task.answers has words for "
        f"{', '.join(labels)}; add one for each label, or mend the row"
    )


def _custom_own_choices(
    config: TaskConfig, row: Row, prompt: tuple[str, str, str], label: str, group: str, place: str
) -> Built:
    if label in NO_LABEL:
        return LeftOut(WITHOUT_LABEL, place)
    texts, names = read_choices(config, row, place)
    right, choices = find_choice(label, texts, names, place), continue_prompt(config, row, texts)
    return Example(*prompt, choices[right], right, group, choices=choices)
