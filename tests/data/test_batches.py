import numpy as np
import pytest
import torch

from seedtune.data.batches import batch_of, eval_batches
from seedtune.data.encoding import encode
from seedtune.data.examples import Example, Task

BODIES = ("the film", "the film was great and the actors were great", "a story")


def films(answers) -> Task:
    examples = tuple(Example("", body, " It was", answers[i % 2], i % 2) for i, body in enumerate(BODIES))
    return Task("films", "choice", answers, ("0", "1"), examples, examples, 64)


def stories(prompt: str, ends=True) -> Task:
    examples = tuple(Example("", prompt, "", f" {body}", None) for body in BODIES)
    return Task("stories", "text", (), (), examples, examples, 64, ends=ends)


def of(task, tokenizer, kind="causal"):
    return encode(task, task.train, tokenizer, kind)


def scored(batch) -> list[list[int]]:
    """The tokens that stand at the scored positions, by sequence."""
    return [batch.input_ids[row, batch.columns[batch.rows == row]].tolist() for row in batch.rows.unique()]


def assert_right_padded(batch, pad_token):
    lengths = batch.attention_mask.sum(1)
    assert lengths.max() == batch.input_ids.shape[1]
    for ids, mask, length in zip(batch.input_ids, batch.attention_mask, lengths, strict=True):
        assert mask[:length].all() and not mask[length:].any()
        assert (ids[length:] == pad_token).all()


def test_single_token_answers_are_candidates_after_the_last_token(bpe):
    encoded = of(films((" terrible", " great")), bpe)
    batch = batch_of(encoded, [2, 0, 1])
    assert_right_padded(batch, encoded.pad_token)
    assert batch.rows.tolist() == [0, 1, 2] and batch.labels.tolist() == [0, 0, 1] and batch.num_examples == 3
    assert batch.candidates.tolist() == [bpe(w)["input_ids"][0] for w in (" terrible", " great")]
    assert batch.targets is None
    assert scored(batch) == [[encoded.examples[i].prompt[-1]] for i in (2, 0, 1)]


def test_longer_answers_make_a_sequence_each(bpe):
    encoded = of(films((" terrible", " magnificent")), bpe)
    batch = batch_of(encoded, [0, 1])
    assert_right_padded(batch, encoded.pad_token)
    assert batch.input_ids.shape[0] == 4 and batch.candidates is None and batch.labels.tolist() == [0, 1]
    for sequence in range(4):
        prompt, answer = encoded.examples[sequence // 2].prompt, encoded.answers[sequence % 2]
        at = batch.rows == sequence
        assert batch.targets[at].tolist() == answer.tolist()
        assert batch.columns[at].tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
        ids = np.concatenate((prompt, answer[:-1])).tolist()
        assert batch.input_ids[sequence, : len(ids)].tolist() == ids


def test_only_the_answer_of_a_text_is_scored(bpe):
    encoded = of(stories("the story:"), bpe)
    batch = batch_of(encoded, [0, 1, 2])
    assert_right_padded(batch, encoded.pad_token)
    assert batch.labels is None and batch.candidates is None
    for i, example in enumerate(encoded.examples):
        assert batch.targets[batch.rows == i].tolist() == example.answer.tolist()
        assert scored(batch)[i] == [example.prompt[-1], *example.answer[:-1]]


def test_without_a_prompt_every_token_but_the_first_is_scored(bpe):
    encoded = of(stories(""), bpe)
    batch = batch_of(encoded, [1])
    answer = encoded.examples[1].answer
    assert batch.input_ids.tolist() == [answer[:-1].tolist()]
    assert batch.targets.tolist() == answer[1:].tolist() and batch.columns.tolist() == list(range(len(answer) - 1))


def test_a_masked_model_is_scored_at_the_mask(wordpiece):
    examples = (Example("", "the film", " was {mask} .", "great", 1), Example("", "a story", " {mask}", "great", 1))
    task = Task("films", "choice", ("terrible", "great"), ("0", "1"), examples, examples, 32)
    batch = batch_of(of(task, wordpiece, "masked"), [0, 1])
    assert scored(batch) == [[wordpiece.mask_token_id]] * 2
    assert wordpiece.convert_ids_to_tokens(batch.candidates.tolist()) == ["terrible", "great"]


def test_a_classifier_gets_labels_and_no_candidates(wordpiece):
    task = films(("terrible", "great"))
    batch = batch_of(of(task, wordpiece, "classifier"), [0, 1, 2])
    assert batch.candidates is None and batch.targets is None and batch.labels.tolist() == [0, 1, 0]
    assert batch.columns.tolist() == [0, 0, 0]


@pytest.mark.parametrize("answers", [(" terrible", " great"), (" terrible", " magnificent")])
def test_every_tensor_is_int64(bpe, answers):
    batch = batch_of(of(films(answers), bpe), [0, 1])
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6 and all(tensor.dtype == torch.int64 for tensor in tensors)


def test_evaluation_sees_every_example_once_longest_first(bpe):
    encoded = of(films((" terrible", " great")), bpe)
    batches = list(eval_batches(encoded, 2))
    assert [batch.num_examples for batch in batches] == [2, 1]
    lengths = [length for batch in batches for length in batch.attention_mask.sum(1).tolist()]
    assert lengths == sorted((len(e.prompt) for e in encoded.examples), reverse=True)
    again = list(eval_batches(encoded, 2))
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_a_batch_goes_to_a_device_whole(bpe, kind):
    batch = batch_of(of(films((" good", " bad")), bpe, kind), [0, 1])
    there = batch.to(torch.device("meta"))
    assert there.num_examples == 2 and vars(there).keys() == vars(batch).keys()
    for name, tensor in vars(batch).items():
        if isinstance(tensor, torch.Tensor):
            moved = getattr(there, name)
            assert (moved.device.type, moved.shape, moved.dtype) == ("meta", tensor.shape, tensor.dtype), name
            assert getattr(batch.to(tensor.device), name) is tensor
