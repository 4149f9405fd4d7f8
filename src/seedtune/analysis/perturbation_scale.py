"""How wrong the projected gradient is, by perturbation scale and dtype, and where it is best.

For a direction z, g(mu) = [F(theta + mu z) - F(theta - mu z)] / 2 mu stands for a = grad F(theta) . z. Its error is
taken apart by three computations at the same weights: a by autograd and g by forwards in double precision, and g by
forwards in the dtype.

    truncation = g in double - a              grows with mu^2
    rounding   = g in the dtype - g in double  falls with 1 / mu; in 16 bits theta + mu z is rounded too
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..assembly import Experiment, initial_values, install_initial
from ..errors import ModelError
from ..models.load import Tuned, load
from ..space import bound_weights, copy_into, space_of
from ..zo.estimators import MAY_BE_INFINITE
from ..zo.noise import Distribution
from ..zo.perturb import Perturbation, Perturber
from .double import in_double, losses_at
from .finding import Cost, Finding, Tell, in_silence, plain
from .intervals import student
from .subject import ProbedLoss, about, batches_of, direction, dot, key_of, refuse_quantised

SCALES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
DTYPES = ("float32", "bfloat16", "float16")
USABLE = 0.1
"""An error of this share of the projected gradient is small beside its variance, which is all of it."""


@dataclass(frozen=True)
class ScaleOptions:
    """examples: of F. directions: of which errors are the root mean square."""

    examples: int = 8
    directions: int = 6
    scales: tuple[float, ...] = SCALES
    dtypes: tuple[str, ...] = DTYPES


@dataclass(frozen=True)
class Differences:
    """Of M directions. exact: grad F . z in double, float64 [M]. By scale, float64 [M] each: the projected gradient in
    double, and in the dtype."""

    exact: np.ndarray
    in_double: Mapping[float, np.ndarray]
    in_dtype: Mapping[float, np.ndarray]


def perturbation_scale(experiment: Experiment, options: ScaleOptions, tell: Tell = in_silence) -> Finding:
    """Bias, variance, truncation and rounding by scale and dtype; the best scale of each dtype.

    Directions are of the recipe's distribution.

    Cost, a dtype: 2 M forwards a scale in the dtype, as many in double, and one gradient in double. Memory: the model
    in the dtype and in double.

    Raises:
        ConfigError: a quantised base. ModelError: the gradient is zero, or there is none.
    """
    refuse_quantised(experiment, "perturbation-scale")
    recipe, cost = experiment.recipe, Cost()
    keys = [key_of(recipe, "scale", direction=m) for m in range(options.directions)]
    batches = batches_of(experiment, options.examples, recipe.federation.batch_size, key_of(recipe, "examples"))
    values: dict[str, Any] = {}
    tables, notes = {}, list(_NOTES)
    for dtype in options.dtypes:
        probed = ProbedLoss(*_in_dtype(experiment, dtype), batches, cost)
        try:
            found = differences(probed, keys, options.scales, experiment.header.distribution, tell, dtype)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0][:160]
            notes.append(f"{dtype}: the model does not run here: {reason}")
            continue
        rows = rows_of(found)
        values |= _best(rows, dtype)
        tables[dtype] = rows
    chosen = {"examples": sum(b.num_examples for b in batches), "directions": options.directions,
              "distribution": str(experiment.header.distribution)}  # fmt: skip
    return Finding("perturbation-scale", about(experiment) | chosen, values, tables, plain(vars(cost)), notes)


def _in_dtype(experiment: Experiment, dtype: str) -> tuple[Tuned, Perturber]:
    """(the model in `dtype` at the experiment's weights, rounded to nearest; its perturber)."""
    recipe = experiment.recipe
    config = recipe.model.model_copy(update={"dtype": dtype})
    model = load(config, experiment.header.num_choices, initial_values(recipe.run.seed))
    install_initial(model, experiment.header.initial)
    model.module.to(experiment.model.device)
    space = space_of(model.module, model.trainable)
    copy_into(bound_weights(model.module, space), experiment.site.replica.weights)
    return model, Perturber(model.module, space)


def differences(
    probed: ProbedLoss, keys: Sequence[int], scales: Sequence[float], distribution: Distribution, tell: Tell, name: str
) -> Differences:
    """The projected gradients of a loss, in its dtype and in double, and the derivatives that they stand for.

    Raises:
        RuntimeError: an operator that the dtype lacks.
    """
    signed = [side for mu in scales for side in (mu, -mu)]
    widths = 2 * np.asarray(scales, np.float32).astype(np.float64)
    in_dtype, exact, doubled = [], [], []
    for m, key in enumerate(keys):
        tell(f"projected gradients in {name}", m, len(keys))
        in_dtype.append(_slopes(probed.at([Perturbation(key, mu, distribution) for mu in signed]), widths))
    twin = in_double(probed)
    gradient = twin.gradient()
    for m, key in enumerate(keys):
        tell(f"the same without rounding, for {name}", m, len(keys))
        exact.append(dot(gradient, direction(probed.perturber, key, distribution)))
        doubled.append(_slopes(losses_at(twin, key, signed, distribution), widths))
    columns = (dict(zip(scales, np.array(found).T, strict=True)) for found in (doubled, in_dtype))
    return Differences(np.array(exact), *columns)


@MAY_BE_INFINITE
def _slopes(losses: np.ndarray, widths: np.ndarray) -> np.ndarray:
    above, below = losses.reshape(-1, 2).T
    return (above - below) / widths


@MAY_BE_INFINITE
def rows_of(found: Differences) -> list[dict[str, Any]]:
    """A row a scale. Errors are root mean squares over directions, as shares of that of the exact derivatives.

    bias: E[(g - a) a] / E[a^2], by how much the step along the gradient is too long; with its interval.
    variance: of g, relative to that of the exact derivatives.

    Raises:
        ModelError: all exact derivatives are zero.
    """
    exact = found.exact
    size = float(np.sqrt(np.mean(exact**2)))
    if not size > 0:
        raise ModelError("the gradient is zero, or not finite, at these weights: no scale is better than another")
    rows = []
    for mu, g in found.in_dtype.items():
        smooth = found.in_double[mu]
        rows.append({
            "mu": mu, "error": _rms(g - exact) / size, "truncation": _rms(smooth - exact) / size,
            "rounding": _rms(g - smooth) / size, "bias": student((g - exact) * exact / size**2),
            "variance": float(np.mean(g**2)) / size**2,
        })  # fmt: skip
    return rows


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _best(rows: Sequence[Mapping[str, Any]], dtype: str) -> dict[str, Any]:
    """The scale with the smallest error, and those whose error is at most `USABLE`."""
    finite = [row for row in rows if np.isfinite(row["error"])]
    if not finite:
        return {f"best scale, {dtype}": None}
    best = min(finite, key=lambda row: row["error"])
    usable = [row["mu"] for row in finite if row["error"] <= USABLE]
    span = f"{min(usable):g} to {max(usable):g}" if usable else None
    return {f"best scale, {dtype}": best["mu"], f"its error, {dtype}": best["error"],
            f"error at most {USABLE:.0%}, {dtype}": span}  # fmt: skip


_NOTES = (
    "errors are shares of the root mean square of the exact directional derivatives, over the directions tried",
    "truncation: against autograd in float64; rounding: the same difference in the dtype against float64; both at the "
    "weights as the dtype holds them",
    "intervals of the bias: 90 %, Student's t over directions",
    "a scale is the best of those tried; where it is the smallest or the largest of them, try others with --scales",
)
