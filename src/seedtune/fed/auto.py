"""Learning rates that nobody chose: a fold over what clients measure of their own steps (`slopes`).

Derivation. Near theta a step -eta g changes the loss of its own batch by -eta a + eta^2 b / 2, with a the gain and b
the bend that `slopes` measures; on other examples its gain is smaller, r a, since part of what a batch's projected
gradients say is that batch's noise. So one client's step lowers the loss of all examples most at eta = r a / b. Where
N clients' steps are averaged, noise falls and what they have in common stays, and r becomes

    s = N r / (1 + (N - 1) r)

from r for one client to 1 for many. The rate is `auto.safety` times s a / b. At 2 s a / b nothing is gained any more;
the default of a half stays away from there, since all three are estimates and curvature changes between two of them.

    kappa = b / a    sums over the last five estimates, and what their scatter makes uncertain of it: one standard
                     error of a ratio of sums; of a single estimate, as much again
    r                the mean over all estimates, with a start as of five that say a quarter, from 0.02 to 1

Of one estimate, a and b are the means over the clients that answer; where `federation.aggregation` is to withstand
some that lie, the median or the trimmed mean, so that no few of them can drive a rate.

A rate grows by half from one estimate to the next at most, and not at all while no curvature is seen; it falls by a
factor of ten at most. Each block of a split model has its own; r is that of the whole step. Estimates are made in each
of the first five rounds, in which a model leaves its start, and then at distances that grow by one round up to
`auto.every`, or to four and to what takes about a tenth of the forward passes; they are recorded with the round, so
that a resumed run goes on as it would have.

Stochastic line searches rest on the same quantities (Vaswani et al. 2019, arXiv 1905.09997); that a step is judged on
other examples too, and the pooling, are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from ..config import Recipe
from . import aggregation

Slopes = Mapping[int, tuple[float, ...]]
"""By client, two numbers a block and one of the whole step."""

FIRST_ROUNDS, KEPT, MOST_GROWTH, MOST_FALL = 5, 5, 1.5, 10.0
FORWARDS_SHARE, LEAST_DISTANCE = 0.1, 4
_PRIOR, _PRIOR_WEIGHT, _LEAST_SHARE = 0.25, 5, 0.02
_CAUTION = 0.5  # in the first rate: much of what bends a step shows only on the way
RATES, _SMALLEST, _LARGEST = (1e-30, 1e6), 1e-30, 1e30  # what clients tell may be anything
MOST_APART = 4.0  # a client's own rate from the others'


def is_due(recipe: Recipe, round_: int) -> bool:
    """Whether clients measure their steps in a round.

    >>> recipe = Recipe.model_validate({"local": {"learning_rate": "auto", "num_directions": 8}})
    >>> [round_ for round_ in range(30) if is_due(recipe, round_)]
    [0, 1, 2, 3, 4, 6, 9, 13, 17, 21, 25, 29]
    """
    if not recipe.is_rate_auto:
        return False
    due, distance, most = FIRST_ROUNDS - 1, 1, recipe.auto.every or _cadence(recipe)
    while due < round_ and distance < most:
        distance += 1
        due += distance
    return round_ < FIRST_ROUNDS or (round_ >= due and (round_ - due) % most == 0)


def _cadence(recipe: Recipe) -> int:
    """Rounds between two estimates which together take about `FORWARDS_SHARE` of all forward passes, and not too many
    of the rounds: where clients share directions, those that estimate are not evaluated together."""
    num_blocks, has_start = 2 if recipe.is_split else 1, recipe.is_one_sided
    of_estimate = 2 * num_blocks + 2 + (0 if has_start else 1)
    of_step = recipe.num_scalars + 1 if has_start else 2 * recipe.num_scalars
    return max(LEAST_DISTANCE, ceil(of_estimate / (FORWARDS_SHARE * of_step * recipe.federation.local_steps)))


def found_at_start(recipe: Recipe) -> str:
    """What a run's recipe was measured to begin with, in words; empty where nothing was."""
    parts = []
    if recipe.local.perturbation_scale == "auto" and recipe.mu:
        parts.append(f"perturbation scale {recipe.mu:.3g}")
    if recipe.is_rate_auto and recipe.first_rate:
        ratio = f", block 2's {recipe.rate_ratio:.3g} times that" if recipe.is_split else ""
        parts.append(f"learning rate of the first round {recipe.first_rate:.3g}{ratio}")
    return "measured: " + "; ".join(parts) if parts else ""


def first_share(recipe: Recipe) -> float:
    """The rate that a recipe begins with, times kappa: `auto.safety` and s, with the r that is supposed of all."""
    num_clients = recipe.federation.cohort_size or recipe.partition.num_clients
    return _CAUTION * recipe.auto.safety * _common(_PRIOR, num_clients)


def _common(r: float, num_clients: int) -> float:
    """s: the share of a step's gain that other examples have too, where so many clients are averaged."""
    return num_clients * r / (1 + (num_clients - 1) * r)


