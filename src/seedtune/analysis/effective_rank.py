"""How many directions the loss is curved in: tr(H) / |H|, whole and by layer.

What FedMeZO's theory calls the effective rank r (arXiv 2402.05926, assumption of low effective rank) is an upper bound
of tr(H) / |H|_op for a positive semidefinite H. The Hessian of a language model need not be one. So three numbers are
reported: tr(H) / |H|, as the theory has it, in which negative curvature cancels positive; tr|H| / |H|, in which nothing
cancels, by stochastic Lanczos quadrature (`quadrature`); and |H|_F^2 / |H|^2, the stable rank, never above the second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..assembly import Experiment
from .finding import Finding, Tell, in_silence, plain
from .hessian import Hessian, blocks_of, hessian_of, operator_of
from .intervals import Interval, student
from .quadrature import Spectrum, spectrum_of
from .spectrum import Eigenvalue, top_eigenvalues
from .subject import ProbedLoss, about, batches_of, key_of, probed_loss, refuse_quantised
from .trace import TraceSamples, by_forwards, by_products

SCALES = (0.3, 1.0, 3.0)
"""Of the second differences, as multiples of the recipe's perturbation scale."""
_BLOCK_TOLERANCE = 1e-2
ROUNDING = 1e-4
"""A negative eigenvalue of less than this share of the norm may be rounding."""


@dataclass(frozen=True)
class RankOptions:
    """examples: of F. directions: samples of the trace. eigenvalues: how many of the largest in magnitude. scales: mu
    of the second differences; none: `SCALES` times the recipe's. layers: whether each layer's norm is found too.
    starts, steps: random ones, and their Lanczos iteration's, for tr|H|. block_steps: those on each layer's block; 0:
    tr|H| is not found by layer."""

    examples: int = 8
    directions: int = 16
    eigenvalues: int = 5
    scales: tuple[float, ...] = ()
    layers: bool = True
    starts: int = 4
    steps: int = 20
    block_steps: int = 0


@dataclass(frozen=True)
class Curvature:
    """What the products of one Hessian tell. norm: |H|, from the largest eigenvalue in magnitude; its bounds are that
    value's residual. ranks are None where the Hessian is zero."""

    trace: Interval
    squares: Interval
    top: Sequence[Eigenvalue]

    @property
    def norm(self) -> Interval:
        largest, residual = abs(self.top[0].value), self.top[0].residual
        return Interval(largest, max(0.0, largest - residual), largest + residual)

    @property
    def effective_rank(self) -> Interval | None:
        return self.trace.over(self.norm.value) if self.norm.value else None

    @property
    def stable_rank(self) -> Interval | None:
        return self.squares.over(self.norm.value**2) if self.norm.value else None

    @property
    def smallest(self) -> float:
        """The lowest of the eigenvalues found."""
        return min(each.value for each in self.top)


def effective_rank(experiment: Experiment, options: RankOptions, tell: Tell = in_silence) -> Finding:
    """The trace of the Hessian two ways, that of |H|, its largest eigenvalues, and the ranks.

    Forwards run in the recipe's dtype; derivatives in float32, at the same weights.

    Cost, in passes over the examples: 2 M + 1 forwards a scale; M Hessian products for the traces of H, at
    most `starts` times `steps` for that of |H|, and times `block_steps` for that of each layer; and for the eigenvalues
    of the whole and of each layer what `top_eigenvalues` says. Memory: `hessian_of`, and `steps` float32 vectors of the
    tuned tensors' size.

    Raises:
        ConfigError: a quantised base. ModelError: no second derivatives, or a curvature that is not finite.
    """
    refuse_quantised(experiment, "effective-rank")
    recipe = experiment.recipe
    keys = [key_of(recipe, "trace", direction=m) for m in range(options.directions)]
    batches = batches_of(experiment, options.examples, recipe.federation.batch_size, key_of(recipe, "examples"))
    probed = probed_loss(experiment, batches)
    scales = options.scales or tuple(share * recipe.mu for share in SCALES)
    differences = {mu: by_forwards(probed, keys, mu, tell) for mu in sorted(scales)}
    experiment.model.module.float()
    blocks = blocks_of(experiment.model.module, experiment.model.trainable)
    with hessian_of(probed) as hessian:
        samples = by_products(probed, hessian, keys, blocks, tell)
        start = key_of(recipe, "eigenvalues")
        whole = curvature_of(samples, hessian, experiment.model.trainable, options.eigenvalues, start, tell)
        starts = [key_of(recipe, "quadrature", direction=m) for m in range(options.starts)]
        spectrum = spectrum_of(*operator_of(hessian, experiment.model.trainable), starts, options.steps, tell)
        rows = _rows(hessian, samples, blocks, start, starts, options, tell) if options.layers else []
    return _finding(experiment, probed, options, whole, spectrum, samples, differences, rows)


def curvature_of(
    samples: TraceSamples, hessian: Hessian, names: Sequence[str], num_eigenvalues: int, key: int, tell: Tell
) -> Curvature:
    times, size = operator_of(hessian, names)
    before = hessian.cost.hessian_products

    def told(vector):
        tell("largest eigenvalues, Hessian products", int(hessian.cost.hessian_products - before), None)
        return times(vector)

    top = top_eigenvalues(told, size, num_eigenvalues, key)
    return Curvature(student(samples.whole), student(samples.squares), top)


