import csv

import pytest
import torch
from tiny_models import batch_of, gaussian
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from seedtune.errors import ModelError
from seedtune.models import heads
from seedtune.models.load import load
from seedtune.models.objective import scores
from seedtune.sections import ModelConfig

NUM_EXAMPLES, WIDTH = 24, 5


def loaded(folder, choices=2, **options):
    return load(ModelConfig(name=folder, **options), choices, gaussian)


def message(call, *args):
    with pytest.raises(ModelError) as caught:
        call(*args)
    return str(caught.value)


def labelled(sequences, labels):
    zeros = [0] * len(sequences)
    return batch_of(sequences, rows=list(range(len(sequences))), columns=zeros, labels=labels)


@pytest.fixture(scope="module")
def encoder(tiny):
    return loaded(tiny("encoder"), choices=3)


# Descriptions of the labels


def test_rows_point_to_the_descriptions(encoder):
    texts = ["good film", "bad", "the plot was dull"]
    values = heads.from_labels(encoder, texts)
    tokens = encoder.tokenizer(texts, return_tensors="pt", padding=True)
    embeddings = encoder.module.features(tokens.input_ids, tokens.attention_mask)
    assert torch.allclose(cosine_similarity(values["weight"], embeddings), torch.ones(3))
    assert torch.allclose(values["weight"].norm(dim=1), heads.LOGIT_SCALE / embeddings.norm(dim=1).mean().repeat(3))
    assert torch.equal(values["bias"], torch.zeros(3))


def test_a_start_changes_nothing_until_it_is_installed(encoder):
    before = encoder.module.head.weight.clone()
    values = heads.from_labels(encoder, ["good", "bad", "dull"])
    assert torch.equal(encoder.module.head.weight, before)
    heads.install(encoder, values)
    assert torch.equal(encoder.module.head.weight, values["weight"])
    heads.install(encoder, {"weight": before, "bias": torch.zeros(3)})


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_description_is_its_own_class(tiny, adapter):
    model = loaded(tiny("encoder"), choices=3, adapter=adapter)
    texts = ["good film", "bad plot", "it was a film"]
    heads.install(model, heads.from_labels(model, texts))
    batch = labelled([model.tokenizer(text).input_ids for text in texts], [0, 1, 2])
    assert scores(model, batch).argmax(1).tolist() == [0, 1, 2]


def test_one_description_a_label(encoder):
    assert message(heads.from_labels, encoder, ["good", "bad"]) == (
        "model.label_descriptions: 2 texts for 3 labels; give one a label, in the task's order, or set model.head to "
        "'fresh' or 'probe'"
    )
    assert message(heads.from_labels, encoder, ["good", "bad", " "]) == (
        "model.label_descriptions: text 2 is empty; describe the label in a few words"
    )


def test_a_checkpoints_own_head_is_kept(tiny):
    model = loaded(tiny("bert_classifier"))
    expected = "model 'tiny-bert_classifier' has no fresh classification head to set: its own is kept as it is"
    assert message(heads.from_labels, model, ["good", "bad"]) == expected
    assert message(heads.from_probe, model, []) == expected
    assert message(heads.install, model, {}) == expected


# The probe


@pytest.fixture
def regression():
    features = gaussian("features", (NUM_EXAMPLES, WIDTH)).double()
    noise = 0.5 * gaussian("noise", (NUM_EXAMPLES, 3)).double()
    labels = (features[:, :3] + noise).argmax(1)
    return features, one_hot(labels, 3).double(), labels


def direct_ridge(features, targets, strength):
    """Predictions function of ridge regression with an unpenalised intercept, from the normal equations."""
    centre, base = features.mean(0), targets.mean(0)
    gram = (features - centre).T @ (features - centre) + strength * torch.eye(features.shape[1]).double()
    weight = torch.linalg.solve(gram, (features - centre).T @ (targets - base))
    return lambda rows: base + (rows - centre) @ weight


def test_the_probe_is_the_best_ridge_by_leaving_one_out(regression, monkeypatch):
    features, targets, labels = regression
    mean_square = (torch.linalg.svdvals(features - features.mean(0)) ** 2).mean()
    losses = {}
    for ridge in heads.RIDGES:
        left_out = []
        for i in range(NUM_EXAMPLES):
            rest = torch.arange(NUM_EXAMPLES) != i
            left_out.append(direct_ridge(features[rest], targets[rest], ridge * mean_square)(features[i]))
        for scale in heads.SCALES:
            losses[ridge, scale] = cross_entropy(scale * torch.stack(left_out), labels).item()
    ridge, scale = min(losses, key=losses.get)
    expected = scale * direct_ridge(features, targets, ridge * mean_square)(features)
    weight, bias = heads._ridge(features, targets, labels)
    torch.testing.assert_close(features @ weight.T + bias, expected)


def test_the_probe_separates_what_can_be_separated(encoder):
    sequences = [[5 + i % 3, 6 + i % 3, 8 + i % 5] for i in range(15)]
    batches = [labelled(sequences[i : i + 5], [j % 3 for j in range(i, i + 5)]) for i in (0, 5, 10)]
    before = {name: value.clone() for name, value in encoder.module.head.state_dict().items()}
    heads.install(encoder, heads.from_probe(encoder, batches))
    assert all((scores(encoder, batch).argmax(1) == batch.labels).all() for batch in batches)
    heads.install(encoder, before)


def test_the_probe_is_repeatable_to_the_bit(encoder):
    batches = [labelled([[5, 6], [7, 8], [9, 10], [6, 7]], [0, 1, 2, 0])]
    first, second = heads.from_probe(encoder, batches), heads.from_probe(encoder, batches)
    assert all(torch.equal(first[name], second[name]) for name in ("weight", "bias"))


def test_the_probe_needs_examples_of_every_label(encoder):
    expected = "model.head = 'probe': none of the {} training examples given has label {}; give more batches, or set "
    expected += "model.head to 'labels'"
    assert message(heads.from_probe, encoder, []) == expected.format(0, 0)
    assert message(heads.from_probe, encoder, [labelled([[5], [6]], [0, 2])]) == expected.format(2, 1)


def test_values_of_another_shape_are_refused(encoder):
    values = {"weight": torch.zeros(2, 16), "bias": torch.zeros(2)}
    assert message(heads.install, encoder, values) == (
        "head weight given as (2, 16), but the model's is (3, 16): make it anew"
    )
    assert message(heads.install, encoder, {"weight": torch.zeros(3, 16)}) == (
        "head bias given as None, but the model's is (3,): make it anew"
    )


# A real encoder


def test_descriptions_make_a_real_encoder_a_classifier(shared_data):
    model = loaded(str(shared_data / "models" / "minilm-l6"), choices=4)
    texts = ["This is world news.", "This is sports news.", "This is business news.", "This is technology news."]
    heads.install(model, heads.from_labels(model, texts))
    with open(shared_data / "tasks" / "ag_news" / "test.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:64]
    sentences = [f"{title}. {text}" for _, title, text in rows]
    tokens = model.tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, max_length=48)
    with torch.no_grad():
        logits = model.module(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    correct = sum(int(row[0]) - 1 == best for row, best in zip(rows, logits.argmax(1).tolist(), strict=True))
    assert correct / len(rows) > 0.6  # a quarter by chance, 0.72 over the whole test set
