import json

import pytest

from seedtune.data.tasks import load_task
from seedtune.data.texts import cut_into_blocks
from seedtune.errors import DataError
from seedtune.sections import TaskConfig


def load(path, name, **settings):
    return load_task(TaskConfig(name=name, path=str(path), **settings), 0)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def everything(task):
    return sorted((*task.train, *task.test), key=lambda e: e.prompt + e.answer)


def test_an_instruction_with_and_without_input(tmp_path):
    rows = [{"instruction": f"Add {i}.", "input": "1, 2" * (i % 2), "output": str(i)} for i in range(30)]
    task = load(write(tmp_path / "a.jsonl", rows), "instruction")
    plain, given = (next(e for e in everything(task) if e.answer == answer) for answer in ("6", "7"))
    assert plain.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd 6.\n\n### Response:"
    )
    assert given.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd 7.\n\n### Input:\n1, 2\n\n"
        "### Response:"
    )
    assert task.ends and task.kind == "text"


@pytest.mark.parametrize(
    ("row", "group"),
    [
        ({"question": "Why?", "answer": "So."}, ""),
        ({"instruction": "Why?", "context": "", "response": "So.", "category": "open_qa"}, "open_qa"),
    ],
)
def test_other_names_of_instruction_columns(tmp_path, row, group):
    others = [{name: value + str(i) for name, value in row.items()} for i in range(20)]
    task = load(write(tmp_path / "a.jsonl", [row, *others]), "instruction")
    example = next(e for e in everything(task) if e.answer == "So.")
    assert example.body == "Why?" and example.group == group


def test_instruction_rows_that_cannot_be_used(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "Add.", "outputs": "3"}])
    with pytest.raises(DataError) as error:
        load(path, "instruction")
    assert str(error.value) == (
        f"{path} row 1: instruction data needs a column instruction or question and a column output or response or "
        f"answer, but has instruction, outputs; for other columns use task.name = 'custom'"
    )
    path = write(tmp_path / "a.jsonl", [{"instruction": "Add.", "output": "3"}])
    with pytest.raises(DataError) as error:
        load(path, "instruction", group_column="kind")
    assert str(error.value) == f"task.group_column is 'kind', but {path} row 1 has the columns instruction, output"


def test_each_file_of_completions_is_a_client(tmp_path):
    for name in ("sums", "names"):
        write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"{name} {i}\n", "completion": f"{i}<|endoftext|>"} for i in range(20)],
        )
    write(tmp_path / "empty.jsonl", [{"prompt": "x", "completion": "<|endoftext|>"}])
    task = load(tmp_path, "prompt-completion")
    assert {e.group for e in task.train} == {"sums", "names"}
    assert all(e.prompt == f"{e.group} {e.answer}\n" for e in everything(task))


def test_both_ends_of_a_long_prompt_are_fixed(tmp_path):
    words = " ".join(f"w{i}" for i in range(200)) + "\n"
    rows = [{"prompt": f"{i} {words}", "completion": "yes"} for i in range(20)]
    example = load(write(tmp_path / "a.jsonl", rows), "prompt-completion").train[0]
    assert example.prompt.endswith(words) and len(example.head.split()) == 30
    assert example.tail.split()[-1] == "w199" and len(example.tail.split()) <= 31


def test_completions_need_their_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "x", "answer": "y"}])
    with pytest.raises(DataError, match=r"a\.jsonl row 1: has no column 'completion', only prompt, answer$"):
        load(path, "prompt-completion")


def test_blocks_hold_all_of_the_text():
    text = " ".join(str(i) for i in range(500)) + " " + "x" * 90 + "\n"
    blocks = cut_into_blocks(text, 50)
    assert "".join(blocks) == text.rstrip() and sum(len(block) > 50 for block in blocks) == 1
    assert cut_into_blocks(" \n", 5) == []


def test_files_of_plain_text_are_clients(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(" ".join(f"{name}{i}" for i in range(200)))
    (tmp_path / "README.txt").write_text("not data")
    task = load(tmp_path, "plain-text", max_tokens=16)
    assert {e.group for e in task.train} == {"one", "two"} and not task.ends and task.max_tokens == 16
    assert all(len(e.answer) <= 32 for e in everything(task))


def test_a_plays_speakers_are_clients(tmp_path):
    speeches = [f"{'ANN' if i % 2 else 'BOB'}:\nline {i} of the play\n\nand more of {i}" for i in range(30)]
    (tmp_path / "play.txt").write_text("\n\n".join(speeches))
    task = load(tmp_path / "play.txt", "plain-text", max_tokens=20, group_column="speaker")
    assert {e.group for e in task.train} == {"ANN", "BOB"}
    words = " ".join(e.answer for e in everything(task) if e.group == "ANN")
    assert "line 1 " in words and "line 2 " not in words


def test_plain_text_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("no speakers here\n\nnone")
    with pytest.raises(DataError) as error:
        load(path, "plain-text", group_column="speaker")
    assert str(error.value) == (
        f"{path}: no paragraph begins with a line 'NAME:', so there are no speakers: unset task.group_column"
    )
    with pytest.raises(DataError, match=r"^task.group_column is 'x': for 'plain-text' it is 'speaker' or unset$"):
        load(path, "plain-text", group_column="x")
