"""What a run with 'auto' in its recipe measures before its first round, and that it stays with the run."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_runs
import torch
from tiny_runs import MACHINE, NOTHING, StopAfter, run_thrice

from seedtune import auto_start, run_store
from seedtune.assembly import assemble, load_replayed
from seedtune.auto_start import SCALES, is_open, started
from seedtune.errors import ConfigError
from seedtune.experiment import resume, run
from seedtune.fed.auto import first_share
from seedtune.recipe_text import build
from seedtune.space import bound_weights, digest
from seedtune.studies.jobs import key

BOTH = {"learning_rate": "auto", "perturbation_scale": "auto"}
SPLIT = {
    "local": {"learning_rate": "auto", "estimator": "split"},
    "split": {"num_suffix_directions": 3, "difference": "one-sided", "baseline": "leave-one-out"},
}


@pytest.fixture
def recipe(tiny_model, tiny_table):
    def made(**over):
        few = {"partition": {"num_clients": 2}}
        return tiny_runs.recipe(tiny_model, tiny_table, **{"local": BOTH, **few, **over})

    return made


def began(recipe):
    return started(assemble(recipe, MACHINE))


def test_what_was_measured_stands_in_the_recipe_and_nothing_has_moved(recipe):
    before = assemble(recipe(), MACHINE)
    experiment, spent = started(before)
    found = experiment.recipe
    assert is_open(recipe()) and not is_open(found)
    assert found.mu in SCALES and found.first_rate > 0
    assert (found.local.learning_rate, found.local.perturbation_scale) == ("auto", "auto")
    assert experiment.site.recipe is found
    assert digest(experiment.site.replica.weights) == before.site.replica.digest
    assert f"perturbation scale {found.mu:.3g}; learning rate of the first round {found.first_rate:.3g}" in spent.note
    assert spent.num_forwards > 0 and spent.num_flops > spent.num_forwards


def test_what_is_given_is_not_measured(recipe):
    experiment, spent = began(recipe(auto={"learning_rate": 0.5, "perturbation_scale": 2e-3}))
    assert (experiment.recipe.first_rate, experiment.recipe.mu, spent.num_forwards) == (0.5, 2e-3, 0)
    assert began(recipe(local={"learning_rate": 1e-3}))[1].num_forwards == 0


def test_scales_of_16_bits_are_larger(recipe):
    """In float32 rounding is a 65,536th of bfloat16's."""
    fine, coarse = (began(recipe(model={"dtype": dtype}))[0].recipe.mu for dtype in ("float32", "bfloat16"))
    assert coarse > fine


def test_the_scale_is_near_the_best_against_exact_derivatives(recipe):
    """The chosen scale's error is at most three times the least of all scales tried, float32."""
    experiment, _ = began(recipe())
    site = experiment.site
    batches = auto_start._batches(experiment)[: auto_start.SCALE_BATCHES]
    exact = exact_derivatives(experiment, batches)
    errors = {
        scale: np.linalg.norm(auto_start._gradients(site, scale, batches, auto_start._Count()) - exact)
        for scale in SCALES
    }
    assert errors[experiment.recipe.mu] < 3 * min(errors.values())
    assert max(errors.values()) > 30 * min(errors.values()), "or any scale would do"


def exact_derivatives(experiment, batches):
    """Of each batch's loss along each direction, by autograd in float32."""
    from seedtune.analysis.subject import direction
    from seedtune.zo import noise

    site, module = experiment.site, experiment.model.module
    keys = [noise.derive_key(site.header.seed, "auto scale", direction=p) for p in range(auto_start.SCALE_DIRECTIONS)]
    along, found = [direction(site.perturber, key, site.header.distribution) for key in keys], []
    parameters = dict(module.named_parameters())
    for batch in batches:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            gradients = torch.autograd.grad(site.loss(batch), list(parameters.values()), materialize_grads=True)
        of = dict(zip(parameters, gradients, strict=True))
        found += [sum(float((of[name] * part).sum()) for name, part in z.items()) for z in along]
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    return np.array(found)


def constant(experiment):
    """With a loss that the tuned tensors do not change."""
    loss = experiment.site.loss
    return replace(experiment, site=replace(experiment.site, loss=lambda batch: 0 * loss(batch) + 1))


def test_a_loss_that_depends_on_nothing_is_refused(recipe):
    flat = constant(assemble(recipe(), MACHINE))
    with pytest.raises(ConfigError, match="the projected gradients are zero or not finite"):
        started(flat)
    given = constant(assemble(recipe(auto={"perturbation_scale": 1e-3}), MACHINE))
    with pytest.raises(
        ConfigError, match=r"local.learning_rate = 'auto': the projected gradients at the start are zero"
    ):
        started(given)


@pytest.mark.parametrize(
    "over, federation",
    [({"local": BOTH}, {"keys": "own"}), (SPLIT, {"keys": "shared"}), (SPLIT, {"upload": "weights", "local_steps": 2})],
    ids=["whole", "split", "split-weights"],
)
def test_a_run_is_the_same_again_and_resumed_and_replays_to_the_bit(recipe, tiny_model, tmp_path, over, federation):
    settings = recipe(**over, federation=federation)
    whole, again, resumed = run_thrice(settings, tmp_path)
    assert whole["state_digest"] == again["state_digest"] == resumed["state_digest"]
    assert whole["forwards"] == resumed["forwards"]

    folder = tmp_path / "first"
    snapshot = lambda round_: run_store.snapshot_of(folder, round_)  # noqa: E731
    model, space = load_replayed(run_store.trajectory_of(folder), str(tiny_model), None, snapshot)
    assert digest(bound_weights(model.module, space)).hex() == whole["state_digest"]


