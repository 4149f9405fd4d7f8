"""Which learning rates FedMeZO's theorems allow, for constants measured here (arXiv 2402.05926).

With d tuned parameters, N clients, H local steps, T rounds, n directions a step, smoothness L, gradient noise c_g and
effective rank r:

    gamma = (d r + d - 2) / (n (d + 2))      zeta = (d + 2) n^2 / ((d r + d - 2)(d + n - 1))
    Gamma = (d - zeta gamma) / (d gamma)
    eta <= min{ 1 / (3 H L sqrt(c_g d)), N / (3 c_g H L), 1 / H^2 }

c_g is that of the paper's assumption on each client i and its mini-batches B (A4):

    E|grad F_i(B)|^2 <= c_g |grad f_i|^2 + sigma_g^2

Many pairs satisfy it at one point; given are its two ends, c_g with sigma_g = 0 and sigma_g^2 with c_g = 1.

Corollaries 3.5 and 3.6, the rate of convergence but for constants:

    clients that are alike:   O(r^(3/2) (N H T)^(-1/2)), at eta = (N H)^(1/2) (r T)^(-1/2), mu = (N H)^(1/4) r^(-1/2)
    clients that are not:     O(r^(3/2) (c~_h N H T)^(-1/2)) - O(sigma_h^2 / (c_h N)),
                              where |grad f - grad f_i|^2 <= c_h |grad f|^2 + sigma_h^2

The second is not evaluated: what c~_h is made of is not known to this project. gamma is as the paper prints it. With
directions on the sphere E[g^T H g] reaches L |grad f|^2 (gamma + 1), so a 1 is missing there.

The theorem's constants hold everywhere; what is measured holds at one point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from ..assembly import Experiment
from ..config import Recipe
from ..data.keyed import client_batch_indices
from ..zo import noise
from .effective_rank import Curvature, curvature_of
from .finding import Finding, Tell, in_silence, plain
from .gradients import gradient_variance, gram_of, noise_ratio
from .hessian import blocks_of, hessian_of
from .intervals import Interval, bootstrap
from .subject import about, batches_of, in_batches, key_of, probed_loss, refuse_quantised
from .trace import by_products


@dataclass(frozen=True)
class RateOptions:
    """examples: of the loss whose Hessian is probed. directions: of its traces. batches: mini-batches of the recipe's
    size a client, for the noise of gradients. clients: so many of them, the first ones, have it measured."""

    examples: int = 8
    directions: int = 16
    batches: int = 8
    clients: int = 8


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

    Cost: `directions` Hessian products and those for the largest eigenvalue; `batches` gradients for each of `clients`.
    Memory: `batches` gradients.

    Raises:
        ConfigError: a quantised base. ModelError: no second derivatives.
    """
    refuse_quantised(experiment, "rate-bound")
    recipe = experiment.recipe
    experiment.model.module.float()
    noises = _client_noises(experiment, options, tell)
    cost = options.batches * len(noises)
    keys = [key_of(recipe, "trace", direction=m) for m in range(options.directions)]
    batches = batches_of(experiment, options.examples, recipe.federation.batch_size, key_of(recipe, "examples"))
    probed = probed_loss(experiment, batches)
    with hessian_of(probed) as hessian:
        samples = by_products(probed, hessian, keys, blocks_of(probed.model.module, probed.model.trainable), tell)
        curvature = curvature_of(samples, hessian, probed.model.trainable, 1, key_of(recipe, "eigenvalues"), tell)
    spent = plain(vars(probed.cost)) | {"mini-batch gradients": cost}
    chosen = {
        "examples": probed.num_examples,
        "directions": options.directions,
        "batches": options.batches,
        "clients": len(noises),
    }
    values, rows = _values(recipe, experiment.space.num_parameters, curvature, noises)
    return Finding("rate-bound", about(experiment) | chosen, values, {"by rank": rows}, spent, _NOTES)


@dataclass(frozen=True)
class ClientNoise:
    """One client's E|grad F_i(B)|^2 / |grad f_i|^2, and E|grad F_i(B)|^2 - |grad f_i|^2."""

    ratio: Interval
    variance: float


def _client_noises(experiment: Experiment, options: RateOptions, tell: Tell) -> list[ClientNoise]:
    """The gradient noise of the first clients, each over mini-batches of its own examples."""
    chosen = experiment.clients[: options.clients]
    return [_client_noise(experiment, own, i, options.batches, tell) for i, own in enumerate(chosen)]


