"""Tasks whose answer is a text: instructions, prompts with completions, and plain text.

All are for causal models, judged by the loss on the answer's tokens. Files only: nothing is fetched.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..sections import TaskConfig
from .examples import Example, LeftOut, ModelKind, Task
from .files import Row, check_texts, read_rows, read_text, split_files
from .labelled import Built, empty_cell, parted
from .prompts import fill
from .splits import train_and_test

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
"""The prompts of Stanford Alpaca (tatsu-lab/stanford_alpaca, train.py)."""

_INSTRUCTION = ("instruction", "question")
_INPUT = ("input", "context")
_RESPONSE = ("output", "response", "answer")

CHARACTERS_A_TOKEN = 2
"""How much plain text is taken for a window: large vocabularies need half of it, small ones little more than it."""
END_WORDS = 30
"""Words at each end of a free-form prompt that are never cut: a question stands first or last, rarely between."""


def load_instruction(config: TaskConfig, kind: ModelKind) -> Task:
    """Rows with instruction, optional input and output (Alpaca, CodeAlpaca), instruction, context and response
    (Dolly), or question and answer (GSM8K), in Alpaca's form. A column `category` is the natural client.

    Raises:
        DataError: no path, or columns of none of these forms. Rows without an instruction or a response are left out.
    """
    built = {}
    for split, paths in split_files(_path(config)).items():
        rows = [(f"{p} row {i}", row) for p in paths for i, row in enumerate(read_rows(p), 1)]
        built[split] = tuple(_instruction(place, row, config.group_column) for place, row in rows)
    splits, left_out = parted(built)
    return Task(config.name, "text", (), (), *train_and_test(splits), 256, left_out=left_out)


def _instruction(place: str, row: Row, group: str | None) -> Built:
    asked, response = _find_column(row, _INSTRUCTION), _find_column(row, _RESPONSE)
    if not asked or not response:
        raise DataError(
            f"{place}: instruction data needs a column {' or '.join(_INSTRUCTION)} and a column "
            f"{' or '.join(_RESPONSE)}, but has {', '.join(row)}; for other columns use task.name = 'custom'"
        )
    if group and group not in row:
        raise DataError(f"task.group_column is {group!r}, but {place} has the columns {', '.join(row)}")
    check_texts(row, [name for name in (*_INSTRUCTION, *_INPUT, *_RESPONSE) if name in row], place)
    if empty := empty_cell(row, (asked, response), place):
        return empty
    return Example(*instruction_prompt(row), row[response], None, str(row.get(group or "category", "")))


def _find_column(row: Row, names: tuple[str, ...]) -> str:
    """The first of `names` that the row has; "" where it has none."""
    return next((name for name in names if name in row), "")


def instruction_columns(row: Row) -> tuple[str, ...]:
    """The columns of a row that make its prompt: the request, and its input where there is one."""
    given = _find_column(row, _INPUT)
    return (_find_column(row, _INSTRUCTION) or _INSTRUCTION[0], *([given] if given else []))


def instruction_prompt(row: Row) -> tuple[str, str, str]:
    """(head, body, tail) of a row's prompt in Alpaca's form; its response is not looked at."""
    asked, *given = (row[name] for name in instruction_columns(row))
    text = given[0] if given else ""
    return fill(ALPACA_WITH_INPUT if text else ALPACA, {"instruction": asked, "input": text})


def load_prompt_completion(config: TaskConfig, kind: ModelKind) -> Task:
    """Rows with prompt and completion; each file is one natural client, named after the file.

    A trailing `<|endoftext|>` of a completion is taken off (the tokenizer's own end follows), and rows whose
    completion is then empty are left out. The first and the last 30 words of a prompt are never cut.

    Raises:
        DataError: no path, or a row without these columns.
    """
    found = split_files(_path(config))
    splits, left_out = parted({split: [e for p in paths for e in _completions(p)] for split, paths in found.items()})
    return Task(config.name, "text", (), (), *train_and_test(splits), 256, left_out=left_out)


def _completions(path: Path) -> Iterable[Built]:
    for number, row in enumerate(read_rows(path), 1):
        place = f"{path} row {number}"
        check_texts(row, ("prompt", "completion"), place)
        answer = row["completion"].removesuffix("<|endoftext|>")
        empty = LeftOut("with an empty 'completion'", place)
        yield Example(*middle_as_body(row["prompt"]), answer, None, path.stem) if answer else empty


def middle_as_body(prompt: str) -> tuple[str, str, str]:
    """(head, body, tail): up to 30 words at each end, at most a third of the prompt, are head and tail."""
    words = re.findall(r"\s*\S+|\s+$", prompt)
    ends = min(END_WORDS, len(words) // 3)
    last = len(words) - ends
    return "".join(words[:ends]), "".join(words[ends:last]), "".join(words[last:])


def load_plain_text(config: TaskConfig, kind: ModelKind) -> Task:
    """Text files (.txt) cut into blocks of about a window, at the ends of words; every token but the first is learned.

    A block has at most two characters a token of the window (`config.max_tokens`, default 128). Each file is one
    natural client; with `group_column = "speaker"` the text is a play, whose paragraphs begin with a line "NAME:",
    and each speaker is one. Files named valid and test, without train, train and test.

    Raises:
        DataError: no path, no .txt file, or a play without speakers.
    """
    if config.group_column not in (None, "speaker"):
        raise DataError(f"task.group_column is {config.group_column!r}: for 'plain-text' it is 'speaker' or unset")
    window = config.max_tokens or 128
    found = split_files(_path(config), (".txt",))
    splits = {split: tuple(e for p in paths for e in _blocks(p, config, window)) for split, paths in found.items()}
    return Task(config.name, "text", (), (), *train_and_test(splits), window, ends=False)


def _blocks(path: Path, config: TaskConfig, window: int) -> Iterable[Example]:
    text = read_text(path)
    parts = _by_speaker(text) if config.group_column == "speaker" else {path.stem: text}
    if not parts:
        raise DataError(f"{path}: no paragraph begins with a line 'NAME:', so there are no speakers: unset "
                        f"task.group_column")  # fmt: skip
    for group, words in parts.items():
        for block in cut_into_blocks(words, window * CHARACTERS_A_TOKEN):
            yield Example("", "", "", block, None, group)


def _by_speaker(text: str) -> dict[str, str]:
    """Each speaker's paragraphs, names included, in the order of their first words."""
    speeches: dict[str, list[str]] = {}
    speaker = None
    for paragraph in text.split("\n\n"):
        name, line_end, _ = paragraph.lstrip("\n").partition(":\n")
        speaker = name if line_end and "\n" not in name else speaker
        if speaker is not None and paragraph.strip():
            speeches.setdefault(speaker, []).append(paragraph.strip("\n"))
    return {name: "\n\n".join(paragraphs) for name, paragraphs in speeches.items()}


def cut_into_blocks(text: str, size: int) -> list[str]:
    """The text in blocks of at most `size` characters, cut before white space; a longer word stays whole.

    >>> cut_into_blocks("one two three", 8)
    ['one two', ' three']
    """
    blocks: list[str] = []
    words: list[str] = []
    length = 0
    for word in re.findall(r"\s*\S+", text):
        if words and length + len(word) > size:
            blocks.append("".join(words))
            words, length = [], 0
        words.append(word)
        length += len(word)
    return [*blocks, "".join(words)] if words else blocks


def _path(config: TaskConfig) -> Path:
    if not config.path:
        raise DataError(f"task {config.name!r} has no data of its own: set task.path to a file or folder")
    return Path(config.path)
