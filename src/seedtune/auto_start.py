"""What a recipe with 'auto' in it begins with: a perturbation scale and learning rates, measured before round 0.

Perturbation scale. Rounding disturbs a projected gradient as 1 / mu, truncation as mu^2 (mu, one-sided). So scales are
tried half a decade apart, and of those neighbours whose projected gradients differ least, as a share of their size, the
larger is taken: no derivative and no model of the dtype is needed. Where weights of 16 bits do not even move, all
projected gradients are zero, and such scales say nothing.

Learning rates. A step along each block is tried at rates four times apart, from that which moves a weight as far as
mu, up while the loss of its batches falls by at least three quarters of what the smallest of them promised. From the
first that does not, or the last, kappa follows as `fed.auto` has it, and the rate from kappa as there, before any fresh
batch has been seen.

What was found stands in the recipe's section [auto], which the run keeps. All is measured on the server's examples:
training ones where it has them, else those that the task tests on. Nothing is moved here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

import numpy as np

from .assembly import Experiment
from .config import Recipe
from .data.batches import batch_of
from .data.keyed import client_batch_indices
from .errors import ConfigError
from .fed.auto import first_share, found_at_start
from .fed.client import Site, probed, told, working_copy
from .fed.slopes import Losses
from .pinned_inputs import RECIPE, digest_recipe
from .space import Weights, copy_into
from .zo import noise
from .zo.expansion import updates_of
from .zo.update import Update, apply

SCALES = tuple(float(f"{10 ** (exponent / 2):.3g}") for exponent in range(-8, 0))
"""0.0001 to 0.316."""
MOST_BATCHES, SCALE_BATCHES, SCALE_DIRECTIONS = 4, 2, 4
MOST_RATES, APART, KEPT_PROMISE = 10, 4.0, 0.75


@dataclass(frozen=True)
class Spent:
    """What was found, in a line, and what finding it took: forward passes and their floating-point operations."""

    note: str = ""
    num_forwards: int = 0
    num_flops: int = 0

    def with_flops(self, more: int) -> "Spent":
        """Return what was spent with `more` operations, as of layers computed ahead."""
        return replace(self, num_flops=self.num_flops + more)

    def as_row(self) -> dict[str, int]:
        """As the row before the first round says it; nothing where nothing was spent."""
        return {"forwards": self.num_forwards, "flops": self.num_flops} if self.num_flops else {}


def is_open(recipe: Recipe) -> bool:
    """Whether something is still to be measured."""
    return not (recipe.mu and recipe.first_rate)


def started(experiment: Experiment) -> tuple[Experiment, Spent]:
    """The experiment with its recipe's 'auto' measured; as it is where nothing is open.

    Cost: 8 scales of four directions on each of two batches; a step and up to 20 forwards a block on each of up to
    four, the frozen prefix of each batch once; for the rates a copy of the tuned tensors.

    Raises:
        ConfigError: no scale at which projected gradients are anything but zero, or not finite.
    """
    if not is_open(experiment.recipe):
        return experiment, Spent()
    batches, spent = _batches(experiment), _Count()
    if not experiment.recipe.mu:
        experiment = _with(experiment, perturbation_scale=_scale(experiment.site, batches[:SCALE_BATCHES], spent))
    if not experiment.recipe.first_rate:
        rates = _rates(experiment, batches, spent)
        ratio = {"rate_ratio": rates[1] / rates[0]} if len(rates) > 1 else {}
        experiment = _with(experiment, learning_rate=rates[0], **ratio)
    return experiment, Spent(found_at_start(experiment.recipe), spent.forwards, spent.flops)


@dataclass
class _Count:
    forwards: int = 0
    flops: int = 0

    def add(self, forwards: int, flops: int) -> None:
        self.forwards, self.flops = self.forwards + forwards, self.flops + flops


def _with(experiment: Experiment, **found: float) -> Experiment:
    """The experiment with these values in its recipe's section [auto], and what follows from them."""
    auto = experiment.recipe.auto.model_copy(update={name: float(f"{value:.4g}") for name, value in found.items()})
    recipe = experiment.recipe.model_copy(update={"auto": auto})
    inputs = {**experiment.header.inputs, RECIPE: digest_recipe(recipe)}
    header = replace(experiment.header, split=experiment.header.split_at(recipe.rate_ratio), inputs=inputs)
    return replace(
        experiment, recipe=recipe, header=header, site=replace(experiment.site, recipe=recipe, header=header)
    )


def _batches(experiment: Experiment) -> list[Any]:
    """As the first clients would draw them, by keys of their own."""
    site, recipe, seed = experiment.site, experiment.recipe, experiment.header.seed
    keyed = partial(noise.derive_key, seed, "auto batch")
    if experiment.clients:
        clients = [client for client, own in enumerate(experiment.clients) if len(own)][:MOST_BATCHES]
        return [site.batch(client, keyed(client=client)) for client in clients]
    test, size = experiment.test, recipe.federation.batch_size
    drawn = (client_batch_indices(keyed(client=client), len(test), size) for client in range(MOST_BATCHES))
    return [experiment.prepare(batch_of(test, chosen)) for chosen in drawn]


