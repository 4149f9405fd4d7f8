"""The loss-surge guard: notices that the training loss has left where it was, and says what the likely cause is.

With too large a learning rate the loss of FedMeZO falls, then rises sharply, earlier the larger the rate (Figure 5 of
arXiv 2402.05926). The guard looks for this rise and for losses that are not finite. It is a fold over finished rounds,
so a resumed run's guard knows what the uninterrupted one would. What is done about a surge (`run.on_surge`) happens in
`rounds`; the guard moves no weights and changes nothing while there is no surge.

False alarms, measured on 200 synthetic runs each: the share with at least one in so many rounds.

    training losses, with Gaussian noise                        100     500     2,000 rounds
    3, noise 0.3                                               0.045   0.090   0.235
    from 3 to 1 as 1 + 2 exp(-t / 500), noise 0.3              0.030   0.035   0.150
    the same, noise 15 % of the loss                           0.040   0.070   0.165

Most of those in the first hundred rounds come before the thirtieth, when the noise is known from few rounds. What it
does not see: a rise no faster than its blocks forget, nor one within the noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, sqrt

import numpy as np
import torch

from ..config import Recipe

MAX_LOST = 3
"""After so many rounds in a row of which nothing finite came back a run ends: others would not move it either."""

MAX_BACKOFFS = 10
"""After so many halvings of the learning rate the next surge ends the run, its rounds taken back as before."""

_WINDOW, _BLOCK, _REMEMBERED = 3, 25, 50  # rounds
_NOISE_FACTOR, _LEAST_RISE, _LEAP = 5.0, 0.1, 5.0


@dataclass(frozen=True)
class Seen:
    """What the guard reads of one finished round.

    since: number of rounds that had led to the weights on which it began. loss: mean training loss, NaN where every
    step was skipped, or no client's weights came back finite. scalar_rms: root mean square of the projected gradients,
    NaN where none was finite, and for the first order.
    rate: the round's learning rate.
    """

    since: int
    loss: float
    scalar_rms: float
    rate: float


@dataclass(frozen=True)
class Surge:
    """The loss now and the best level before, in nats; the state (a number of rounds) from which that level was
    measured; the likely cause in words."""

    loss: float
    best: float
    good_state: int
    cause: str

    def __str__(self) -> str:
        if not isfinite(self.loss):
            return f"the training loss is not finite: {self.cause}"
        return f"the training loss rose from {self.best:.3f} to {self.loss:.3f}: {self.cause}"


@dataclass(frozen=True)
class Level:
    """A level of the loss, infinite where none is known, and the state (number of rounds) where it was measured."""

    loss: float = inf
    state: int = 0


@dataclass(frozen=True)
class Guard:
    """What is known after some rounds.

    seen: the last rounds, oldest first. earlier, recent: the best levels of the block of 25 rounds before and of the
    one that began `age` rounds ago, of which the better is compared with: so old luck is forgotten, and no more than
    two states are those to which a surge may lead back, this round or later. surge: set after the round in which a
    surge began. num_backoffs: how often the rate was halved. num_lost: rounds in a row, up to the last, of which
    nothing finite came back.
    """

    recipe: Recipe
    seen: tuple[Seen, ...] = ()
    earlier: Level = Level()
    recent: Level = Level()
    age: int = 0
    is_surging: bool = False
    surge: Surge | None = None
    num_backoffs: int = 0
    num_lost: int = 0

    @property
    def has_diverged(self) -> bool:
        """Whether clients have nothing finite to send any more, or never had in a run of fewer rounds. Where a surge is
        acted on, that comes first."""
        return self.num_lost >= max(1, min(MAX_LOST, self.recipe.federation.num_rounds))

    @property
    def rate_share(self) -> float:
        """What the backoffs have left of the learning rate."""
        return 0.5**self.num_backoffs

    @property
    def level(self) -> float:
        """The best of the last 25 to 50 rounds."""
        return min(self.earlier.loss, self.recent.loss)

    @property
    def good_state(self) -> int:
        """Where that was measured: the weights to which a surge leads back."""
        return self.earlier.state if self.earlier.loss <= self.recent.loss else self.recent.state

    @property
    def good_states(self) -> frozenset[int]:
        """Those that are, or may become, `good_state` without a round that is not there yet."""
        return frozenset((self.earlier.state, self.recent.state))

    def after(self, seen: Seen) -> "Guard":
        """The guard after one more round.

        A surge is a loss that is not finite, two rounds in a row above the best level before, or one round five times
        as far above it. The level is the median of three rounds; above it means by 5 standard deviations of one
        round's loss, as the differences of the last 50 rounds tell them robustly, and by a tenth of the level; in the
        first rounds, whose noise is not known, by the whole level. Cost: that of a median of 50 numbers.
        """
        known = (*self.seen, seen)[-_REMEMBERED:]
        is_surging = not isfinite(seen.loss) or self._has_risen(known)
        surge = Surge(seen.loss, self.level, self.good_state, self._cause(known)) if is_surging else None
        return replace(self._measured(known), seen=known, is_surging=is_surging,
                       surge=None if self.is_surging else surge,
                       num_lost=self.num_lost + 1 if self._is_lost(seen) else 0)  # fmt: skip

    def backed_off(self) -> "Guard":
        """The guard of a run that went back to the good state and goes on with half the rate: it looks anew."""
        good = Level(state=self.good_state)
        return Guard(self.recipe, earlier=good, recent=good, num_backoffs=self.num_backoffs + 1)

    def _is_lost(self, seen: Seen) -> bool:
        """Whether no step of the round had a gradient to go by."""
        return not isfinite(seen.scalar_rms) and (self.recipe.local.order == "zeroth" or not isfinite(seen.loss))

    def _measured(self, known: Sequence[Seen]) -> "Guard":
        """With the level that the last round completes. A block that knows of none does not end."""
        best = min(self.recent, self._last_level(known), key=lambda level: level.loss)
        if self.age + 1 < _BLOCK or not isfinite(best.loss):
            return replace(self, recent=best, age=self.age + 1)
        return replace(self, earlier=best, recent=Level(state=best.state), age=0)

    def _last_level(self, known: Sequence[Seen]) -> Level:
        """The median of the last three rounds; the first loss alone, before there is any."""
        losses, since = [seen.loss for seen in known[-_WINDOW:]], known[-1].since
        if not isfinite(self.level):
            losses = losses[-1:]
        elif len(losses) < _WINDOW:
            return Level()
        return Level(float(np.median(losses)), since) if all(map(isfinite, losses)) else Level()

    def _has_risen(self, known: Sequence[Seen]) -> bool:
        losses = np.array([seen.loss for seen in known if isfinite(seen.loss)])
        if len(losses) < 2:
            return False
        tolerance = self._tolerance(losses[:-2])
        return losses[-2:].min() - self.level > tolerance or losses[-1] - self.level > _LEAP * tolerance

    def _tolerance(self, earlier: np.ndarray) -> float:
        if len(earlier) < _WINDOW:
            return abs(self.level)
        deviation = 1.4826 * float(np.median(np.abs(np.diff(earlier)))) / sqrt(2)
        return max(_NOISE_FACTOR * deviation, _LEAST_RISE * abs(self.level))

    def _cause(self, known: Sequence[Seen]) -> str:
        """The likeliest of: overflow, rounding in the projected gradients, steps that are too long."""
        model, local, mu, last = self.recipe.model, self.recipe.local, self.recipe.mu, known[-1]
        if not isfinite(last.loss) and model.dtype == "float16":
            return "float16 overflows beyond 65,504: use model.dtype = 'bfloat16' or 'float32'"
        before = [seen for seen in known if seen.since <= self.good_state]
        if local.order == "first":
            return "local.learning_rate is likely too large"
        if _is_mostly_rounding(before, mu, model.dtype):
            return (
                f"local.perturbation_scale = {mu:g} is likely too small for {model.dtype}: the "
                f"projected gradients are no larger than the rounding of the losses would make them"
            )
        sound = (before or known)[-1]
        step = sound.rate * sound.scalar_rms / sqrt(self.recipe.num_scalars)
        if step > mu:
            return (
                f"local.learning_rate is likely too large: a local step moves each weight by {step:.1e}, beyond the "
                f"{mu:g} (local.perturbation_scale) at which the loss was looked at"
            )
        return "local.learning_rate is likely too large"


def _is_mostly_rounding(seen: Sequence[Seen], mu: float, dtype: str) -> bool:
    """Whether projected gradients were no larger than rounding of two losses in `dtype` makes them, eps F / sqrt(2) mu.
    The loss itself is float32; what the layers before it lose is the dtype's."""
    rounds = [s for s in seen if isfinite(s.loss) and isfinite(s.scalar_rms)]
    if not rounds:
        return False
    loss, rms = (float(np.median([getattr(s, name) for s in rounds])) for name in ("loss", "scalar_rms"))
    return rms < torch.finfo(getattr(torch, dtype)).eps * abs(loss) / (sqrt(2) * mu)
