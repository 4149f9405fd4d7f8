"""One suffix of several times the rows: what is repeated, what is handed on each time, and what is refused."""

from functools import partial

import pytest
import torch
from tiny_models import CAUSAL, IDS, MASK, gaussian, tiny_module
from torch.nn.functional import linear

from seedtune.errors import ModelError
from seedtune.models import answer_head
from seedtune.models.answer_head import AnswerHead, Selection, answering_at
from seedtune.models.batched_forward import batched_suffix, trial_call
from seedtune.models.blocks import cut_before


@pytest.mark.parametrize("family", [*CAUSAL, "bert", "roberta", "distilbert", "bert_classifier"])
@pytest.mark.parametrize("num_sequences", [1, 2])
def test_at_equal_weights_all_directions_are_alike(family, num_sequences):
    """Without perturbation each part is what the suffix alone gives, and nothing is written."""
    module = tiny_module(family).requires_grad_(False)
    cut, ids, mask = cut_before(module, 1), IDS[:num_sequences], MASK[:num_sequences]
    call = partial(module, input_ids=ids, attention_mask=mask)
    kept = cut.prefix(call)
    expected = cut.suffix(call, kept)[0]
    for _ in range(2):
        found = batched_suffix(cut)(lambda: call()[0], kept, 3)
        assert len(found) == 3
        for part in found:
            torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-6)
    assert all("forward" not in vars(child) for child in module.modules())


def test_tables_that_all_sequences_share_are_not_repeated():
    cut = cut_before(tiny_module("llama"), 1)
    rotary, hidden = (leaves for _, leaves in cut.prefix(trial_call(cut.module, 1)).outputs[1:])
    assert [part.shape[0] for part in rotary] == [1, 1] and hidden.shape[0] == 1
    assert batched_suffix(cut).has_rows == (True, False, False, True)


def test_a_call_that_runs_the_model_on_something_else_each_time():
    module = tiny_module("llama")
    cut, inputs = cut_before(module, 1), [IDS, IDS]
    kept = cut.prefix(lambda: module(input_ids=IDS, attention_mask=MASK))
    inputs = iter([IDS, IDS + 1])
    with pytest.raises(ModelError) as caught:
        batched_suffix(cut)(lambda: module(input_ids=next(inputs), attention_mask=MASK), kept, 2)
    assert str(caught.value) == "a call ran the model more than once or on other inputs each time: let it run it once"
    with pytest.raises(ModelError, match=r"the model's argument 'input_ids' differs"):
        batched_suffix(cut)(lambda: module(input_ids=IDS + 1, attention_mask=MASK), kept, 2)
    assert all("forward" not in vars(child) for child in module.modules())


class Growing(torch.nn.Module):
    """Keeps one table more for each sequence."""

    def forward(self, input_ids):
        return tuple(torch.zeros(1) for _ in input_ids)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.table = torch.nn.Embedding(32, 6)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(2))
        self.growing = Growing()

    def forward(self, input_ids, attention_mask):
        self.growing(input_ids)
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return (hidden,)


def test_activations_whose_form_depends_on_the_batch():
    with pytest.raises(ModelError, match=r"^what Model keeps before layer 1 differs in form from batch to batch$"):
        batched_suffix(cut_before(Model(), 1))


@pytest.mark.parametrize("candidates", [None, torch.tensor([7, 31, 8])])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_head_selects_the_same_positions_in_each_direction(candidates, has_bias):
    with torch.random.fork_rng(devices=[]):
        head = AnswerHead(6, 32, bias=has_bias).requires_grad_(False)
    hidden = gaussian("hidden", (3 * 2, 4, 6))
    rows, columns = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2])
    with answering_at(Selection(rows, columns, candidates)), answer_head.directions(3):
        found = head(hidden)
    whole = linear(hidden, head.weight, head.bias).view(3, 2, 4, 32)[:, rows, columns]
    expected = whole if candidates is None else whole[:, :, candidates]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
