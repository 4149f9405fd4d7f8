import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny_runs
from small_subjects import experiment_of, whole_hessian

from seedtune.analysis.effective_rank import Curvature, RankOptions, effective_rank, notes_of, plateau
from seedtune.analysis.intervals import Interval, bootstrap, student
from seedtune.analysis.spectrum import Eigenvalue
from seedtune.analysis.subject import batches_of, key_of, probed_loss, refuse_quantised
from seedtune.errors import ConfigError
from seedtune.space import digest
from seedtune.zo import noise

OPTIONS = RankOptions(examples=4, directions=24, eigenvalues=3, starts=4, steps=32, block_steps=24)


@pytest.fixture(scope="module")
def probed(tiny_model, tiny_table):
    """(the experiment, the finding)."""
    experiment = experiment_of(partial(tiny_runs.recipe, tiny_model, tiny_table))
    return experiment, effective_rank(experiment, OPTIONS)


def test_what_is_found_is_that_of_the_whole_hessian(probed):
    experiment, finding = probed
    loss = probed_loss(experiment, batches_of(experiment, 4, 4, key_of(experiment.recipe, "examples")))
    whole = whole_hessian(loss).numpy()
    exact, values = np.linalg.eigvalsh(whole), finding.values
    norm = np.abs(exact).max()
    assert values["trace"].contains(exact.sum()) and values["trace by forwards"].contains(exact.sum())
    assert values["operator norm"].value == pytest.approx(norm, rel=1e-4)
    assert values["effective rank"].contains(exact.sum() / norm)
    assert values["stable rank"].contains((exact**2).sum() / norm**2)
    assert exact.min() * 1.001 <= values["lowest eigenvalue, at most"] < -0.1 * norm
    absolute, rank = (values[f"{name} of |H|, at least"] for name in ("trace", "effective rank"))
    assert absolute.contains(np.abs(exact).sum()) and rank.contains(np.abs(exact).sum() / norm)
    assert values["the same, half the steps"].value < absolute.value and rank.value > values["effective rank"].value
    top = [row["eigenvalue"] for row in finding.tables["eigenvalues of largest magnitude"]]
    assert np.allclose(top, exact[np.argsort(-np.abs(exact))][:3], rtol=1e-3)
    by_layer = finding.tables["by layer"]
    assert [(row["block"], row["parameters"]) for row in by_layer] == [
        ("layer 0", 32), ("layer 1", 512), ("behind the layers", 32),
    ]  # fmt: skip
    inner = np.abs(np.linalg.eigvalsh(whole[32:544, 32:544])).max()
    assert abs(by_layer[1]["largest eigenvalue"]) == pytest.approx(inner, rel=1e-2)


def test_the_trace_of_each_layers_absolute_hessian_is_found_from_below(probed):
    """Against the same random signs' exact part of it, so that what the steps leave out is all there is."""
    experiment, finding = probed
    loss = probed_loss(experiment, batches_of(experiment, 4, 4, key_of(experiment.recipe, "examples")))
    whole, first = whole_hessian(loss).numpy(), 0
    keys = [key_of(experiment.recipe, "quadrature", direction=m) for m in range(4)]
    for row in finding.tables["by layer"]:
        last = first + row["parameters"]
        values, vectors = np.linalg.eigh(whole[first:last, first:last])
        signs = [noise.values(key, 0, len(values), noise.Distribution.RADEMACHER).double().numpy() for key in keys]
        exact = float(np.mean([np.abs(values) @ (vectors.T @ z) ** 2 for z in signs]))
        found, rank = (row[f"{name} of |H|, at least"] for name in ("trace", "effective rank"))
        assert 0.97 * exact < found.value < 1.0001 * exact and found.contains(np.abs(values).sum())
        assert rank.value == pytest.approx(found.value / np.abs(values).max(), rel=1e-2)
        first = last


