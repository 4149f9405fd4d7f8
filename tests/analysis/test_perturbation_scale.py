"""Errors of projected gradients where they are known in closed form, and on the tiny model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_subjects import experiment_of

from seedtune.analysis.double import in_double, losses_at
from seedtune.analysis.finding import in_silence
from seedtune.analysis.perturbation_scale import Differences, ScaleOptions, differences, perturbation_scale, rows_of
from seedtune.analysis.subject import ProbedLoss, batches_of, direction, probed_loss
from seedtune.errors import ModelError
from seedtune.models.load import Tuned
from seedtune.space import digest, space_of
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber

SIGNS = Distribution.RADEMACHER


class Polynomial(torch.nn.Module):
    """F = b . x + x . x / 2 + c sum x^3 / 6, in float32 inside, as models compute their losses."""

    def __init__(self, cubic: float):
        super().__init__()
        self.x = torch.nn.Parameter(torch.linspace(-1, 1, 40))
        self.cubic = cubic

    def forward(self):
        x = self.x + 0
        total = (torch.linspace(0, 1, 40, dtype=x.dtype) * x + x * x / 2 + self.cubic * x**3 / 6).float()
        return total.sum()


def probed_of(cubic: float) -> ProbedLoss:
    module = Polynomial(cubic).requires_grad_(False)
    model = Tuned(module, None, "classifier", ("x",), "polynomial")
    perturber = Perturber(module, space_of(module, ["x"]))
    one = (SimpleNamespace(num_examples=1),)
    return ProbedLoss(model, perturber, one, objective=lambda model, batch: model.module())


@pytest.mark.parametrize("distribution", list(Distribution))
def test_truncation_is_the_third_derivative_and_falls_with_the_square(distribution):
    probed, scales, keys = probed_of(6.0), (0.01, 0.1, 1.0), range(1, 7)
    found = differences(probed, keys, scales, distribution, in_silence, "float32")
    for m, key in enumerate(keys):
        z, x = direction(probed.perturber, key, distribution)["x"].double(), probed.model.module.x.double()
        assert found.exact[m] == pytest.approx(float((torch.linspace(0, 1, 40).double() + x + 3 * x * x) @ z), rel=1e-6)
        for mu in scales:
            rounded = float(np.float32(mu))
            error = found.in_double[mu][m] - found.exact[m]
            assert error == pytest.approx(rounded**2 * float((z**3).sum()), rel=1e-6, abs=1e-9)
    rows = {row["mu"]: row for row in rows_of(found)}
    assert rows[0.1]["truncation"] == pytest.approx(100 * rows[0.01]["truncation"], rel=1e-4)
    assert rows[0.01]["rounding"] > rows[0.1]["rounding"] > rows[1.0]["rounding"]


def test_a_quadratic_has_no_truncation_and_rounding_alone():
    rows = rows_of(differences(probed_of(0.0), range(1, 7), (1e-3, 1e-2, 1e-1), SIGNS, in_silence, "float32"))
    assert max(row["truncation"] for row in rows) < 1e-9
    assert rows[0]["error"] > rows[1]["error"] > rows[2]["error"] == pytest.approx(rows[2]["rounding"], rel=1e-3)
    assert rows[2]["bias"].value == pytest.approx(0, abs=1e-5) and rows[2]["variance"] == pytest.approx(1, abs=1e-4)


def test_errors_are_shares_of_the_exact_derivatives():
    exact = np.array([3.0, -4.0])
    (row,) = rows_of(Differences(exact, {1.0: 1.5 * exact}, {1.0: 2 * exact}))
    assert row["truncation"] == row["rounding"] == 0.5 and row["error"] == 1.0 and row["variance"] == pytest.approx(4)
    assert row["bias"].value == pytest.approx(1)
    with pytest.raises(ModelError, match="the gradient is zero, or not finite"):
        rows_of(Differences(0 * exact, {1.0: exact}, {1.0: exact}))


def test_the_twin_in_double_is_the_same_loss_without_float32_inside(tiny_recipe):
    experiment = experiment_of(tiny_recipe)
    probed = probed_loss(experiment, batches_of(experiment, 4, 2, 5))
    twin = in_double(probed)
    total = twin.total()
    assert total.dtype == torch.float64 and float(total) == pytest.approx(probed.at([None])[0], rel=1e-6)
    far = losses_at(twin, 3, [0.05, -0.05], SIGNS)
    assert far == pytest.approx(probed.at([Perturbation(3, mu, SIGNS) for mu in (0.05, -0.05)]), rel=1e-5)
    close = losses_at(twin, 3, [1e-6, -1e-6], SIGNS)
    width = 2 * float(np.float32(1e-6))
    gradient, z = twin.gradient(), direction(probed.perturber, 3, SIGNS)
    slope = sum(float((gradient[name] * z[name]).sum()) for name in gradient)
    assert (close[0] - close[1]) / width == pytest.approx(slope, rel=1e-7)  # float32 inside would leave some 1e-2


def test_the_tiny_model_is_best_perturbed_between_rounding_and_truncation(tiny_recipe):
    experiment = experiment_of(tiny_recipe)
    options = ScaleOptions(4, 6, (1e-5, 1e-3, 1e-2, 1.0), ("float32", "bfloat16"))
    found = perturbation_scale(experiment, options)
    rows = {row["mu"]: row for row in found.tables["float32"]}
    assert found.values["best scale, float32"] in (1e-3, 1e-2)
    assert rows[1e-5]["rounding"] > 10 * rows[1e-3]["rounding"] and rows[1.0]["truncation"] > rows[1e-2]["truncation"]
    assert found.values["its error, bfloat16"] > found.values["its error, float32"]
    assert digest(experiment.site.replica.weights) == experiment.site.replica.digest
    again = perturbation_scale(experiment_of(tiny_recipe), options)
    assert again.as_json() == found.as_json()
