"""Which directions share a forward, what the run says of it, and that scalars, costs and runs are the same so."""

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny_runs import MACHINE, NOTHING, run_thrice

from seedtune.assembly import assemble
from seedtune.config import Recipe
from seedtune.errors import ModelError
from seedtune.experiment import run
from seedtune.fed import evaluations
from seedtune.fed.client import local_round
from seedtune.fed.evaluations import Evaluations, evaluations_of
from seedtune.fed.messages import Order
from seedtune.models.batched_forward import BatchedSuffix
from seedtune.models.blocks import cut_before
from seedtune.space import space_of
from seedtune.zo.meter import Shape
from seedtune.zo.perturb import Perturber

READINGS = {
    "nested": {"num_prefix_directions": 2, "num_suffix_directions": 4, "baseline": "leave-one-out"},
    "clean-prefix": {"num_prefix_directions": 2, "num_suffix_directions": 4, "reading": "clean-prefix"},
}
LORA = {"adapter": "lora", "lora_rank": 2, "lora_targets": ["q_proj", "v_proj"]}
MODELS = {"all": {}, "lora": LORA, "bfloat16": {"dtype": "bfloat16"}, "8bit": LORA | {"quantisation": "8bit"}}
every_reading = pytest.mark.parametrize("reading", READINGS)


@pytest.fixture
def split_recipe(tiny_recipe):
    """Makes a recipe of split steps."""

    def made(split, evaluations="auto", **over):
        local = {"estimator": "split", "perturbation_scale": 1e-2, "evaluations": evaluations, **over.pop("local", {})}
        return tiny_recipe(split=split, local=local, **over)

    return made


def reply_of(recipe):
    site = assemble(recipe, MACHINE).site
    return local_round(site, Order(0, 1, site.replica.digest, 1e-2))


# The rule


@pytest.mark.parametrize(
    "most_tokens, tokens, most",
    [
        (512, (1, 32), 16),
        (512, (4, 32), 4),
        (512, (1, 129), 1),
        (256, (2, 32), 4),
        (256, (65, 1), 1),
        (0, (9, 9), None),
    ],
)
def test_as_many_directions_as_tokens_allow(most_tokens, tokens, most):
    decided = Evaluations(object(), most_tokens, "")
    assert decided.most(Shape(tokens, 2, 1, 1)) == most
    assert dataclasses.replace(decided, batched=None).most(Shape(tokens, 2, 1, 1)) == 1


@pytest.mark.parametrize(
    "model, split, evaluations, note",
    [
        ({}, {"num_suffix_directions": 1}, "auto", "one by one (a prefix has one)"),
        (LORA, {}, "one-by-one", "one by one (as the recipe says)"),
        (
            {}, {"num_suffix_directions": 3}, "auto",
            "one by one (100% of block 2 is tuned, and fewer than 4 points save nothing then)",
        ),
        ({}, {}, "auto", "up to 4 in one forward of at most 512 tokens, one by one where 4 have more "
                         "(100.0% of block 2 is tuned)"),
        (
            LORA, {"num_suffix_directions": 2}, "auto",
            "up to 2 in one forward of at most 512 tokens, one by one where 4 have more "
            "(2.8% of block 2 is tuned)",
        ),
        ({}, {}, "batched", "4 in one forward (as the recipe says)"),
    ],
)  # fmt: skip
def test_what_is_decided_is_said(split_recipe, model, split, evaluations, note):
    site = assemble(split_recipe({"num_suffix_directions": 4, **split}, evaluations, model=model), MACHINE).site
    assert site.evaluations.note == f"evaluations: {note}"
    assert (site.evaluations.batched is None) == note.startswith("one by one")


def test_the_decision_is_told_in_the_summary_and_not_on_the_screen(split_recipe, tiny_recipe, tmp_path):
    heard = []
    recipe = split_recipe({"num_suffix_directions": 4}, federation={"num_rounds": 1})
    listen = lambda *news: heard.append(news[0])  # noqa: E731
    summary = run(recipe, MACHINE, tmp_path / "split", listen, say=heard.append)
    assert heard == [0, 1] and summary["evaluations"].startswith("evaluations: up to 4 in")
    alone = run(tiny_recipe(), MACHINE, tmp_path / "whole", NOTHING, say=heard.append)
    assert alone["evaluations"].startswith("evaluations: one by one (") and len(heard) == 2


# What cannot be batched


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 36).reshape(6, 6))

    def forward(self, hidden):
        return torch.tanh(torch.addmm(hidden.view(-1, 6), hidden.view(-1, 6), self.weight)).view_as(hidden)


class Contracted(Layer):
    def forward(self, hidden):
        return torch.tanh(torch.einsum("ij,btj->ibt", self.weight, hidden).permute(1, 2, 0))