def _scale(site: Site, batches: Sequence[Any], spent: _Count) -> float:
    found = [_gradients(site, scale, batches, spent) for scale in SCALES]
    best = {
        larger: _disagreement(found[i], found[i + 1])
        for i, larger in enumerate(SCALES[1:])
        if _says_something(found[i]) and _says_something(found[i + 1])
    }
    if not best:
        raise ConfigError(
            "local.perturbation_scale = 'auto': at every scale from "
            f"{SCALES[0]:g} to {SCALES[-1]:g} the projected gradients are zero or not finite: the loss does not depend "
            "on what is tuned, or the weights are not finite"
        )
    return min(best, key=best.__getitem__)


def _gradients(site: Site, scale: float, batches: Sequence[Any], spent: _Count) -> np.ndarray:
    """Projected gradients at a scale, float64, along the same directions whatever the scale."""
    local = site.recipe.local.model_copy(update={"perturbation_scale": scale})
    at = replace(site, recipe=site.recipe.model_copy(update={"local": local}))
    count = site.recipe.num_scalars if site.recipe.is_split else SCALE_DIRECTIONS
    keys = [noise.derive_key(site.header.seed, "auto scale", direction=p) for p in range(count)]
    return np.concatenate([_counted(at, batch, keys, spent) for batch in batches])


def _counted(site: Site, batch: Any, keys: Sequence[int], spent: _Count) -> np.ndarray:
    probe, tally = probed(site, batch, keys)
    spent.add(probe.num_forwards, tally.flops)
    return probe.scalars.astype(np.float64)


def _says_something(gradients: np.ndarray) -> bool:
    return bool(np.isfinite(gradients).all() and np.count_nonzero(gradients) > len(gradients) / 2)


def _disagreement(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def _rates(experiment: Experiment, batches: Sequence[Any], spent: _Count) -> list[float]:
    """The learning rate of each block."""
    site = experiment.site
    keys = [noise.derive_key(site.header.seed, "auto rate", direction=p) for p in range(site.recipe.num_scalars)]
    steps = [_step(site, _counted(site, batch, keys, spent), keys) for batch in batches]
    with working_copy(site, moves=True) as weights:
        losses = [Losses(site, batch) for batch in batches]
        start = [loss() for loss in losses]
        blocks = zip(*steps, strict=True)
        kappas = [_kappa(site, losses, updates, weights, start) for updates in blocks]
    for loss in losses:
        spent.add(loss.num_forwards, loss.tally.flops)
    share = first_share(site.recipe)
    return [share / kappa for kappa in kappas]


def _step(site: Site, scalars: np.ndarray, keys: Sequence[int]) -> tuple[Update, ...]:
    """A step of rate 1, an update a block."""
    even, key = site.header.split_at(1.0), noise.derive_key(site.header.seed, "auto step")
    return updates_of(even, keys, -told(site.recipe, scalars) / len(keys), key)


def _kappa(
    site: Site, losses: Sequence[Losses], updates: Sequence[Update], weights: Weights, start: Sequence[float]
) -> float:
    """kappa of one block, from tried rates; `updates` and `start`: a step of rate 1 and the loss of each batch."""
    usable = [i for i, update in enumerate(updates) if np.isfinite(update.coefficients).all() and isfinite(start[i])]
    lengths = [float(np.linalg.norm(updates[i].coefficients)) for i in usable]
    if not usable or not max(lengths):
        raise ConfigError(
            "local.learning_rate = 'auto': the projected gradients at the start are zero or not finite: the loss does "
            "not depend on what is tuned, or local.perturbation_scale is far off; give a number"
        )

    def fall(rate: float) -> float:
        total = 0.0
        for i in usable:
            copy_into(weights, site.replica.weights)
            scaled = replace(updates[i], coefficients=(rate * updates[i].coefficients).astype(np.float32))
            apply(site.perturber.space, weights, (scaled,), site.header.distribution)
            total += start[i] - losses[i]()
        return total

    rate = site.recipe.mu / float(np.mean(lengths))
    gain = fall(rate) / rate
    for _ in range(MOST_RATES):
        if gain > 0 and isfinite(gain):
            break
        rate /= APART
        gain = fall(rate) / rate
    kept = 1.0
    for _ in range(MOST_RATES):
        kept = fall(APART * rate) / (APART * rate * gain)
        rate *= APART
        if not kept >= KEPT_PROMISE:
            break
    kept = min(kept, 1.0 - 1e-3) if isfinite(kept) else -MOST_RATES
    return 2 * (1 - kept) / rate
