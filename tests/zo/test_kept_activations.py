"""Frozen layers are computed once a sequence, and a batch's losses do not tell where their outputs came from."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, as_loaded, gaussian, tiny_module, with_values

from seedtune.data.batches import Batch
from seedtune.data.encoding import Encoded, EncodedSet
from seedtune.errors import ModelError, RunStoreError
from seedtune.models.batched_forward import batched_forward
from seedtune.models.blocks import cut_before
from seedtune.models.encoder import EncoderWithHead
from seedtune.models.evaluation import evaluate
from seedtune.models.frozen import compute_frozen, find_frozen, handing_on
from seedtune.models.load import Tuned
from seedtune.models.objective import answer_logits, example_losses, loss, scores
from seedtune.space import space_of
from seedtune.zo.activation_store import ActivationStore
from seedtune.zo.batched import each_at
from seedtune.zo.kept_activations import KeptActivations
from seedtune.zo.meter import Meter, shape_of
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber

NUM_LAYERS = 4
BEHIND = {
    "llama": "model.norm.weight", "qwen2": "model.norm.weight", "qwen3": "model.norm.weight",
    "gemma2": "model.norm.weight", "opt": "model.decoder.final_layer_norm.weight", "gpt2": "transformer.ln_f.weight",
    "bert": "cls.predictions.transform.dense.weight", "roberta": "lm_head.dense.weight",
    "distilbert": "vocab_transform.weight", "bert_classifier": "classifier.weight", "encoder": "head.weight",
}  # fmt: skip
MIDDLE = {
    "llama": "model.layers.2.mlp.up_proj.weight", "opt": "model.decoder.layers.2.fc1.weight",
    "gpt2": "transformer.h.2.mlp.c_fc.weight", "bert": "bert.encoder.layer.2.output.dense.weight",
}  # fmt: skip
CASES = [*((family, name, 4) for family, name in BEHIND.items()), *((f, name, 2) for f, name in MIDDLE.items())]
POINTS = [Perturbation(key, mu, Distribution.RADEMACHER) for key in (1, 2) for mu in (0.1, -0.1)]
pytestmark = pytest.mark.usefixtures("one_thread")


def tuned_at(family: str, name: str, dtype: torch.dtype = torch.float32) -> Tuned:
    module = tiny_module(family, NUM_LAYERS).to(dtype)
    module = with_values(EncoderWithHead(module, 2)) if family == "encoder" else module
    return as_loaded(module.requires_grad_(False), family, [name])


def keeping(model: Tuned, memory: int = 2**20, on_disk: bool = False) -> KeptActivations:
    cut = find_frozen(model.module, model.trainable)
    assert cut is not None
    return KeptActivations(model, cut, ActivationStore(memory, on_disk), Meter())


def batch_of_lengths(model: Tuned, lengths: list[int], first: int = 0) -> Batch:
    """Sequences of these lengths, scored at their last token; the i-th begins with token `first` + i + 5."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = (first + row + 5 + 3 * torch.arange(length)) % 31
    ends = torch.tensor(lengths)
    mask = (torch.arange(max(lengths)) < ends[:, None]).long()
    labels = torch.arange(len(lengths)) % 2
    choices = None if model.kind == "classifier" else torch.tensor([7, 8])
    return Batch(ids, mask, torch.arange(len(lengths)), ends - 1, None, choices, labels, len(lengths))


def text_of_lengths(model: Tuned, lengths: list[int]) -> Batch:
    """The same sequences, with two tokens of each to be learned."""
    base = batch_of_lengths(model, lengths)
    rows = base.rows.repeat_interleave(2)
    columns = torch.stack([base.columns - 1, base.columns], 1).flatten()
    return Batch(base.input_ids, base.attention_mask, rows, columns, columns % 5, None, None, len(lengths))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family, name, num_frozen", CASES)