def _rows(
    hessian: Hessian, samples: TraceSamples, blocks: Mapping[str, Sequence[str]], key: int, starts: Sequence[int],
    options: RankOptions, tell: Tell,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row a block: of the diagonal blocks of the Hessian, what couples them left out."""
    rows = []
    for number, (label, names) in enumerate(blocks.items()):
        tell("largest eigenvalue by layer", number, len(blocks))
        times, size = operator_of(hessian, names)
        top = top_eigenvalues(times, size, 1, key, _BLOCK_TOLERANCE)[0]
        trace, norm = student(samples.blocks[label]), abs(top.value)
        rows.append({
            "block": label, "parameters": size, "trace": trace, "largest eigenvalue": top.value,
            "residual": top.residual, "effective rank": trace.over(norm) if norm else None,
        })  # fmt: skip
        if options.block_steps:
            absolute = spectrum_of(times, size, starts, options.block_steps, tell).absolute
            rank = absolute.over(norm) if norm else None
            rows[-1] |= {"trace of |H|, at least": absolute, "effective rank of |H|, at least": rank}
    return rows


def plateau(differences: Mapping[float, np.ndarray]) -> tuple[float, float | None]:
    """(the scale at which second differences are to be believed, the root mean square by which they differ there).

    Of neighbouring scales the two whose samples differ least; the larger of them. There truncation, which grows with
    mu^2, is at most what the two differ by times 1 / (1 - (ratio of scales)^-2), and rounding, which falls with mu^2,
    less than that difference. So it needs no derivative to compare with. One scale alone says nothing: None.
    """
    scales = sorted(differences)
    if len(scales) < 2:
        return scales[0], None
    pairs = pairwise(scales)
    apart = {high: float(np.sqrt(np.mean((differences[high] - differences[low]) ** 2))) for low, high in pairs}
    best = min(apart, key=lambda mu: apart[mu] if np.isfinite(apart[mu]) else np.inf)
    return best, apart[best]


def _finding(
    experiment: Experiment, probed: ProbedLoss, options: RankOptions, whole: Curvature, spectrum: Spectrum,
    samples: TraceSamples, differences: Mapping[float, np.ndarray], rows: list[dict[str, Any]],
) -> Finding:  # fmt: skip
    (mu, apart), norm = plateau(differences), whole.norm.value
    absolute, lowest = spectrum.absolute, min(whole.smallest, spectrum.extremes[0])
    values = {
        "trace": whole.trace, "trace by forwards": student(differences[mu]), "at scale": mu,
        "difference of the two": student(differences[mu] - samples.whole), "scales differ by": apart,
        "largest eigenvalue": whole.top[0].value, "lowest eigenvalue, at most": lowest, "operator norm": whole.norm,
        "trace of |H|, at least": absolute, "the same, half the steps": spectrum.absolute_at_half,
        "squared Frobenius norm": whole.squares, "effective rank": whole.effective_rank,
        "effective rank of |H|, at least": absolute.over(norm) if norm else None, "stable rank": whole.stable_rank,
    }  # fmt: skip
    tables = {
        "eigenvalues of largest magnitude": [
            {"eigenvalue": each.value, "residual": each.residual} for each in whole.top
        ],
        "by layer": rows,
        "trace by forwards": [
            {"mu": scale, "trace": student(found), "less that by products": student(found - samples.whole)}
            for scale, found in differences.items()
        ],
    }  # fmt: skip
    chosen = {"examples": probed.num_examples, "directions": options.directions, "eigenvalues": options.eigenvalues,
              "starts": options.starts, "steps": options.steps}  # fmt: skip
    return Finding("effective-rank", about(experiment) | chosen, values, tables, plain(vars(probed.cost)),
                   notes_of(whole, lowest, options))  # fmt: skip


def notes_of(whole: Curvature, lowest: float, options: RankOptions) -> list[str]:
    """How the numbers are to be read, and what is known of negative curvature: an eigenvalue is at most `lowest`."""
    notes = [
        f"intervals of traces and of the squared Frobenius norm: 90 %, Student's t over {options.directions} random "
        "directions at fixed examples; ranks are these divided by the operator norm, taken as exact",
        "trace of |H|: stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017) with a node at 0, which finds it from "
        f"below, higher with more --steps; interval: 90 %, Student's t over {options.starts} random starts",
        "bounds of the operator norm: the residual of its Lanczos vector",
        "attention ran in its plain mathematical form where derivatives were taken: its fused kernels have no second",
    ]
    if lowest < -ROUNDING * whole.norm.value:
        return [*notes, (
            f"the Hessian is indefinite: it has an eigenvalue of {lowest:.3g} or below. Its trace cancels negative "
            "against positive curvature; nothing cancels in 'effective rank of |H|', which the theory's r must bound "
            "then, nor in 'stable rank', a lower bound of it"
        )]  # fmt: skip
    return [*notes, "no negative curvature was found, which does not prove that there is none"]