def test_a_run_keeps_what_it_began_with_and_counts_what_that_took(recipe, tmp_path):
    notes: list[str] = []
    summary = run(recipe(**SPLIT), MACHINE, tmp_path / "run", NOTHING, say=notes.append)
    kept, rows = run_store.recipe_of(tmp_path / "run"), run_store.metrics_of(tmp_path / "run")
    assert any("block 2's" in note for note in notes)
    assert kept.first_rate == rows[1]["learning_rate"] and kept.rate_ratio == pytest.approx(rows[1]["rate_ratio"])
    assert summary["forwards"] == sum(row["forwards"] for row in rows) and rows[0]["forwards"] > 0
    assert summary["flops"] == summary["flops_prefix"] + summary["flops_suffix"] + rows[0]["flops"]
    header = run_store.trajectory_of(tmp_path / "run").header
    assert header.split.rate_ratio == kept.rate_ratio
    ratios = [record.rate_ratio for record in run_store.trajectory_of(tmp_path / "run").records]
    assert ratios == [row["rate_ratio"] for row in rows[1:]] and len(set(ratios)) > 1
    assert key(kept) == key(
        recipe(**SPLIT).model_copy(update={"model": kept.model, "task": kept.task, "run": kept.run})
    )


def test_a_run_stopped_before_its_first_round_measures_anew_and_ends_the_same(recipe, tmp_path):
    settings = recipe()
    whole = run(settings, MACHINE, tmp_path / "whole", NOTHING)
    with pytest.raises(KeyboardInterrupt):
        run(settings, MACHINE, tmp_path / "stopped", StopAfter(0))
    assert resume(tmp_path / "stopped", MACHINE, NOTHING)["state_digest"] == whole["state_digest"]


def test_an_estimate_pays_frozen_layers_of_new_examples_alone(recipe, tmp_path):
    """An estimate takes five forwards of what is behind the frozen layers, and examples that are kept already."""
    last = {"model": {"trainable": ["model.norm.weight"]}, "federation": {"num_rounds": 1}}
    rates = {"auto": {"learning_rate": 1e-2}, "local": {"learning_rate": "auto"}}, {"local": {"learning_rate": 1e-2}}
    measured, plain = (run(recipe(**last, **rate), MACHINE, tmp_path / "run", NOTHING, True) for rate in rates)
    everything = recipe(federation={"num_rounds": 1}, local={"learning_rate": 1e-2})
    whole = run(everything, MACHINE, tmp_path / "run", NOTHING, True)["flops"] / 4
    extra = (measured["flops"] - plain["flops"]) / 2
    assert (measured["forwards"], plain["forwards"]) == (2 * (2 + 5), 2 * 2)
    assert 0 < extra < whole, "five without"


AUTO = {"local": {"learning_rate": "auto"}}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"local": {"learning_rate": "auto", "order": "first"}, "federation": {"upload": "weights"}},
         "local.learning_rate = 'auto' needs local.order = 'zeroth'"),
        ({"local": {"perturbation_scale": "auto", "order": "first"}, "federation": {"upload": "weights"}},
         "local.perturbation_scale = 'auto' needs local.order = 'zeroth'"),
        ({**AUTO, "secure_sum": {"enabled": True}, "federation": {"keys": "shared", "weighting": "equal"}},
         "local.learning_rate = 'auto' needs secure_sum.enabled = false"),
        ({**AUTO, "privacy": {"unit": "client"}}, "local.learning_rate = 'auto' needs privacy.unit = 'none'"),
        ({**AUTO, "personalise": {"policy": "random", "alpha": 1e-5, "alpha_unit": "absolute"}},
         "personalise.alpha_unit = 'absolute' needs local.learning_rate as a number"),
        ({**AUTO, "auto": {"per_client": True},
          "federation": {"keys": "shared", "aggregation": "sign-vote", "weighting": "equal"}},
         "auto.per_client needs another federation.aggregation than 'sign-vote'"),
        ({"local": {"learning_rate": "fast"}}, "local.learning_rate = 'fast': give a number greater than 0"),
        ({"local": {"learning_rate": 0.0}}, "local.learning_rate = 0.0: give a number greater than 0"),
        ({"local": {"learning_rate": 2e6}},
         "local.learning_rate = 2000000.0: give a number greater than 0 and at most 1e+06, or 'auto'"),
        ({"local": {"perturbation_scale": 11}},
         "local.perturbation_scale = 11: give a number greater than 0 and at most 10, or 'auto'"),
        ({"auto": {"safety": 0.0}}, "auto.safety = 0.0: input should be greater than 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(values, message):
    with pytest.raises(ConfigError) as refused:
        build(values)
    assert message in str(refused.value)


def test_the_first_rate_is_a_caution_below_the_estimate():
    one, many = (build({**AUTO, "partition": {"num_clients": count}}) for count in (1, 1000))
    assert first_share(one) < first_share(many) < 0.5 * one.auto.safety + 1e-9