def test_losses_are_those_of_the_whole_model(family, name, num_frozen, dtype):
    model = tuned_at(family, name, dtype)
    kept = keeping(model)
    assert kept.num_layers == num_frozen
    for lengths in ([4, 9, 3, 17], [7]):
        batch = batch_of_lengths(model, lengths)
        found, whole = example_losses(model, kept(batch)), example_losses(model, batch)
        assert torch.allclose(found, whole, atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("family, name, num_frozen", CASES)
def test_outputs_depend_on_the_sequence_alone(family, name, num_frozen):
    """Neither on the batch nor on what was kept before, nor on where it was kept."""
    model = tuned_at(family, name)
    stores = {"memory": (2**20, False), "spilled": (100, True), "none": (0, False)}
    kept = {way: keeping(model, *options) for way, options in stores.items()}
    apart = [batch_of_lengths(model, [length], row) for row, length in enumerate([4, 9, 3, 17])]
    alone = [kept["none"](each).frozen.values for each in apart]
    for way in stores:
        for _ in range(2):
            together = kept[way](batch_of_lengths(model, [4, 9, 3, 17])).frozen.values
            for row, values in enumerate(alone):
                assert torch.equal(together[row, : values.shape[1]], values[0]), way
                assert not together[row, values.shape[1] :].any()
    assert kept["spilled"].store.bytes_on_disk > 0 and len(kept["none"].store) == 0


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_layers_run_once_a_sequence_whatever_is_asked(family, monkeypatch):
    model = tuned_at(family, BEHIND[family])
    kept, batch, calls = keeping(model), batch_of_lengths(model, [4, 9, 3, 17]), []
    for layer in kept.cut.layers:
        kind = type(layer).__mro__[1]
        run = kind.forward
        monkeypatch.setattr(kind, "forward", lambda *given, run=run, **more: calls.append(1) or run(*given, **more))
    kept(batch)
    first = len(calls)
    assert first > 0
    for _ in range(3):
        loss(model, kept(batch))
        with Perturber(model.module, space_of(model.module, model.trainable)).at(POINTS[0]):
            loss(model, kept(batch))
    assert len(calls) == first


def test_expected_sequences_fill_a_group_and_are_not_computed_again():
    model = tuned_at("llama", BEHIND["llama"])
    kept, batches = keeping(model), [batch_of_lengths(model, [4, 5, 6], first) for first in (0, 3)]
    assert kept.expect(batches) == 6 * 16 * 4, "one position of 16 float32 numbers each"
    kept(batches[0])
    spent = kept.savings.flops_spent
    assert len(kept.store) == kept.savings.num_sequences == 6
    found = kept(batches[1])
    assert kept.savings.flops_spent == spent and found.frozen.num_new_flops == 0


def test_sequences_expected_apart_do_not_pay_for_each_other():
    model = tuned_at("llama", BEHIND["llama"])
    kept, batches = keeping(model), [batch_of_lengths(model, [4, 5, 6], first) for first in (0, 3)]
    for batch in batches:
        kept.expect([batch])
    kept(batches[0])
    assert len(kept.store) == 3 and kept(batches[1]).frozen.num_new_flops > 0


def test_operations_are_counted_as_made():
    model = tuned_at("llama", BEHIND["llama"])
    kept, batch = keeping(model), batch_of_lengths(model, [4, 9, 3, 17])
    tried = kept.savings.flops_spent
    first, second = kept(batch), kept(batch)
    assert first.frozen.num_new_flops == kept.savings.flops_spent - tried > 0 == second.frozen.num_new_flops
    replaced = kept.savings.flops_replaced
    for _ in range(5):
        loss(model, second)
    assert kept.savings.flops_replaced - replaced == 5 * second.frozen.num_flops > 0
    assert shape_of(second).num_frozen == 4 and shape_of(batch).num_frozen == 0


def test_a_batch_shrinks_to_its_scored_positions_behind_the_last_layer():
    model = tuned_at("llama", BEHIND["llama"])
    kept = keeping(model)
    choice, text = kept(batch_of_lengths(model, [4, 9])), kept(text_of_lengths(model, [4, 9]))
    assert choice.input_ids.shape == (2, 1) and choice.columns.tolist() == [0, 0]
    assert text.input_ids.shape == (2, 2) and text.columns.tolist() == [0, 1, 0, 1]
    assert torch.allclose(loss(model, text), loss(model, text_of_lengths(model, [4, 9])), atol=1e-5)
    whole = keeping(tuned_at("llama", MIDDLE["llama"]))
    assert whole(batch_of_lengths(model, [4, 9])).input_ids.shape == (2, 9)


def test_an_all_masked_free_position_is_always_there():
    """Lengths at and around multiples of the step, and at the window, which leaves no room for padding."""
    model = replace(tuned_at("llama", BEHIND["llama"]), window=40)
    kept = keeping(model)
    for length in (7, 8, 9, 39, 40):
        batch = batch_of_lengths(model, [length])
        assert torch.allclose(answer_logits(model, kept(batch)), answer_logits(model, batch), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_perturbed_points_see_the_kept_outputs_alone_and_together(family):
    model = tuned_at(family, MIDDLE[family])
    kept, perturber = keeping(model), Perturber(model.module, space_of(model.module, model.trainable))
    batch = batch_of_lengths(model, [4, 9, 3])
    ready, found, whole = kept(batch), [], []
    for point in POINTS:
        with perturber.at(point):
            found.append(loss(model, ready))
            whole.append(loss(model, batch))
    with each_at(perturber, POINTS):
        together = batched_forward(model.module, partial(loss, model, ready), len(POINTS))
    assert torch.allclose(torch.stack(found), torch.stack(whole), atol=1e-5)
    assert torch.allclose(torch.stack(together), torch.stack(found), atol=1e-5)
    assert len(set(torch.stack(found).tolist())) == len(POINTS)


@pytest.mark.parametrize("k", [2, 3])
def test_a_cut_behind_frozen_layers_begins_with_what_they_gave(k):
    model = tuned_at("llama", MIDDLE["llama"])
    ready, cut = keeping(model)(batch_of_lengths(model, [4, 9, 3])), cut_before(model.module, k)
    call = partial(loss, model, ready)
    assert torch.equal(cut.suffix(call, cut.prefix(call)), call())


def test_gradients_of_tuned_tensors_pass_by_the_frozen_layers():
    model = tuned_at("llama", MIDDLE["llama"])
    kept, batch = keeping(model), batch_of_lengths(model, [4, 9, 3])
    (parameter,) = model.parameters().values()
    parameter.requires_grad_(True)
    found, whole = (torch.autograd.grad(loss(model, given), parameter)[0] for given in (kept(batch), batch))
    assert torch.allclose(found, whole, atol=1e-5) and found.any()


def test_an_evaluation_is_the_same_with_kept_outputs():
    model = tuned_at("llama", BEHIND["llama"])
    prompts = [np.arange(5, 5 + n) for n in (3, 9, 4, 12)]
    answers = (np.array([7]), np.array([8]))
    encoded = EncodedSet(
        tuple(Encoded(p, np.zeros(0, np.int64), i % 2, len(p)) for i, p in enumerate(prompts)), answers, "causal", 0, 0
    )
    whole, found = evaluate(model, encoded), evaluate(model, encoded, prepare=keeping(model))
    assert found.confusion == whole.confusion and found.loss == pytest.approx(whole.loss, abs=1e-5)


def test_a_module_keeps_its_form():
    model = tuned_at("llama", BEHIND["llama"])
    before = [(name, type(child).__name__) for name, child in model.module.named_modules()]
    batch = batch_of_lengths(model, [4, 9])
    plain = scores(model, batch)
    ready = keeping(model)(batch)
    assert [(name, type(child).__name__) for name, child in model.module.named_modules()] == before
    assert torch.equal(scores(model, batch), plain), "a batch without kept outputs computes as ever"
    twin = copy.deepcopy(model.module)
    for parameter in twin.parameters():
        parameter.zero_()
    with handing_on(ready):
        assert torch.equal(model.module.model.layers[-1](torch.zeros(2, 1, 16)), ready.frozen.values)
    assert not twin.model.layers[0](torch.zeros(2, 1, 16), position_embeddings=(torch.ones(1, 1, 8),) * 2).any()


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_nothing_is_frozen_where_the_first_layer_or_the_embedding_is_tuned(family):
    module = tiny_module(family, NUM_LAYERS)
    everything = [name for name, _ in module.named_parameters()]
    assert find_frozen(module, everything) is None and find_frozen(module, []) is None
    embedding = next(name for name in everything if "embed" in name or "wte" in name)
    assert find_frozen(module, [embedding]) is None


def test_layers_that_give_more_than_hidden_states_are_not_kept():
    model = tuned_at("llama", BEHIND["llama"])
    kind = type(model.module.model.layers[-1])

    class Two(kind):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs), gaussian("more", (1,))

    model.module.model.layers[-1].__class__ = Two
    cut = cut_before(tiny_module("llama", NUM_LAYERS), 4)
    with pytest.raises(ModelError, match="LlamaForCausalLM return more than one tensor of hidden states"):
        one = type(cut)(model.module, 4, tuple(model.module.model.layers), *list(vars(cut).values())[3:])
        compute_frozen(one, partial(model.module, input_ids=torch.ones(1, 3, dtype=torch.int64)))


# The store


def value(size: int, fill: float = 1.0) -> torch.Tensor:
    return torch.full((size,), fill, dtype=torch.bfloat16)


def test_what_exceeds_the_memory_goes_to_disk_and_comes_back(tmp_path):
    store = ActivationStore(100, True, tmp_path)
    for key in range(5):
        store.put(bytes([key]), value(30, key))
    assert (store.bytes_in_memory, store.bytes_on_disk, len(store)) == (60, 240, 5)
    for key in (4, 0, 2, 3, 1):
        assert torch.equal(store.get(bytes([key])), value(30, key))
    assert store.get(b"other") is None and b"other" not in store
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing stays behind"


def test_a_key_is_kept_once_and_what_is_kept_is_a_copy():
    store, given = ActivationStore(100, False), value(10)
    store.put(b"key", given)
    store.put(b"key", value(10, 2.0))
    given.zero_()
    assert torch.equal(store.get(b"key"), value(10)) and len(store) == 1


def test_without_a_disk_the_rest_is_not_kept():
    store = ActivationStore(30, False)
    store.put(b"first", value(10))
    store.put(b"second", value(10))
    assert b"first" in store and store.get(b"second") is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    store = ActivationStore(0, True, tmp_path / "nowhere")
    with pytest.raises(RunStoreError, match=r"cannot be kept in .*nowhere after 0 MB: No such file or directory: free"):
        store.put(b"key", value(10))


def test_a_full_disk_is_said():
    store = ActivationStore(0, True)
    store.put(b"key", value(10))
    with open("/dev/full", "wb", buffering=0) as full:
        store._file = full
        with pytest.raises(RunStoreError, match="No space left on device: free some disk space, give more memory with"):
            store.put(b"more", value(10))


def test_what_is_expected_can_be_computed_ahead():
    model, told = tuned_at("llama", BEHIND["llama"]), []
    kept, batches = keeping(model), [batch_of_lengths(model, [4, 5, 20], first) for first in (0, 3)]
    for batch in batches:
        kept.expect([batch])
    assert kept.num_expected == 6
    spent = kept.compute_expected(told.append)
    assert sum(told) == len(kept.store) == 6 and kept.num_expected == 0 and spent > 0
    assert [kept(batch).frozen.num_new_flops for batch in batches] == [0, 0]


def test_nothing_is_computed_ahead_that_cannot_be_kept():
    model = tuned_at("llama", BEHIND["llama"])
    kept, batch = keeping(model, memory=0), batch_of_lengths(model, [4, 5])
    kept.expect([batch])
    tried = kept.savings.num_sequences
    kept.compute_expected()
    assert kept.savings.num_sequences == tried and kept.num_expected == 2