def _client_noise(experiment: Experiment, own: np.ndarray, client: int, num: int, tell: Tell) -> ClientNoise:
    recipe, gradients = experiment.recipe, []
    for number in range(num):
        tell(f"gradients of client {client}'s mini-batches", number, num)
        key = noise.derive_key(recipe.run.seed, "probe mini-batch", client=client, step=number)
        chosen = own[client_batch_indices(key, len(own), recipe.federation.batch_size)]
        gradients.append(probed_loss(experiment, in_batches(experiment, chosen, len(chosen))).gradient())
    gram = gram_of(gradients)
    ratio = bootstrap(lambda rows: noise_ratio(gram, rows), num, key_of(recipe, "bootstrap", direction=client))
    return ClientNoise(ratio, gradient_variance(gram))


def largest_noise(noises: Sequence[ClientNoise]) -> tuple[Interval, float]:
    """(c_g with sigma_g = 0, sigma_g^2 with c_g = 1): the least that bound every client, NaN if one is not known."""
    ratios = [each.ratio for each in noises]
    unknown = [ratio for ratio in ratios if not np.isfinite(ratio.value)]
    largest = unknown[0] if unknown else max(ratios, key=lambda ratio: ratio.value)
    return largest, max(0.0, *(each.variance for each in noises))


def _values(
    recipe: Recipe, d: int, curvature: Curvature, noises: Sequence[ClientNoise]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    federation = recipe.federation
    clients, steps = federation.cohort_size or recipe.partition.num_clients, federation.local_steps
    c_g, variance = largest_noise(noises)
    bounds = rate_bounds(d, clients, steps, curvature.norm.value, c_g.value)
    is_known = bool(np.isfinite(c_g.value))
    values: dict[str, Any] = {
        "d": d, "N": clients, "H": steps, "T": federation.num_rounds, "n": recipe.num_scalars,
        "L, here": curvature.norm,
        "c_g, here": c_g, "sigma_g^2 if c_g = 1": variance, "effective rank": curvature.effective_rank,
        "stable rank": curvature.stable_rank, "1 / (3 H L sqrt(c_g d))": bounds[0], "N / (3 c_g H L)": bounds[1],
        "1 / H^2": bounds[2], "bound of the rate": min(bounds) if is_known else None,
        "the recipe's rate": recipe.first_rate,
        "rate / bound": recipe.first_rate / min(bounds) if is_known else None,
        "1 / sqrt(d)": 1 / sqrt(d),
    }  # fmt: skip
    ranks = {"effective rank": curvature.effective_rank, "stable rank": curvature.stable_rank}
    rows = [_row(recipe, d, clients, name, rank.value) for name, rank in ranks.items() if rank and rank.value > 0]
    return values, rows


def iid_order(rank: float, num_clients: int, local_steps: int, num_rounds: int) -> float:
    """The rate of convergence for clients that are alike, without its constant: r^(3/2) (N H T)^(-1/2).

    >>> iid_order(4.0, 2, 8, 4)
    1.0
    """
    return rank**1.5 / sqrt(num_clients * local_steps * num_rounds)


def _row(recipe: Recipe, d: int, clients: int, name: str, rank: float) -> dict[str, Any]:
    found, steps = constants(d, rank, recipe.num_scalars), recipe.federation.local_steps
    rounds = max(1, recipe.federation.num_rounds)
    return {
        "r": name, "value": rank, "gamma": found.gamma, "zeta": found.zeta, "Gamma": found.big_gamma,
        "eta, IID": sqrt(clients * steps / (rank * rounds)), "mu, IID": (clients * steps) ** 0.25 / sqrt(rank),
        "order of the IID rate": iid_order(rank, clients, steps, rounds),
    }  # fmt: skip


_NOTES = (
    "L is the Hessian's largest eigenvalue in magnitude at these weights and examples; the theorem's L holds "
    "everywhere, so it is at least as large and the bounds at most as large",
    "c_g is the paper's, E|grad F_i(B)|^2 <= c_g |grad f_i|^2 + sigma_g^2 for each client i and mini-batches B of the "
    "recipe's size: the largest of the clients measured, with sigma_g = 0; sigma_g^2 is the other end, with c_g = 1. "
    "The interval of c_g: 90 %, bootstrap over that client's mini-batches",
    "gamma is as printed; in a simulation of E[g^T H g] with directions on the sphere a +1 is missing from it",
    "the order of the IID rate is that of Corollaries 3.5 and 3.6 for clients that are alike, without its constant; "
    "for unlike ones they have a constant whose definition this project does not know, so that is not evaluated",
    "r is bounded from below only: the effective rank cancels negative curvature (rows without a positive rank are "
    "left out), the stable rank is at most tr|H|/|H|",
    "eta and mu 'IID' are the paper's orders of magnitude for clients that are alike, without its constants; "
    "1 / sqrt(d) is the magnitude that it anchors learning rates at",
    "n, the directions a step, is read as the number of scalars of one local step",
)
