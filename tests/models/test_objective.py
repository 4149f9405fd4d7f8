import pytest
import torch
from tiny_models import CAUSAL, MASKED, batch_of, gaussian
from torch.nn.functional import cross_entropy, log_softmax

from seedtune.errors import ModelError
from seedtune.models.answer_head import AnswerHead
from seedtune.models.load import load
from seedtune.models.objective import answer_logits, loss, scores, token_loss_sum
from seedtune.sections import ModelConfig

SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 4], [9, 6, 13, 12]]
PLACES = {"rows": [0, 1, 2], "columns": [4, 2, 3]}


def loaded(folder, **options):
    return load(ModelConfig(name=folder, **options), 2, gaussian)


def full_logits(model, batch):
    """Logits at the scored positions, picked from those of the whole output, each sequence run alone and unpadded."""
    picked = []
    for row, column in zip(batch.rows.tolist(), batch.columns.tolist(), strict=True):
        length = int(batch.attention_mask[row].sum())
        picked.append(model.module(input_ids=batch.input_ids[row : row + 1, :length]).logits[0, column])
    return torch.stack(picked).float()


@pytest.mark.parametrize("family", CAUSAL + MASKED)
@pytest.mark.parametrize("candidates", [None, [7, 8], [30, 1, 7]])
def test_answer_logits_are_those_of_the_whole_forward(tiny, family, candidates):
    model = loaded(tiny(family))
    batch = batch_of(SEQUENCES, **PLACES, candidates=candidates, labels=[0, 1, 0])
    expected = full_logits(model, batch)
    if candidates is not None:
        expected = expected[:, candidates]
    torch.testing.assert_close(answer_logits(model, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CAUSAL + MASKED)
def test_the_head_never_sees_more_than_the_scored_positions(tiny, family, monkeypatch):
    model = loaded(tiny(family))
    head = model.module.get_output_embeddings()
    assert type(head) is AnswerHead
    shapes = []
    handle = head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    batch = batch_of(SEQUENCES, **PLACES, candidates=[7, 8], labels=[0, 1, 0])
    scores(model, batch)
    handle.remove()
    assert shapes == [(1, 3, 2)]


def test_a_tied_head_stays_tied(tiny):
    model = loaded(tiny("llama"))
    head, table = model.module.get_output_embeddings(), model.module.get_input_embeddings()
    assert head.weight is table.weight
    assert "lm_head.weight" not in model.trainable


def test_a_forward_wrapped_on_the_instance_is_the_one_that_runs(tiny):
    model = loaded(tiny("llama"))
    batch = batch_of(SEQUENCES, **PLACES, candidates=[7, 8], labels=[0, 1, 0])
    head = model.module.get_output_embeddings()
    own = head.forward
    plain = scores(model, batch)
    head.forward = lambda hidden: 2 * own(hidden)
    torch.testing.assert_close(scores(model, batch), 2 * plain)
    del head.forward
    torch.testing.assert_close(scores(model, batch), plain)


def test_the_selection_ends_with_the_call_even_if_it_fails(tiny):
    model = loaded(tiny("llama"))
    with pytest.raises(IndexError):
        answer_logits(model, batch_of(SEQUENCES, rows=[7], columns=[0]))
    assert model.module(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 32)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_single_token_choices_are_scored_by_their_logits(tiny, family):
    model = loaded(tiny(family))
    batch = batch_of(SEQUENCES, **PLACES, candidates=[7, 8], labels=[0, 1, 0])
    expected = full_logits(model, batch)[:, [7, 8]]
    torch.testing.assert_close(scores(model, batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(model, batch), cross_entropy(expected, batch.labels), rtol=1e-4, atol=1e-5)


def test_longer_answers_are_scored_by_their_mean_log_likelihood(tiny):
    model = loaded(tiny("llama"))
    prompt, answers = [5, 6], [[7], [8, 9, 10]]
    sequences = [prompt + answer for answer in answers]
    batch = batch_of(
        sequences, rows=[0, 1, 1, 1], columns=[1, 1, 2, 3], targets=[7, 8, 9, 10], labels=[1], num_examples=1
    )
    expected = []
    for sequence, answer in zip(sequences, answers, strict=True):
        log_probabilities = log_softmax(model.module(input_ids=torch.tensor([sequence])).logits[0, 1:-1], -1)
        expected.append(log_probabilities[range(len(answer)), answer].mean())
    expected = torch.stack(expected)[None]
    torch.testing.assert_close(scores(model, batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(model, batch), cross_entropy(expected, torch.tensor([1])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_text_is_scored_by_its_tokens(tiny, family):
    model = loaded(tiny(family))
    batch = batch_of(SEQUENCES, rows=[0, 0, 1], columns=[2, 3, 1], targets=[8, 9, 4])
    expected = cross_entropy(full_logits(model, batch), batch.targets, reduction="none")
    torch.testing.assert_close(loss(model, batch), expected.mean(), rtol=1e-4, atol=1e-5)
    total, count = token_loss_sum(model, batch)
    assert count == 3
    assert total == pytest.approx(expected.sum().item(), rel=1e-4)


def test_a_classifier_is_scored_by_its_head(tiny):
    model = loaded(tiny("encoder"))
    batch = batch_of(SEQUENCES, **PLACES, labels=[0, 1, 0])
    alone = [model.module.encoder(input_ids=torch.tensor([s])).last_hidden_state[0].mean(0) for s in SEQUENCES]
    expected = model.module.head(torch.stack(alone))
    torch.testing.assert_close(scores(model, batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(model, batch), cross_entropy(expected, batch.labels), rtol=1e-4, atol=1e-5)


def test_a_sixteen_bit_model_is_scored_in_float32(tiny):
    model = loaded(tiny("llama"), dtype="bfloat16")
    batch = batch_of(SEQUENCES, **PLACES, candidates=[7, 8], labels=[0, 1, 0])
    assert scores(model, batch).dtype == loss(model, batch).dtype == torch.float32


def test_a_graph_is_built_only_where_gradients_are_asked_for(tiny):
    model = loaded(tiny("llama"))
    batch = batch_of(SEQUENCES, **PLACES, candidates=[7, 8], labels=[0, 1, 0])
    assert not loss(model, batch).requires_grad
    for parameter in model.parameters().values():
        parameter.requires_grad_(True)
    loss(model, batch).backward()
    assert all(p.grad is not None for p in model.parameters().values())


def test_scores_of_a_text_are_refused(tiny):
    with pytest.raises(ModelError) as caught:
        scores(loaded(tiny("llama")), batch_of(SEQUENCES, rows=[0], columns=[1], targets=[7]))
    assert str(caught.value) == (
        "scores of a text batch were asked for: only choice tasks have scores; use token_loss_sum"
    )


@pytest.mark.parametrize(("family", "kind"), [("bert", "masked"), ("encoder", "classifier")])
def test_texts_need_a_causal_model(tiny, family, kind):
    with pytest.raises(ModelError) as caught:
        loss(loaded(tiny(family)), batch_of(SEQUENCES, rows=[0], columns=[1], targets=[7]))
    assert str(caught.value) == (
        f"a {kind} model was given a batch of texts or of answers longer than one token: only a causal model can score "
        "these; use one, or choose answers that are single tokens"
    )


def test_token_losses_need_targets(tiny):
    with pytest.raises(ModelError) as caught:
        token_loss_sum(loaded(tiny("llama")), batch_of(SEQUENCES, **PLACES, candidates=[7, 8], labels=[0, 1, 0]))
    assert str(caught.value) == ("a batch without target tokens has no loss per token: it is scored by its candidates")
