"""What the coming round's learning rates follow from: one fold over what finished rounds recorded.

What clients measured of their steps (`auto`) is kept whatever happens. Signals of how unlike the clients are
(`personalise`) go back with the weights where a surge takes rounds back: what a loss was on weights that are no longer
there says nothing. The server folds it in a run (`rounds.after`), and so does whoever reads a run's records
(`before_each`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..config import Recipe
from .auto import AutoRates, Slopes
from .personalise import Rates, Signals


@dataclass(frozen=True)
class Told:
    """What a finished round recorded of the next rates. back_to: the number of rounds that led to the weights to which
    it was taken back, if it was."""

    signals: Signals
    slopes: Slopes
    back_to: int | None = None


@dataclass(frozen=True)
class NextRates:
    """Between two rounds. auto: None where the recipe gives the rate. state: the number of rounds that led to the
    weights. kept: `personal` as it was at earlier states to which a surge may lead back."""

    personal: Rates
    auto: AutoRates | None
    state: int = 0
    kept: Mapping[int, Rates] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> "NextRates":
        """Before the first round."""
        return cls(Rates.of(recipe), AutoRates.of(recipe))

    def factor(self, round_: int, client: int) -> float:
        """A client's own rate in the coming round as a multiple of the round's."""
        own = self.auto.factor(client) if self.auto else 1.0
        return self.personal.factor(round_, client) * own

    def after(self, round_: int, told: Told) -> "NextRates":
        kept, auto = {**self.kept, self.state: self.personal}, self.auto and self.auto.after(told.slopes)
        if told.back_to is None:
            return NextRates(self.personal.after(told.signals), auto, round_ + 1, kept)
        return NextRates(kept[told.back_to], auto, told.back_to, kept)

    def keeping(self, states: Collection[int | None]) -> "NextRates":
        """Without what no surge leads back to any more."""
        return replace(self, kept={state: rates for state, rates in self.kept.items() if state in states})


def before_each(recipe: Recipe, rounds: Sequence[Told]) -> Iterator[NextRates]:
    """What the server had before each round of a run, to the bit, from what the rounds recorded."""
    ahead, returned_to = NextRates.of(recipe), {told.back_to for told in rounds}
    for round_, told in enumerate(rounds):
        yield ahead
        ahead = ahead.after(round_, told).keeping(returned_to)
