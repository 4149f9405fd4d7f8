import numpy as np
import pytest

from seedtune.data.encoding import continuations, encode, tokenise
from seedtune.data.examples import Example, Task
from seedtune.errors import DataError

SENTENCE = "the film was great and the actors were great"


def choice(*examples, answers=(" terrible", " great"), max_tokens=100) -> Task:
    return Task("films", "choice", answers, ("0", "1"), examples, examples, max_tokens)


def text(*examples, max_tokens=100, ends=True) -> Task:
    return Task("stories", "text", (), (), examples, examples, max_tokens, ends=ends)


def review(body=SENTENCE, head="", tail=" It was", label=1) -> Example:
    return Example(head, body, tail, " great", label)


def encoded(task, tokenizer, kind="causal", window=0):
    return encode(task, task.train, tokenizer, kind, window)


def test_an_example_that_fits_is_the_tokenised_prompt(bpe):
    result = encoded(choice(review()), bpe)
    assert result.examples[0].prompt.tolist() == bpe(SENTENCE + " It was")["input_ids"]
    assert result.examples[0].prompt.dtype == np.int64 and result.num_truncated == 0
    assert result.examples[0].answer_at == len(result.examples[0].prompt)


@pytest.mark.parametrize("size", range(6, 14))
def test_only_the_end_of_the_body_is_cut(bpe, size):
    head, tail = bpe("the story: ")["input_ids"][:-1], bpe(" It was")["input_ids"]
    size += len(head) + len(tail)
    long = review(SENTENCE * 3, head="the story:")
    result = encoded(choice(long, review(), max_tokens=size), bpe)
    prompt = result.examples[0].prompt.tolist()
    assert len(prompt) == size and prompt[-len(tail) :] == tail
    assert prompt[: -len(tail)] == bpe("the story:" + SENTENCE * 3)["input_ids"][: size - len(tail)]


def test_truncated_examples_are_counted(bpe):
    assert (
        encoded(choice(review(SENTENCE * 9), review("short"), review(SENTENCE * 9), max_tokens=30), bpe).num_truncated
        == 2
    )


def test_the_window_of_the_model_is_a_limit_too(bpe):
    assert len(encoded(choice(review(SENTENCE * 9)), bpe, window=20).examples[0].prompt) == 20


def test_a_window_smaller_than_the_question_is_an_error(bpe):
    tail = len(bpe(" It was")["input_ids"])
    with pytest.raises(DataError) as error:
        encoded(choice(review(), max_tokens=tail - 1), bpe)
    assert str(error.value) == (
        f"example 0 of task 'films': its prompt without the part that may be cut takes {tail} tokens, but the window "
        f"leaves {tail - 1}: raise task.max_tokens or shorten the template"
    )


def test_long_answers_leave_their_room_free(bpe):
    task = choice(review(SENTENCE * 9), answers=(" terrible", " magnificent"), max_tokens=40)
    result = encoded(task, bpe)
    assert len(result.examples[0].prompt) == 40 - (max(map(len, result.answers)) - 1)


def test_answers_with_the_same_first_token_are_named(bpe):
    token = bpe(" great")["input_ids"][0]
    with pytest.raises(DataError) as error:
        encoded(choice(review(), answers=(" great", " great!")), bpe)
    assert str(error.value) == (
        f"answers ' great' and ' great!' of task 'films' begin with the same token 'Ġgreat' ({token}): choose words "
        f"that differ from the start"
    )


def test_an_empty_answer_and_an_empty_prompt_are_errors(bpe):
    with pytest.raises(DataError, match=r"^answer '' of task 'films' has no tokens: choose another word$"):
        encoded(choice(review(), answers=("", " great")), bpe)
    with pytest.raises(DataError, match=r"^example 1 of task 'films' has an empty prompt: leave it out$"):
        encoded(choice(review(), review("", tail="")), bpe)


def test_sentencepiece_answers_are_tokens_of_a_continuation(llama_like):
    alone, after = tokenise(llama_like, ["Yes"])[0], continuations(llama_like, ["Yes", " great"])
    assert llama_like.convert_ids_to_tokens(alone) == ["▁Yes"]
    assert [llama_like.convert_ids_to_tokens(ids) for ids in after] == [["Yes"], ["▁great"]]


def test_a_beginning_of_text_token_is_kept_and_counted(llama_like):
    result = encoded(choice(review("the film " * 9, tail=" great"), max_tokens=8), llama_like)
    prompt = result.examples[0].prompt
    assert len(prompt) == 8 and prompt[0] == llama_like.bos_token_id
    assert llama_like.convert_ids_to_tokens(prompt[-1:].tolist()) == ["▁great"]


# Masked models and classifiers


@pytest.mark.parametrize(("head", "tail"), [("", " it was {mask} ."), ("{mask} news : ", "")])
def test_the_mask_token_is_found_wherever_the_template_puts_it(wordpiece, head, tail):
    task = choice(review("the film " * 20, head, tail), answers=("terrible", "great"), max_tokens=16)
    example = encoded(task, wordpiece, "masked").examples[0]
    assert len(example.prompt) == 16 and example.prompt[example.answer_at] == wordpiece.mask_token_id
    assert example.prompt[0] == wordpiece.cls_token_id and example.prompt[-1] == wordpiece.sep_token_id