def test_it_is_repeatable_and_moves_nothing(probed, tiny_recipe):
    experiment, finding = probed
    assert digest(experiment.site.replica.weights) == experiment.site.replica.digest
    again = effective_rank(experiment_of(tiny_recipe), replace(OPTIONS, layers=False))
    assert again.as_json()["values"] == finding.as_json()["values"]
    other = effective_rank(experiment_of(tiny_recipe, run={"seed": 8}), RankOptions(4, 24, 1, (), False, 2, 2))
    assert other.values["trace"] != finding.values["trace"]


def test_its_cost_is_counted_and_json_holds_it_all(probed):
    _, finding = probed
    found = json.loads(json.dumps(finding.as_json(), allow_nan=False))
    assert found["cost"]["forwards"] == 3 * 49 and found["cost"]["gradients"] == 1
    assert found["cost"]["hessian_products"] >= 24 + 9 + 4 * 32 + 32 + 32 + 4 * 24
    assert found["values"]["trace"] == [finding.values["trace"].value, *found["values"]["trace"][1:]]


def test_other_dtypes_are_differentiated_in_float32(tiny_recipe):
    experiment = experiment_of(tiny_recipe, model={"dtype": "bfloat16", "trainable": ["model.norm.weight"]})
    finding = effective_rank(experiment, RankOptions(4, 4, 1, (0.1, 1.0), layers=False, steps=4))
    assert finding.about["dtype"] == "bfloat16" and finding.tables["by layer"] == []
    assert [row["mu"] for row in finding.tables["trace by forwards"]] == [0.1, 1.0]
    assert np.isfinite(finding.values["operator norm"].value)


TOLD = [
    (-1.0, 0.0, "the Hessian is indefinite: it has an eigenvalue of -1 or below"),
    (1.0, -0.5, "the Hessian is indefinite: it has an eigenvalue of -0.5 or below"),
    (1.0, -1e-5, "no negative curvature was found"),
]


@pytest.mark.parametrize(("found", "ritz", "words"), TOLD)
def test_negative_curvature_is_told(found, ritz, words):
    whole = Curvature(Interval(3.0, 1.0, 5.0), Interval(9.0), [Eigenvalue(2.0, 0.0), Eigenvalue(found, 0.0)])
    assert words in notes_of(whole, min(whole.smallest, ritz), RankOptions())[-1]


def test_ranks_of_a_hessian_that_is_zero_are_none():
    flat = Curvature(Interval(0.0, 0.0, 0.0), Interval(0.0), [Eigenvalue(0.0, 0.0)])
    assert flat.effective_rank is None and flat.stable_rank is None


def test_second_differences_are_believed_where_scales_agree():
    exact = np.array([1.0, 2.0])
    found = {0.1: exact + 3, 1.0: exact + 0.1, 10.0: exact, 100.0: exact - 50}
    assert plateau(found) == (10.0, pytest.approx(0.1))
    assert plateau({1.0: exact}) == (1.0, None)
    assert plateau({1.0: exact * np.nan, 2.0: exact, 3.0: exact}) == (3.0, 0.0)


def test_packed_layers_are_refused(probed):
    experiment, _ = probed
    packed = experiment.recipe.model.model_copy(update={"quantisation": "4bit"})
    with pytest.raises(ConfigError, match=r"model\.quantisation = '4bit': packed layers cannot be differentiated"):
        refuse_quantised(replace(experiment, recipe=experiment.recipe.model_copy(update={"model": packed})), "this")


def test_intervals():
    assert student([2.0]) == Interval(2.0) and not student([2.0]).contains(2.0)
    draws = np.random.default_rng(0).normal(size=40)
    found = bootstrap(lambda chosen: float(draws[chosen].mean()), 40, key=1)
    assert found == bootstrap(lambda chosen: float(draws[chosen].mean()), 40, key=1)
    exact = student(draws)
    assert found.low == pytest.approx(exact.low, abs=0.05) and found.high == pytest.approx(exact.high, abs=0.05)
    assert bootstrap(lambda chosen: float("nan"), 4, key=1).low is None
