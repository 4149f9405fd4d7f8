"""Every real data set loads as it is published, with the number of rows that its source states."""

import pytest

from seedtune.data.batches import batch_of
from seedtune.data.encoding import encode
from seedtune.data.partition import partition
from seedtune.data.tasks import load_task
from seedtune.sections import PartitionConfig, TaskConfig


def load(shared_data, name, folder, **settings):
    return load_task(TaskConfig(name=name, path=str(shared_data / "tasks" / folder), **settings), 1)


def assert_learnable(task, tokenizer):
    encoded = encode(task, task.test[:20], tokenizer, "causal")
    batch = batch_of(encoded, range(len(encoded)))
    assert batch.input_ids.shape[1] <= task.max_tokens and len(batch.rows) == len(batch.columns) > 0


def test_sst2(shared_data, bpe):
    task = load(shared_data, "sst2", "sst2")
    assert (len(task.train), len(task.test)) == (67349, 872)
    assert task.test[0].prompt == "it 's a charming and often affecting journey . It was"
    assert task.test[0].answer == " great" and task.train[0].answer == " terrible"
    assert_learnable(task, bpe)


def test_ag_news(shared_data, bpe):
    task = load(shared_data, "ag_news", "ag_news")
    assert len(task.test) == 7600 and 10000 <= len(task.train) <= 10001
    assert [sum(e.label == label for e in task.test) for label in range(4)] == [1900] * 4
    assert task.test[0].label == 2 and task.test[0].body.startswith("Fears for T N pension after talks Unions")
    assert_learnable(task, bpe)


@pytest.mark.parametrize(
    ("folder", "num_rows"), [("gsm8k", 7473 + 1319), ("code_alpaca", 2017 + 4535), ("instruction_1100", 1100)]
)
def test_instructions(shared_data, bpe, folder, num_rows):
    task = load(shared_data, "instruction", folder)
    assert len(task.train) + len(task.test) + len(task.left_out) == num_rows
    assert len(task.left_out) == (2 if folder == "code_alpaca" else 0)  # rows whose output is empty
    assert folder != "gsm8k" or len(task.test) == 1319
    assert_learnable(task, bpe)


def test_prompted_tasks_are_natural_clients(shared_data, bpe):
    task = load(shared_data, "prompt-completion", "t0_tasks")
    clients = partition(task.train, PartitionConfig(kind="natural", num_clients=29), 1)
    assert len({e.group for e in task.train}) == 29  # the thirtieth has empty completions only
    assert all(len({task.train[i].group for i in indices}) == 1 for indices in clients)
    assert not any("<|endoftext|>" in e.answer for e in task.train)
    assert_learnable(task, bpe)


def test_tinyshakespeare_by_speaker(shared_data, bpe):
    task = load(shared_data, "plain-text", "tinyshakespeare", group_column="speaker")
    groups = {e.group for e in task.train}
    assert {"First Citizen", "MENENIUS", "ROMEO"} <= groups and len(groups) > 250
    assert len(partition(task.train, PartitionConfig(kind="natural", num_clients=20), 1)) == 20
    assert_learnable(task, bpe)


def test_wikitext2_trains_on_valid(shared_data, bpe):
    task = load(shared_data, "plain-text", "wikitext2")
    assert {e.group for e in task.train} == {"valid"} and {e.group for e in task.test} == {"test"}
    assert_learnable(task, bpe)


def test_limits_make_a_small_task_of_a_large_one(shared_data):
    task = load(shared_data, "sst2", "sst2", max_train=100, max_eval=50)
    assert (len(task.train), len(task.test)) == (100, 50)
