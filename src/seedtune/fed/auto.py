"""Learning rates that nobody chose: a fold over what clients measure of their own steps (`slopes`).

Derivation. Near theta a step -eta g changes the loss of its own batch by -eta a + eta^2 b / 2, with a the gain and b
the bend that `slopes` measures; on other examples its gain is smaller, r a, since part of what a batch's projected
gradients say is that batch's noise. So one client's step lowers the loss of all examples most at eta = r a / b. Where
N clients' steps are averaged, noise falls and what they have in common stays, and r becomes

    s = N r / (1 + (N - 1) r)

from r for one client to 1 for many. The rate is `auto.safety` times s a / b. At 2 s a / b nothing is gained any more;
the default of a half stays away from there, since all three are estimates and curvature changes between two of them.

    1 / kappa = a / b    sums over the clients of a round; kappa is the mean of the last five estimates and its
                         standard error
    r                    the mean over all estimates, with a start as of ten that say a quarter, from 0.02 to 1

A rate grows by half from one estimate to the next at most, and not at all while no curvature is seen; it falls by a
factor of ten at most. Each block of a split model has its own. Estimates are made in each of the first ten rounds, in
which a model leaves its start, and then after every tenth of the rounds that are done, or every `auto.every` rounds;
they are recorded with the round, so that a resumed run goes on as it would have.

Stochastic line searches rest on the same quantities (Vaswani et al. 2019, arXiv 1905.09997); that a step is judged on
other examples too, and the pooling, are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..config import Recipe

Slopes = Mapping[int, tuple[float, ...]]
"""By client, three numbers a block."""

FIRST_ROUNDS, KEPT, MOST_GROWTH, MOST_FALL = 10, 5, 1.5, 10.0
_PRIOR, _PRIOR_WEIGHT, _LEAST_SHARE = 0.25, 10, 0.02
_CAUTION = 0.5  # in the first rate: much of what bends a step shows only on the way
_RATES, _LARGEST = (1e-30, 1e6), 1e30  # what clients tell may be anything
_MOST_APART = 4.0  # a client's own rate from the others'


def is_due(recipe: Recipe, round_: int) -> bool:
    """Whether clients measure their steps in a round.

    >>> recipe = Recipe.model_validate({"local": {"learning_rate": "auto"}})
    >>> [round_ for round_ in range(60) if is_due(recipe, round_)][10:]
    [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 24, 26, 28, 30, 33, 36, 39, 42, 46, 50, 55]
    """
    if not recipe.is_rate_auto:
        return False
    due = FIRST_ROUNDS
    while due < round_:
        due += recipe.auto.every or due // FIRST_ROUNDS
    return round_ < FIRST_ROUNDS or round_ == due


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


def _common(r: np.ndarray | float, num_clients: int) -> np.ndarray | float:
    """s: the share of a step's gain that other examples have too, where so many clients are averaged."""
    return num_clients * r / (1 + (num_clients - 1) * r)


@dataclass(frozen=True)
class AutoRates:
    """What the rates of the next round follow from.

    rates: one a block. kappas: float64 [estimates, blocks], the last ones. shares: float64 [blocks], the sum of r over
    all `num_estimates` and what it starts with. own: by client, kappa of its last estimates, as `kappas`.
    """

    recipe: Recipe
    rates: tuple[float, ...]
    kappas: np.ndarray
    shares: np.ndarray
    num_estimates: int = 0
    own: Mapping[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> "AutoRates | None":
        """Before the first round, from what the recipe was found to begin with; None where rates are given."""
        if not recipe.is_rate_auto:
            return None
        ratios = (1.0, recipe.rate_ratio) if recipe.is_split else (1.0,)
        rates = tuple(recipe.first_rate * ratio for ratio in ratios)
        return cls(recipe, rates, np.zeros((0, len(rates))), np.full(len(rates), _PRIOR * _PRIOR_WEIGHT))

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
        if mine is None or not self.recipe.auto.per_client or len(mine) < KEPT:
            return 1.0
        ours, theirs = self.kappas.mean(0), mine.mean(0)
        known = (ours > 0) & (theirs > 0)
        if not known.any():
            return 1.0
        return float(np.clip(np.exp(np.log(ours[known] / theirs[known]).mean()), 1 / _MOST_APART, _MOST_APART))

    def after(self, slopes: Slopes) -> "AutoRates":
        """The state after a round in which clients measured this; as it was where none did."""
        fits = {client: numbers for client, numbers in slopes.items() if len(numbers) == 3 * len(self.rates)}
        usable = {client: np.array(numbers).reshape(-1, 3).T for client, numbers in fits.items()}
        if not usable:
            return self
        with np.errstate(over="ignore"):
            gain, bend, fresh = np.sum([usable[client] for client in sorted(usable)], axis=0)
        own = {
            client: np.vstack([*self.own.get(client, ()), _over(b, a)])[-KEPT:] for client, (a, b, _) in usable.items()
        }
        ahead = replace(
            self, kappas=np.vstack([self.kappas, _over(bend, gain)])[-KEPT:],
            shares=self.shares + np.clip(_over(fresh, gain), -1.0, 1.0), num_estimates=self.num_estimates + 1,
            own={**self.own, **own},
        )  # fmt: skip
        return replace(ahead, rates=ahead._next_rates(len(usable), ~(gain > 0)))

    @property
    def _kappa(self) -> np.ndarray:
        """The mean of the last estimates and its standard error; of a single one, itself once more."""
        count, mean = len(self.kappas), self.kappas.mean(0)
        return mean + (self.kappas.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.abs(mean))

    def _next_rates(self, num_clients: int, is_uphill: np.ndarray) -> tuple[float, ...]:
        r = np.clip(self.shares / (self.num_estimates + _PRIOR_WEIGHT), _LEAST_SHARE, 1.0)
        share = _common(r, num_clients)
        kappa, now = self._kappa, np.array(self.rates)
        wanted = np.where(kappa > 0, self.recipe.auto.safety * share / np.where(kappa > 0, kappa, 1.0), now)
        most = np.where(is_uphill, now / MOST_GROWTH, now * MOST_GROWTH)
        return tuple(np.clip(np.clip(wanted, now / MOST_FALL, most), *_RATES).tolist())


def _over(top: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """A part of a step over its gain, finite; 0 where there is none."""
    with np.errstate(all="ignore"):
        found = np.where(gain > 0, top / gain, 0.0)
    return np.clip(np.nan_to_num(found), -_LARGEST, _LARGEST)