class Mixed(Layer):
    """Each sequence is seen by the others."""

    def forward(self, hidden):
        return super().forward(hidden) - 0.1 * hidden.mean(0, keepdim=True)


class Model(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.table = torch.nn.Embedding(32, 6)
        self.table.weight.data.copy_(torch.linspace(-2, 2, 192).reshape(32, 6).sin())
        self.layers = torch.nn.ModuleList(layer() for _ in range(3))

    def forward(self, input_ids, attention_mask):
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return (hidden,)


def decided(layer, way):
    module = Model(layer).requires_grad_(False)
    perturber = Perturber(module, space_of(module, [name for name, _ in module.named_parameters()]))
    recipe = Recipe(local={"estimator": "split", "evaluations": way}, split={"num_suffix_directions": 4})
    return evaluations_of(recipe, module, cut_before(module, 1), perturber)


@pytest.mark.parametrize(
    "layer, reason",
    [
        (
            Contracted, "einsum was given a tuned tensor with [6, 4, 6]: not rows of 2 points, each of which has "
            "weights of its own",
        ),
        (Mixed, "two points in one forward gave other results than one by one, in a trial on 12 tokens"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_batched_goes_one_by_one_or_is_refused(layer, reason):
    assert decided(layer, "auto").note == f"evaluations: one by one ({reason})"
    assert decided(layer, "auto").batched is None
    with pytest.raises(ModelError) as caught:
        decided(layer, "batched")
    assert str(caught.value) == (
        f"local.evaluations = 'batched': Model cannot run several points in one forward: {reason}: set it to "
        "'auto' or 'one-by-one'"
    )
    assert decided(Layer, "batched").batched is not None


# The same results


@every_reading
@pytest.mark.parametrize("difference", ["central", "one-sided"])
@pytest.mark.parametrize("model", MODELS)
def test_scalars_and_costs_are_those_of_one_by_one(split_recipe, reading, difference, model):
    """In float32 two losses of about 5 differ by 1e-6 of that, their difference over 2 mu by 5e-4; in bfloat16 by a
    logit's last of 8 bits, 1e-2."""
    if "quantisation" in MODELS[model] and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    replies = [
        reply_of(split_recipe(READINGS[reading] | {"difference": difference}, way, model=MODELS[model]))
        for way in ("one-by-one", "batched", "auto")
    ]
    alone = replies[0]
    for reply in replies[1:]:
        np.testing.assert_allclose(reply.scalars, alone.scalars, rtol=0, atol=2.0 if model == "bfloat16" else 1e-3)
        assert abs(reply.loss - alone.loss) < (2e-2 if model == "bfloat16" else 1e-5)
        counts = "num_forwards", "num_flops", "num_prefix_flops", "num_skipped"
        assert [getattr(reply, name) for name in counts] == [getattr(alone, name) for name in counts]


def test_groups_of_as_many_directions_as_fit(split_recipe, monkeypatch):
    """Three and one."""
    site = assemble(split_recipe(READINGS["nested"]), MACHINE).site
    sizes, plain = [], BatchedSuffix.__call__
    monkeypatch.setattr(BatchedSuffix, "__call__", lambda *given: (sizes.append(given[-1]), plain(*given))[1])
    monkeypatch.setattr(evaluations, "LEAST", 1)
    batch = site.batch(1, 5)
    limited = [dataclasses.replace(site.evaluations, most_tokens=most * batch.input_ids.numel() + 1) for most in (1, 3)]
    order = Order(0, 1, site.replica.digest, 1e-2)
    alone, grouped = (
        local_round(dataclasses.replace(site, batch=lambda client, key: batch, evaluations=each), order)
        for each in limited
    )
    assert sizes == [3] * 4 and (grouped.num_forwards, grouped.num_flops) == (alone.num_forwards, alone.num_flops)
    np.testing.assert_allclose(grouped.scalars, alone.scalars, rtol=0, atol=1e-3)


def test_a_loss_that_is_not_finite_skips_the_step(split_recipe):
    site = assemble(split_recipe(READINGS["nested"], "batched"), MACHINE).site
    broken = dataclasses.replace(site, loss=lambda batch: site.loss(batch) * float("nan"))
    assert local_round(broken, Order(0, 1, site.replica.digest, 1e-2)).num_skipped == 1


@every_reading
def test_runs_repeat_and_resume_to_the_same_digest(split_recipe, tmp_path, reading):
    recipe = split_recipe(READINGS[reading], model=LORA, federation={"local_steps": 2})
    first, again, resumed = run_thrice(recipe, tmp_path)
    assert first["state_digest"] == again["state_digest"] == resumed["state_digest"]
    assert first["evaluations"] == resumed["evaluations"] and "in one forward" in first["evaluations"]
