"""Differential privacy of a run as one frozen plan: what is clipped, who adds which noise, what a round is worth.

The released value of a round is one vector of scalars, projected gradients along public directions; they are all that a
round takes from private data, as in DPZero (arXiv 2310.09639) and DP-ZO (arXiv 2401.04343), which clip and noise the
scalar in place of a gradient. What is clipped is the L2 norm of the whole vector over P directions and H local steps,
since its coordinates come from the same data (P directions in one clipped vector: DP-AggZO, Bao et al., USENIX Security
2025).

**Sensitivity.** Let a unit's contribution be v_u, |v_u| <= C by clipping, and the released vector a function of
S = sum over sampled u of v_u. Where one unit's data is replaced by data that contributes nothing ("zero-out": Kairouz
et al. 2021, arXiv 2103.00039, Definition 1.1; the number of units is public), S moves by at most C. Where one unit is
replaced by another ("replace-one"), S moves by at most 2 C. Gaussian noise of standard deviation z C in each coordinate
is then a Gaussian mechanism with noise multiplier z, or z / 2.

    unit "client"    v_u = clip(all H P scalars of the client's round). Its local steps follow from its own data and
                     from what is public, so the round is one mechanism, whatever H is.
    unit "example"   v_u = clip(the P scalars of the example's own loss). H = 1 only: with more steps, one example moves
                     the weights at which all others are measured next, and no clipping bounds that.

**Noise** is "central": the server, which is trusted, adds it once to the sum over all clients; or "local": each client
adds it to what it sends, so the server is not trusted either. Or it comes in "shares": each client adds a Gaussian of
standard deviation z C / sqrt(m) to what it adds to a secure sum, of which the server sees the total alone. With at
least m clients that add their share, the total carries the noise of the central mechanism, or more. Shares are rounded
to a grid on which the clipped values lie too (`noise.noisy_share`), so sums in fixed point are exact; what a sum of
rounded Gaussians differs from a Gaussian by, at 2^10 steps a deviation, is as little as in `noise` (Kairouz, Liu and
Steinke 2021, arXiv 2102.06387, Proposition 4, for discrete Gaussians).

**Sampling.** "none" claims no amplification: who takes part may be known to all. "poisson" and "fixed-size" do, so who
took part has to be a secret (`secrets`), and is drawn as accounted: each unit by itself with probability q, or exactly
m of n. What is sampled are clients (unit "client") or each client's examples (unit "example").

| sampling | neighbours | event of a round |
|---|---|---|
| none | zero-out | Gaussian(z) |
| poisson | zero-out | PoissonSampled(q, Gaussian(z)) |
| fixed-size | replace-one | SampledWithoutReplacement(n, m, Gaussian(z / 2)) |

Every round counts as one event for every unit, also a round in which clients failed, stayed away or were not asked.
What may not be combined with this is said in `rules`; epsilon is `accounting`'s.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from ..config import Recipe
from . import clipping
from .noise import grid_below
from .sum_plan import threshold

LEAST_NOISE = 0.05
"""Noise multiplier below which nothing is accounted: a round of it is worth an epsilon of hundreds."""


@dataclass(frozen=True)
class Plan:
    """What is promised, and what a round costs.

    clip: C, in units of a projected gradient. noise_multiplier: z, the noise's standard deviation as a multiple of C.
    population, sample: how many units a round samples from, at least, and how many it takes (in the mean, for Poisson
        sampling); equal where nothing is sampled.
    denominator: what a noisy sum is divided by, the same in every round: the contributions that are expected in it.
    num_sharing: m, clients of a secure sum that are counted on to add their shares of the noise.
    """

    unit: Literal["client", "example"]
    clip: float
    noise: Literal["central", "local", "shares"]
    noise_multiplier: float
    sampling: Literal["none", "poisson", "fixed-size"]
    population: int
    sample: int
    denominator: int
    num_rounds: int
    delta: float
    target_epsilon: float
    num_sharing: int = 1

    @classmethod
    def of(cls, recipe: Recipe) -> "Plan | None":
        """The plan of a recipe that the rules allow; None where it has no privacy."""
        privacy, federation, partition = recipe.privacy, recipe.federation, recipe.partition
        if privacy.unit == "none":
            return None
        cohort = federation.cohort_size or partition.num_clients
        population, sample, each = partition.num_clients, cohort, 1
        if privacy.unit == "example":
            population, sample, each = partition.min_examples, federation.batch_size, federation.batch_size
        if privacy.sampling == "none":
            population = sample
        denominator = each if privacy.noise == "local" else each * cohort
        return cls(
            privacy.unit, privacy.clip, privacy.noise, privacy.noise_multiplier, privacy.sampling, population, sample,
            denominator, federation.num_rounds, privacy.delta, privacy.target_epsilon,
            (privacy.min_honest or threshold(recipe)) if privacy.noise == "shares" else 1,
        )  # fmt: skip

    @property
    def trusts_server(self) -> bool:
        """Whether clients send what they contribute without noise of their own."""
        return self.noise == "central"

    @property
    def share_deviation(self) -> float:
        """Standard deviation of one client's share of the noise."""
        return self.standard_deviation / sqrt(self.num_sharing)

    @property
    def share_step(self) -> float:
        """The grid of shares, a power of two: clipped values are multiples of it."""
        return min(grid_below(self.share_deviation), clipping.grid(self.clip))

    @property
    def standard_deviation(self) -> float:
        """Of the noise in each coordinate of the sum, before it is divided."""
        return self.noise_multiplier * self.clip

    @property
    def hides_cohort(self) -> bool:
        """Whether nobody but the server may learn who was asked, or how many."""
        return self.unit == "client" and self.sampling != "none"

    @property
    def hides_batches(self) -> bool:
        """Whether nobody but the client may learn which of its examples were used."""
        return self.unit == "example" and self.sampling != "none"

    @property
    def neighbours(self) -> str:
        """How two data sets differ that are hard to tell apart."""
        return "replace-one" if self.sampling == "fixed-size" else "zero-out"
