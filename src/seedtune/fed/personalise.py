"""Learning rates of each client's own: eta_i = eta_0 + alpha Phi_i, by where a client stands among the others.

    Phi_i = (s_i - mean_j s_j) / max_j |s_j - mean_j s_j|, in [-1, 1]

s_i is a signal of how unlike the others client i is: its training loss, or how far its update lies from the mean
update. Source: FedMeZO, arXiv 2402.05926, and its published code, which divides by zero where all signals are equal.

What a finished round says (`Rates.measured`) is recorded with the round, and `Rates` is a fold over these records:
nothing else has to be kept to resume. This module measures neither losses nor distances, touches no weights, and knows
no schedule: it gives the factor by which the round's rate is multiplied.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite, nan
from typing import Literal

import numpy as np

from ..config import Recipe
from ..zo import noise

Signals = Mapping[int, float]
"""A number a client, by client."""

_AGREEMENT = 1e-12  # of the largest signal. Two clients are always equally far from their mean, but for rounding.


@dataclass(frozen=True)
class RatePolicy:
    """What Phi follows. A new policy is a new entry of `POLICIES`, and its name in `PersonaliseConfig`.

    signal: what it reads of a finished round: training losses, distances from the mean update, or nothing.
    num_rounds: how many of the rounds in which a client took part are averaged, the last ones. The policy acts from
        the round of that number on; before, all have the same rate.
    phi: what is used in the end, in [-1, 1], of the Phi that the signals give and a 64-bit key of round and client.
    """

    signal: Literal["losses", "distances"] | None
    num_rounds: int
    phi: Callable[[float, int], float]


def by_signals(phi: float, _key: int) -> float:
    return phi


def by_chance(_phi: float, key: int) -> float:
    """Uniform in [-1, 1]."""
    return 2 * (key / 2**64) - 1


POLICIES: dict[str, RatePolicy] = {
    "fixed": RatePolicy(None, 0, by_signals),
    "random": RatePolicy(None, 0, by_chance),
    "round-wise": RatePolicy("losses", 1, by_signals),
    "five-round": RatePolicy("losses", 5, by_signals),
    "model-diff": RatePolicy("distances", 1, by_signals),
}


@dataclass(frozen=True, eq=False)
class Rates:
    """What all clients' rates follow from, between two rounds.

    Guarantees:
        * a factor depends on the recipe, the round, the client and what the rounds before it recorded, and on nothing
          else: folding `after` over the records of a run gives the state that the run had, to the bit;
        * a factor lies in [1 - alpha, 1 + alpha] and is exactly 1 where Phi is 0: before the policy acts, for a client
          that was never heard, and where all signals agree (always for one client; for `model-diff` also for two).

    alpha: as a share of eta_0.
    seed: the run's.
    signals: float64 [N, num_rounds], for each client the newest last; NaN where there is none. A client that was absent
        keeps those it has.
    """

    policy: RatePolicy
    alpha: float
    seed: int
    signals: np.ndarray

    @classmethod
    def of(cls, recipe: Recipe) -> "Rates":
        """Before the first round."""
        personalise, num_clients = recipe.personalise, recipe.partition.num_clients
        policy = POLICIES[personalise.policy]
        share = 1.0 if personalise.alpha_unit == "relative" else 1 / recipe.first_rate
        signals = np.full((num_clients, policy.num_rounds), nan)
        return cls(policy, personalise.alpha * share, recipe.run.seed, signals)

    def factor(self, round_: int, client: int) -> float:
        """1 + alpha Phi_i: a client's rate in `round_` as a multiple of the round's.

        Cost: that of `deviations` once a state, then a hash.
        """
        if round_ < self.policy.num_rounds:
            return 1.0
        key = noise.derive_key(self.seed, "rate", round=round_, client=client)
        return 1 + self.alpha * self.policy.phi(float(self._phi[client]), key)

    def measured(self, losses: Signals, distances: Callable[[], Signals]) -> dict[int, float]:
        """What is to be recorded of a finished round: finite numbers, exact in JSON, by client.

        Args:
            losses: training losses of the clients whose replies counted. One that is not finite, since all steps were
                skipped, says nothing: neither does then the client's distance.
            distances: gives those of `seedtune.fed.distances`; called only where the policy reads them.
        """
        if self.policy.signal is None:
            return {}
        signals = distances() if self.policy.signal == "distances" else losses
        return {client: float(s) for client, s in signals.items() if isfinite(s) and isfinite(losses[client])}

    def after(self, recorded: Signals) -> "Rates":
        """The state after a round that recorded this. Cost: a copy of N num_rounds numbers."""
        if not recorded:
            return self
        clients, signals = list(recorded), self.signals.copy()
        signals[clients, :-1] = signals[clients, 1:]
        signals[clients, -1] = list(recorded.values())
        return replace(self, signals=signals)

    @cached_property
    def _phi(self) -> np.ndarray:
        return deviations(self.signals)


def deviations(signals: np.ndarray) -> np.ndarray:
    """Phi of each client, float64 [N]: how far the mean of its signals lies from all clients' mean, at most 1.

    Clients without a signal have Phi 0 and do not count in the mean. Signals may be as large as float64 goes.

    Args:
        signals: float64 [N, R], finite, or NaN where there is none.

    >>> deviations(np.array([[1.0], [2.0], [6.0], [np.nan]])).round(3).tolist()
    [-0.667, -0.333, 1.0, 0.0]
    """
    known, phi = ~np.isnan(signals), np.zeros(len(signals))
    heard, largest = known.any(1), np.abs(signals[known]).max(initial=0.0)
    if largest == 0:
        return phi
    scaled = np.where(known, signals / largest, 0.0)[heard]
    means = scaled.sum(1) / known[heard].sum(1)
    gaps = means - means.mean()
    widest = np.abs(gaps).max()
    if widest > _AGREEMENT:
        phi[heard] = gaps / widest
    return phi