@dataclass(frozen=True)
class AutoRates:
    """What the rates of the next round follow from.

    rates: one a block. kept: the last estimates, float64 [estimates, 2, blocks], gains and bends as parts of their
    step's whole gain, so that each counts alike. shares: the sum of r over all `num_estimates` and what it starts with.
    own: by client, its last estimates, as `kept`, where clients are to have rates of their own.
    """

    recipe: Recipe
    rates: tuple[float, ...]
    kept: np.ndarray
    shares: float = _PRIOR * _PRIOR_WEIGHT
    num_estimates: int = 0
    own: Mapping[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> "AutoRates | None":
        """Before the first round, from what the recipe was found to begin with; None where rates are given."""
        if not recipe.is_rate_auto:
            return None
        ratios = (1.0, recipe.rate_ratio) if recipe.is_split else (1.0,)
        rates = tuple(recipe.first_rate * ratio for ratio in ratios)
        return cls(recipe, rates, np.zeros((0, 2, len(rates))))

    @property
    def rate(self) -> float:
        """Of block 1, or of the whole model."""
        return self.rates[0]

    @property
    def ratio(self) -> float | None:
        """Of block 2's rate over block 1's, where there are two."""
        return self.rates[1] / self.rates[0] if len(self.rates) > 1 else None

    def factor(self, client: int) -> float:
        """A client's own rate as a multiple of the others': 1 unless `auto.per_client`, or while little is known."""
        mine = self.own.get(client)
        if mine is None or len(mine) < KEPT:
            return 1.0
        ours, theirs = _kappas(self.kept), _kappas(mine)
        known = (ours > 0) & (theirs > 0)
        if not known.any():
            return 1.0
        return float(np.clip(np.exp(np.log(ours[known] / theirs[known]).mean()), 1 / MOST_APART, MOST_APART))

    def after(self, slopes: Slopes) -> "AutoRates":
        """The state after a round in which clients measured this; as it was where none did."""
        heard = {client: numbers for client, numbers in sorted(slopes.items()) if self._says_something(numbers)}
        if not heard:
            return self
        told = np.clip(np.nan_to_num(np.array([*heard.values()])), -_LARGEST, _LARGEST)
        *of_all, fresh = _one_of(self.recipe, told)
        estimate, gain = self._estimate(of_all)
        alone = zip(heard, told, strict=True) if self.recipe.auto.per_client else ()
        own = {client: _and(self.own.get(client), self._estimate(numbers[:-1])[0]) for client, numbers in alone}
        share = min(max(fresh / gain, -1.0), 1.0) if gain > 0 else 0.0
        ahead = replace(
            self, kept=_and(self.kept, estimate), shares=self.shares + share, num_estimates=self.num_estimates + 1,
            own={**self.own, **own},
        )  # fmt: skip
        return replace(ahead, rates=ahead._next_rates(len(heard)))

    def _says_something(self, numbers: Sequence[float]) -> bool:
        return len(numbers) == 2 * len(self.rates) + 1 and any(numbers)

    def _estimate(self, numbers: Sequence[float] | np.ndarray) -> tuple[np.ndarray, float]:
        """([2, blocks] of gain and bend, as parts of the whole step's gain; that gain, per unit of block 1's rate)."""
        each = np.reshape(numbers, (-1, 2)).T
        gain = float(each[0] @ np.array(self.rates) / self.rate)
        with np.errstate(over="ignore"):
            return np.clip(each / max(abs(gain), _SMALLEST), -_LARGEST, _LARGEST), gain

    def _next_rates(self, num_clients: int) -> tuple[float, ...]:
        r = min(max(self.shares / (self.num_estimates + _PRIOR_WEIGHT), _LEAST_SHARE), 1.0)
        kappa, now = _kappas(self.kept), np.array(self.rates)
        careful = np.where(kappa > 0, kappa + _standard_error(self.kept), 1.0)
        wanted = np.where(kappa > 0, self.recipe.auto.safety * _common(r, num_clients) / careful, now)
        most = np.where(self.kept[:, 0].sum(0) > 0, now * MOST_GROWTH, now / MOST_GROWTH)
        return tuple(np.clip(np.clip(wanted, now / MOST_FALL, most), *RATES).tolist())


def _one_of(recipe: Recipe, told: np.ndarray) -> list[float]:
    """What stands for all clients, of [clients, numbers]."""
    stacked = told[:, None]
    match recipe.federation.aggregation:
        case "mean":
            one = stacked.mean(0)
        case "trimmed-mean":
            one = aggregation.trimmed_mean(stacked, recipe.federation.trimmed_fraction)
        case "median" | "sign-vote":
            one = aggregation.median(stacked)
    return one[0].tolist()


def _and(kept: np.ndarray | None, estimate: np.ndarray) -> np.ndarray:
    """The last estimates with one more."""
    return estimate[None] if kept is None else np.vstack([kept, estimate[None]])[-KEPT:]


def _kappas(kept: np.ndarray) -> np.ndarray:
    """Bends over gains, of each block; 0 where nothing is gained."""
    gains, bends = kept.sum(0)
    is_gain = gains > _SMALLEST
    return np.where(is_gain, bends / np.where(is_gain, gains, 1.0), 0.0)


def _standard_error(kept: np.ndarray) -> np.ndarray:
    """Of `_kappas`, from how the estimates scatter around them."""
    count, kappa, (gains, bends) = len(kept), _kappas(kept), kept.swapaxes(0, 1)
    if count == 1:
        return np.abs(kappa)
    scatter = np.sqrt(((bends - kappa * gains) ** 2).sum(0) * count / (count - 1))
    return scatter / np.maximum(gains.sum(0), _SMALLEST)