def test_a_masked_model_needs_one_mask_and_answers_of_one_token(wordpiece, bpe):
    with pytest.raises(DataError) as error:
        encoded(choice(review()), wordpiece, "masked")
    assert str(error.value).startswith(
        "a masked model needs exactly one {mask} in the template; the prompt was 'the film"
    )
    with pytest.raises(DataError) as error:
        encoded(choice(review(tail=" {mask}"), answers=("great", "filma")), wordpiece, "masked")
    assert str(error.value) == (
        "answer 'filma' of task 'films' is 2 tokens, but a masked model fills in one: choose a word that is a single "
        "token"
    )
    with pytest.raises(DataError, match=r"^answer 'smile' of task 'films' is unknown to the tokenizer: choose another"):
        encoded(choice(review(tail=" {mask}"), answers=("great", "smile")), wordpiece, "masked")
    with pytest.raises(DataError, match=r"^the tokenizer has no mask token, so its model is not a masked one: choose"):
        encoded(choice(review(tail=" {mask}")), bpe, "masked")


def test_a_classifier_gets_text_and_labels_only(wordpiece):
    result = encoded(choice(review("the film", tail="")), wordpiece, "classifier")
    assert result.answers == () and result.examples[0].label == 1
    assert wordpiece.decode(result.examples[0].prompt) == "[CLS] the film [SEP]"


# Text tasks


def test_an_answer_is_followed_by_end_of_text_where_the_task_says_so(bpe):
    example = Example("", "the film", "\n", "was great", None)
    expected = bpe("was great")["input_ids"]
    assert encoded(text(example), bpe).examples[0].answer.tolist() == [*expected, bpe.eos_token_id]
    assert encoded(text(example, ends=False), bpe).examples[0].answer.tolist() == expected


def test_prompt_and_answer_share_the_window(bpe):
    body, answer = SENTENCE * 9, " it was a long story" * 9
    both = encoded(text(Example("the", body, " It was", answer, None), max_tokens=60), bpe)
    assert (len(both.examples[0].prompt), len(both.examples[0].answer), both.num_truncated) == (30, 30, 1)
    short_answer = encoded(text(Example("the", body, " It was", " great", None), max_tokens=60), bpe).examples[0]
    assert len(short_answer.prompt) + len(short_answer.answer) == 60 and short_answer.answer[-1] == bpe.eos_token_id
    short_prompt = encoded(text(Example("the", "", "", answer * 2, None), max_tokens=60), bpe).examples[0]
    assert len(short_prompt.answer) == 59 and short_prompt.answer[-1] != bpe.eos_token_id


def test_a_text_tasks_overlong_question_keeps_its_end(bpe):
    example = Example(SENTENCE * 9, SENTENCE, SENTENCE * 9 + " It was", " great", None)
    prompt = encoded(text(example, max_tokens=20), bpe).examples[0].prompt.tolist()
    assert prompt == bpe(example.prompt)["input_ids"][-len(prompt) :]


def test_an_example_with_nothing_to_be_learned_is_an_error(bpe):
    with pytest.raises(DataError) as error:
        encoded(text(Example("", "", "", "a", None), ends=False), bpe)
    assert str(error.value) == (
        "example 0 of task 'stories' has nothing to be learned: its answer 'a' has 1 tokens within the window; leave "
        "it out or raise task.max_tokens"
    )


def test_only_a_causal_model_writes_text(wordpiece):
    with pytest.raises(DataError) as error:
        encoded(text(Example("", "the", "", " film", None)), wordpiece, "classifier")
    assert str(error.value) == (
        "task 'stories' is to write text, which a classifier model cannot: choose model.kind = 'causal'"
    )


def test_padding_never_widens_the_vocabulary(bpe, wordpiece):
    assert encoded(choice(review()), bpe).pad_token == bpe.eos_token_id
    result = encoded(choice(review(tail=""), answers=("terrible", "great")), wordpiece, "classifier")
    assert result.pad_token == wordpiece.pad_token_id


@pytest.mark.parametrize("max_tokens", [40, 120])
def test_in_evaluation_a_prompt_does_not_depend_on_its_answer(bpe, max_tokens):
    """Else the length of the context would tell how long the answer is."""
    body, answers = SENTENCE * 9, (" great", " it was a long story" * 9, " terrible story")
    task = text(*(Example("the", body, " It was", answer, None) for answer in answers), max_tokens=max_tokens)
    judged = encode(task, task.test, bpe, "causal", 0, range(3)).examples
    assert len({tuple(example.prompt) for example in judged}) == 1
    assert len(judged[0].prompt) == max(max_tokens - 50, max_tokens // 2)
    trained = encode(task, task.train, bpe, "causal", 0, {1}).examples
    assert [len(e.prompt) == len(judged[0].prompt) for e in trained] == [False, True, False]
    assert all(len(e.prompt) + len(e.answer) <= max_tokens for e in (*judged, *trained))
