"""A whole step's points in one forward: the scalars, costs and runs of one by one, the frozen prefix computed once."""

import dataclasses

import numpy as np
import pytest
from tiny_runs import MACHINE, run_thrice

from seedtune.assembly import assemble
from seedtune.errors import ConfigError
from seedtune.fed import whole_steps
from seedtune.fed.client import local_round
from seedtune.fed.evaluations import BatchedWhole, Evaluations
from seedtune.fed.messages import Order
from seedtune.models.blocks import Cut
from seedtune.zo import noise

LORA = {"adapter": "lora", "lora_rank": 2, "lora_targets": ["q_proj", "v_proj"]}
MODELS = {
    "all": {},
    "lora": LORA,
    "bfloat16": {"dtype": "bfloat16"},
    "behind a frozen layer": {"trainable": ["model.layers.1.*"]},
    "last norm": {"trainable": ["model.norm.weight"]},
}


@pytest.fixture
def whole_recipe(tiny_recipe):
    """Makes a recipe of whole steps."""

    def made(evaluations="auto", **over):
        local = {"num_directions": 3, "perturbation_scale": 1e-2, "evaluations": evaluations, **over.pop("local", {})}
        return tiny_recipe(local=local, **over)

    return made


def site_of(recipe):
    return assemble(recipe, MACHINE).site


def reply_of(site):
    return local_round(site, Order(0, 1, site.replica.digest, 1e-2))


@pytest.mark.parametrize("estimator", ["two-point", "one-sided"])
@pytest.mark.parametrize("model", MODELS)
def test_scalars_and_costs_are_those_of_one_by_one(whole_recipe, model, estimator):
    """In float32 two losses of about 5 differ by 1e-6 of that at most, their difference over 2 mu by 5e-4; in bfloat16
    by a logit's last of 8 bits. A product that all points share, as of rotary tables, is counted once a forward."""
    alone, batched = (
        site_of(whole_recipe(evaluations, model=MODELS[model], local={"estimator": estimator}))
        for evaluations in ("one-by-one", "batched")
    )
    assert alone.evaluations.batched is None and isinstance(batched.evaluations.batched, BatchedWhole)
    one, other = reply_of(alone), reply_of(batched)
    atol = 2.0 if model == "bfloat16" else 1e-3
    assert np.isfinite(one.scalars).all()
    np.testing.assert_allclose(other.scalars, one.scalars, rtol=0, atol=atol * (2 if estimator == "one-sided" else 1))
    assert abs(other.loss - one.loss) < (2e-2 if model == "bfloat16" else 1e-5)
    assert other.num_forwards == one.num_forwards and other.num_skipped == 0
    assert 0.98 * one.num_flops <= other.num_flops <= one.num_flops


def test_groups_of_as_many_points_as_fit_are_counted_alike(whole_recipe):
    site = site_of(whole_recipe("batched", model=LORA))
    batch = site.batch(1, 5)
    size = batch.input_ids.numel()
    replies = [
        reply_of(dataclasses.replace(site, batch=lambda client, key: batch, evaluations=evaluations))
        for evaluations in (site.evaluations, Evaluations(site.evaluations.batched, 4 * size + 1, ""))
    ]
    assert replies[0].num_forwards == replies[1].num_forwards
    np.testing.assert_allclose(replies[1].scalars, replies[0].scalars, rtol=0, atol=1e-3)


@pytest.mark.parametrize("estimator, num_points", [("two-point", 6), ("one-sided", 4)])
def test_frozen_layers_run_where_a_batch_is_made_and_not_at_its_points(
    whole_recipe, monkeypatch, estimator, num_points
):
    settings = MODELS["behind a frozen layer"]
    site = site_of(whole_recipe("batched", model=settings, local={"estimator": estimator}))
    prefixes, points, plain, batched = [], [], Cut.prefix, whole_steps.evaluated_whole
    monkeypatch.setattr(Cut, "prefix", lambda cut, call: (prefixes.append(cut.k), plain(cut, call))[1])
    monkeypatch.setattr(
        whole_steps, "evaluated_whole", lambda *given: (points.append(len(given[2])), batched(*given))[1]
    )
    for _ in range(2):
        reply_of(site)
    steps = site.recipe.federation.local_steps
    assert prefixes and set(prefixes) == {1} and points == [num_points] * 2 * steps
    made = len(prefixes)
    reply_of(site)
    assert len(prefixes) == made, "kept"


def test_both_sides_of_a_direction_come_from_one_generation(whole_recipe, monkeypatch):
    """Linear weights and norms; a look-up makes its rows for each side."""
    site = site_of(whole_recipe("batched"))

    def refused(*given):
        raise AssertionError("perturb was called for one side")

    monkeypatch.setattr(noise, "perturb", refused)
    assert reply_of(site).num_skipped == 0


@pytest.mark.parametrize(
    "model, num, note",
    [
        (LORA, 1, "up to 2 in one forward of at most 512 tokens, one by one where 4 have more "
                  "(1.8% of what runs is tuned)"),
        ({}, 1, "one by one (100% of what runs is tuned, and fewer than 4 points save nothing then)"),
        ({}, 2, "up to 4 in one forward of at most 512 tokens, one by one where 4 have more "
                "(100.0% of what runs is tuned)"),
        ({"trainable": ["model.norm.weight"]}, 4, "up to 8 in one forward of at most 512 tokens, one by one where 4 "
                                                  "have more (100.0% of what runs is tuned)"),
    ],
)  # fmt: skip
def test_what_auto_decides(whole_recipe, model, num, note):
    site = site_of(whole_recipe(model=model, local={"num_directions": num}))
    assert site.evaluations.note == f"evaluations: {note}"
    assert (site.evaluations.batched is None) == note.startswith("one by one")


def test_first_order_steps_have_one_evaluation(tiny_recipe):
    recipe = tiny_recipe(local={"order": "first"}, federation={"upload": "weights", "keys": "own"})
    assert site_of(recipe).evaluations.note == "evaluations: one by one (a step has one)"


def test_runs_repeat_and_resume_to_the_same_digest(whole_recipe, tmp_path):
    recipe = whole_recipe(model=LORA, federation={"local_steps": 2})
    first, again, resumed = run_thrice(recipe, tmp_path)
    assert first["state_digest"] == again["state_digest"] == resumed["state_digest"]
    assert first["evaluations"] == resumed["evaluations"] and "in one forward" in first["evaluations"]


def test_the_setting_of_earlier_versions_is_an_unknown_key(tiny_recipe):
    with pytest.raises(ConfigError, match=r"suffixes.*\(in \[split\]\)"):
        tiny_recipe(split={"suffixes": "auto"})
