"""Which learning rates FedMeZO's theorems allow, for constants measured here (arXiv 2402.05926).

With d tuned parameters, N clients, H local steps, T rounds, n directions a step, smoothness L, gradient noise c_g and
effective rank r:

    gamma = (d r + d - 2) / (n (d + 2))      zeta = (d + 2) n^2 / ((d r + d - 2)(d + n - 1))
    Gamma = (d - zeta gamma) / (d gamma)
    eta <= min{ 1 / (3 H L sqrt(c_g d)), N / (3 c_g H L), 1 / H^2 }
    for clients that are alike: eta = (N H)^(1/2) (r T)^(-1/2), mu = (N H)^(1/4) r^(-1/2)

The theorem's constants hold everywhere; what is measured holds at one point. What the paper calls c_g is not defined in
what this project knows of it: the reading here is E|grad F_B|^2 = c_g |grad F|^2 over mini-batches B.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from ..assembly import Experiment, indices_of
from ..config import Recipe
from ..data.keyed import client_batch_indices
from .effective_rank import Curvature, curvature_of
from .finding import Finding, Tell, in_silence, plain
from .gradients import gram_of, noise_ratio
from .hessian import blocks_of, hessian_of
from .intervals import Interval, bootstrap
from .subject import about, batches_of, in_batches, key_of, probed_loss, refuse_quantised
from .trace import by_products


@dataclass(frozen=True)
class RateOptions:
    """examples: of the loss whose Hessian is probed. directions: of its traces. batches: mini-batches of the recipe's
    size, for the noise of gradients."""

    examples: int = 8
    directions: int = 16
    batches: int = 8


@dataclass(frozen=True)
class Constants:
    """gamma, zeta and Gamma of the theorem."""

    gamma: float
    zeta: float
    big_gamma: float


def constants(d: int, rank: float, num_directions: int) -> Constants:
    """
    >>> found = constants(1000, 9.0, 1)
    >>> round(found.gamma, 3), round(found.zeta * 9 * 1000, 1), round(found.big_gamma, 4)
    (9.978, 0.9, 0.1002)
    """
    n, core = num_directions, d * rank + d - 2
    gamma = core / (n * (d + 2))
    zeta = (d + 2) * n**2 / (core * (d + n - 1))
    return Constants(gamma, zeta, (d - zeta * gamma) / (d * gamma))


def rate_bounds(d: int, num_clients: int, local_steps: int, smoothness: float, noise: float) -> tuple[float, ...]:
    """The three bounds of eta, in the order above; infinite where the curvature is zero.

    >>> [round(bound, 6) for bound in rate_bounds(10_000, 4, 10, 2.0, 1.0)]
    [0.000167, 0.066667, 0.01]
    """
    steep = 3 * local_steps * smoothness
    first, second = steep * sqrt(noise * d), noise * steep / num_clients
    return (1 / first if first else np.inf), (1 / second if second else np.inf), 1 / local_steps**2


def rate_bound(experiment: Experiment, options: RateOptions, tell: Tell = in_silence) -> Finding:
    """The theorem's bounds on the learning rate for measured L, c_g and r, beside the recipe's rate and 1 / sqrt(d).

    Cost: `directions` Hessian products and those for the largest eigenvalue, `batches` gradients. Memory: as many
    gradients.

    Raises:
        ConfigError: a quantised base. ModelError: no second derivatives.
    """
    refuse_quantised(experiment, "rate-bound")
    recipe = experiment.recipe
    experiment.model.module.float()
    noise, cost = _noise(experiment, options, tell)
    keys = [key_of(recipe, "trace", direction=m) for m in range(options.directions)]
    batches = batches_of(experiment, options.examples, recipe.federation.batch_size, key_of(recipe, "examples"))
    probed = probed_loss(experiment, batches)
    with hessian_of(probed) as hessian:
        samples = by_products(probed, hessian, keys, blocks_of(probed.model.module, probed.model.trainable), tell)
        curvature = curvature_of(samples, hessian, probed.model.trainable, 1, key_of(recipe, "eigenvalues"), tell)
    spent = plain(vars(probed.cost)) | {"mini-batch gradients": cost}
    chosen = {"examples": probed.num_examples, "directions": options.directions, "batches": options.batches}
    values, rows = _values(recipe, experiment.space.num_parameters, curvature, noise)
    return Finding("rate-bound", about(experiment) | chosen, values, {"by rank": rows}, spent, _NOTES)


def _noise(experiment: Experiment, options: RateOptions, tell: Tell) -> tuple[Interval, int]:
    """(c_g with a bootstrap's interval over mini-batches, how many these were)."""
    recipe, pool, gradients = experiment.recipe, indices_of(experiment.clients), []
    for number in range(options.batches):
        tell("gradients of mini-batches", number, options.batches)
        key = key_of(recipe, "mini-batch", step=number)
        chosen = pool[client_batch_indices(key, len(pool), recipe.federation.batch_size)]
        gradients.append(probed_loss(experiment, in_batches(experiment, chosen, len(chosen))).gradient())
    gram = gram_of(gradients)
    found = bootstrap(lambda rows: noise_ratio(gram, rows), options.batches, key_of(recipe, "bootstrap"))
    return found, options.batches


def _values(
    recipe: Recipe, d: int, curvature: Curvature, noise: Interval
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    federation = recipe.federation
    clients, steps = federation.cohort_size or recipe.partition.num_clients, federation.local_steps
    bounds = rate_bounds(d, clients, steps, curvature.norm.value, noise.value)
    is_known = bool(np.isfinite(noise.value))
    values: dict[str, Any] = {
        "d": d, "N": clients, "H": steps, "T": federation.num_rounds, "n": recipe.num_scalars,
        "L, here": curvature.norm, "c_g, here": noise, "effective rank": curvature.effective_rank,
        "stable rank": curvature.stable_rank, "1 / (3 H L sqrt(c_g d))": bounds[0], "N / (3 c_g H L)": bounds[1],
        "1 / H^2": bounds[2], "bound of the rate": min(bounds) if is_known else None,
        "the recipe's rate": recipe.first_rate,
        "rate / bound": recipe.first_rate / min(bounds) if is_known else None,
        "1 / sqrt(d)": 1 / sqrt(d),
    }  # fmt: skip
    ranks = {"effective rank": curvature.effective_rank, "stable rank": curvature.stable_rank}
    rows = [_row(recipe, d, clients, name, rank.value) for name, rank in ranks.items() if rank and rank.value > 0]
    return values, rows


def _row(recipe: Recipe, d: int, clients: int, name: str, rank: float) -> dict[str, Any]:
    found, steps = constants(d, rank, recipe.num_scalars), recipe.federation.local_steps
    rounds = max(1, recipe.federation.num_rounds)
    return {
        "r": name, "value": rank, "gamma": found.gamma, "zeta": found.zeta, "Gamma": found.big_gamma,
        "eta, IID": sqrt(clients * steps / (rank * rounds)), "mu, IID": (clients * steps) ** 0.25 / sqrt(rank),
    }  # fmt: skip


_NOTES = (
    "L is the Hessian's largest eigenvalue in magnitude at these weights and examples; the theorem's L holds "
    "everywhere, so it is at least as large and the bounds at most as large",
    "c_g is read as E|grad F_B|^2 / |grad F|^2 over mini-batches of the recipe's size, without an additive term; the "
    "paper's own definition may differ. Its interval: 90 %, bootstrap over mini-batches",
    "r is bounded from below only: the effective rank cancels negative curvature (rows without a positive rank are "
    "left out), the stable rank is at most tr|H|/|H|",
    "eta and mu 'IID' are the paper's orders of magnitude for clients that are alike, without its constants; "
    "1 / sqrt(d) is the magnitude that it anchors learning rates at",
    "n, the directions a step, is read as the number of scalars of one local step",
)
