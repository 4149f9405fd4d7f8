"""Choices of each row's own: in a user's table, as tokens, and as scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from seedtune.data.batches import batch_of
from seedtune.data.encoding import encode
from seedtune.data.examples import Example, Task
from seedtune.data.row_choices import find_choice
from seedtune.data.tasks import load_task
from seedtune.errors import DataError
from seedtune.models.evaluation import evaluate, predict_probabilities
from seedtune.models.load import load
from seedtune.models.objective import example_losses, loss, scores
from seedtune.sections import ModelConfig, TaskConfig

ROWS = [
    {"q": "the sky is", "options": ["blue", "a green brick"], "answer": "blue"},
    {"q": "grass is", "options": ["red", "blue", "green like a leaf"], "answer": "2"},
    {"q": "the sea is", "options": {"text": ["red", "blue"], "label": ["A", "B"]}, "answer": "B"},
    {"q": "ice is", "options": '["red", "green"]', "answer": ""},
]
TOO_FEW = "different texts: it needs two or more, each another text; mend the row or leave it out"
SETTINGS = {"name": "custom", "template": "{q}", "label_column": "answer", "choices_column": "options"}


def load_rows(folder, rows, **over):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(TaskConfig(**{**SETTINGS, "path": str(path), **over}), 0, is_undivided=True)


@pytest.fixture
def task(tmp_path):
    return load_rows(tmp_path, ROWS)


@pytest.fixture
def model(tiny_model):
    return load(ModelConfig(name=str(tiny_model)), None, lambda name, shape: torch.zeros(shape))


def test_a_table_may_list_each_rows_choices(task):
    by_prompt = {example.prompt: example for example in task.train}
    assert by_prompt["the sky is"].choices == (" blue", " a green brick") and by_prompt["the sky is"].label == 0
    assert by_prompt["grass is"].label == 2 and by_prompt["the sea is"].answer == " blue"
    assert [row.reason for row in task.left_out] == ["without a label"] and len(by_prompt) == 3


def test_scores_are_mean_log_likelihoods_of_each_rows_own_choices(task, model):
    """Against one forward for each sequence alone."""
    encoded = encode(task, task.train, model.tokenizer, "causal", model.window)
    batch = batch_of(encoded, range(len(encoded)))
    found = scores(model, batch)
    for row, example in zip(found, encoded.examples, strict=True):
        for i, choice in enumerate(example.choices):
            ids = torch.from_numpy(np.concatenate([example.prompt, choice]))[None]
            logits = log_softmax(model.module(input_ids=ids).logits[0].float(), -1)
            own = logits[torch.arange(len(example.prompt) - 1, ids.shape[1] - 1), ids[0, len(example.prompt) :]]
            torch.testing.assert_close(row[i], own.mean(), rtol=1e-4, atol=1e-5)
        assert (row[len(example.choices) :] == -torch.inf).all()
    labels = torch.tensor([example.label for example in encoded.examples])
    torch.testing.assert_close(loss(model, batch), cross_entropy(found, labels))
    torch.testing.assert_close(example_losses(model, batch).mean(), loss(model, batch))


def test_evaluation_and_probabilities_are_over_each_rows_own(task, model):
    encoded = encode(task, task.test, model.tokenizer, "causal", model.window)
    found, probabilities = evaluate(model, encoded, 2), predict_probabilities(model, encoded, 2)
    counts = [len(example.choices) for example in encoded.examples]
    assert probabilities.shape == (3, 3) and all(
        given < count for given, count in zip(found.predictions, counts, strict=True)
    )
    assert all((row[count:] == 0).all() for row, count in zip(probabilities, counts, strict=True))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert found.predictions == tuple(probabilities.argmax(1)) and found.confusion is None
    assert found.accuracy == np.mean([e.label == p for e, p in zip(encoded.examples, found.predictions, strict=True)])


def test_another_accepted_choice_is_right_too(task, model):
    encoded = encode(task, task.test, model.tokenizer, "causal", model.window)
    all_right = tuple(replace(e, accepted=tuple(range(len(e.choices)))) for e in encoded.examples)
    assert evaluate(model, replace(encoded, examples=all_right)).accuracy == 1.0


def test_a_gradient_through_absent_choices_is_finite(task, model):
    encoded = encode(task, task.train, model.tokenizer, "causal", model.window)
    weight = model.module.get_input_embeddings().weight.requires_grad_(True)
    loss(model, batch_of(encoded, range(len(encoded)))).backward()
    assert weight.grad.isfinite().all() and weight.grad.abs().max() > 0
    weight.requires_grad_(False).grad = None


@pytest.mark.parametrize(
    "row, message",
    [
        ({"options": "red"}, "its options must be a list of choices, or JSON of one, but is 'red'"),
        ({"options": ["red"]}, f"its options has 1 choices, 1 of them {TOO_FEW}"),
        ({"options": ["red", "red"]}, f"its options has 2 choices, 1 of them {TOO_FEW}"),
        ({"answer": "7"}, "its label '7' is none of its choices: give a choice's text, or its number from 0 to 1"),
        ({"options": ["1", "0"], "answer": "1"}, "its label '1' is the text of one choice and the number of another: "
                                                 "write labels as texts that are no numbers of choices"),
    ],
)  # fmt: skip
def test_an_unclear_row_is_refused(tmp_path, row, message):
    with pytest.raises(DataError) as error:
        load_rows(tmp_path, [ROWS[0] | row])
    assert str(error.value) == f"task 'custom', data row 1: {message}"


def test_named_choices_are_named_in_the_message():
    with pytest.raises(DataError, match=r"number from 0 to 1, or one of the names A, B$"):
        find_choice("C", ("red", "blue"), ("A", "B"), "row 1")


@pytest.mark.parametrize(
    "over, message",
    [
        ({"kind": "text", "answer": "{answer}"},
         "task.choices_column = 'options' cannot stand beside task.kind = 'text': leave one out"),
        ({"answers": {"a": "b", "c": "d"}},
         "task.choices_column = 'options' cannot stand beside task.answers: leave one out"),
        ({"choices_column": "none"}, "task.choices_column is 'none', but task 'custom', data row 1 has the columns q, "
                                     "options, answer"),
    ],
)  # fmt: skip
def test_settings_that_contradict_are_refused(tmp_path, over, message):
    with pytest.raises(DataError) as error:
        load_rows(tmp_path, ROWS[:1], **over)
    assert str(error.value) == message


def test_only_causal_models_score_them(tmp_path, bpe):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(**SETTINGS, path=str(path)), 0, "classifier")
    assert str(error.value) == (
        "task.choices_column = 'options' needs a causal model, which scores whole texts, but model.kind is 'classifier'"
    )


def own(prompt, *choices):
    return Example("", prompt, "", choices[0], 0, choices=choices)


def test_the_longest_choice_has_room_in_the_window(bpe):
    examples = (own("a b c d e f g h i j", " x", " one two three four"),)
    task = Task("mine", "choice", (), (), examples, examples, 24)
    (encoded,) = encode(task, examples, bpe, "causal").examples
    assert len(encoded.prompt) + max(map(len, encoded.choices)) - 1 <= 24
    with pytest.raises(DataError, match=r"raise task\.max_tokens or shorten the template"):
        encode(replace(task, max_tokens=4), examples, bpe, "causal")


def test_cut_left_takes_the_start_of_a_prompt(bpe):
    example = Example("head: ", "one two three four", " tail", "yes", 0)
    task = Task("mine", "choice", ("yes", "no"), ("yes", "no"), (example,), (example,), 12)
    whole = encode(replace(task, max_tokens=500), (example,), bpe, "causal").examples[0].prompt
    by_body = encode(task, (example,), bpe, "causal").examples[0].prompt
    left = encode(replace(task, cut="left"), (example,), bpe, "causal")
    assert left.examples[0].prompt.tolist() == whole[-len(by_body) :].tolist() != by_body.tolist()
    assert left.num_truncated == 1


def test_cut_left_refuses_what_it_would_break(bpe, wordpiece):
    own_choices = (own("a", " one two three four five six seven"),)
    task = Task("mine", "choice", (), (), own_choices, own_choices, 4, cut="left")
    with pytest.raises(DataError) as error:
        encode(task, own_choices, bpe, "causal")
    assert str(error.value) == (
        "example 0 of task 'mine': its answers alone fill the window: raise task.max_tokens or leave it out"
    )
    masked = (Example("{mask}: ", "the film was great and the story was great", "", "great", 0),)
    task = Task("mine", "choice", ("great", "terrible"), ("a", "b"), masked, masked, 6, cut="left")
    with pytest.raises(DataError) as error:
        encode(task, masked, wordpiece, "masked")
    assert str(error.value) == (
        "task.cut = 'left' would take the mask of task 'mine', which stands first: use task.cut = 'body'"
    )
