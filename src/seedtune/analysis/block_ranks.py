"""Of how many directions the loss's curvature is, whole and block by block: three ranks that say different things.

    tr(H) / |H|         what FedMeZO's theory bounds by r; curvature of both signs cancels in it
    |H|_F^2 / |H|^2     the stable rank; nothing cancels, and it is never above tr|H| / |H|
    tr|H| / |H|         what r would have to bound where H is indefinite, found from below: nothing cancels

All come from the same products (`quadrature`). A layer's are those of its diagonal block of H; what couples layers is
in the whole alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..assembly import Experiment
from .finding import Tell, in_silence
from .hessian import blocks_of, hessian_of, operator_of
from .quadrature import Spectrum, spectrum_of
from .subject import batches_of, key_of, probed_loss, refuse_quantised

WHOLE = "whole"
LEAST_STEPS = 2  # from which on |H|_F^2 is exact


@dataclass(frozen=True)
class BlockOptions:
    """examples: of F. starts: random ones, that intervals are about. steps: of each start's Lanczos iteration on the
    whole Hessian. block_steps: on each layer's; 0: layers are left out."""

    examples: int = 8
    starts: int = 1
    steps: int = 48
    block_steps: int = 12


def block_ranks(experiment: Experiment, options: BlockOptions, tell: Tell = in_silence) -> dict[str, Mapping[str, Any]]:
    """Numbers and intervals by name, of the whole Hessian of the tuned tensors and of each layer's block.

    Derivatives are taken in float32, of `examples` of the clients' training examples, drawn by the run's seed.

    Cost: `starts` times `steps` Hessian products for the whole, times `block_steps` for each block. Memory:
    `hessian_of`, and `steps` float32 vectors of the tuned tensors' size.

    Raises:
        ConfigError: a quantised base. ModelError: no second derivatives, or a curvature that is not finite.
    """
    refuse_quantised(experiment, "effective-rank")
    recipe, model = experiment.recipe, experiment.model
    batches = batches_of(experiment, options.examples, recipe.federation.batch_size, key_of(recipe, "examples"))
    probed = probed_loss(experiment, batches)
    model.module.float()
    blocks = {WHOLE: model.trainable} | (blocks_of(model.module, model.trainable) if options.block_steps else {})
    keys = [key_of(recipe, "quadrature", direction=m) for m in range(options.starts)]
    found: dict[str, Mapping[str, Any]] = {}
    with hessian_of(probed) as hessian:
        for label, names in blocks.items():
            times, size = operator_of(hessian, names)
            steps = options.steps if label == WHOLE else options.block_steps
            found[label] = ranks_of(spectrum_of(times, size, keys, max(LEAST_STEPS, steps), tell))
    return found


def ranks_of(spectrum: Spectrum) -> dict[str, Any]:
    """Ratios are to |H| as the largest Ritz value, taken as exact; none where H is zero."""
    norm, (lowest, highest) = spectrum.norm, spectrum.extremes
    values = {"parameters": spectrum.size, "trace": spectrum.trace, "norm": norm, "lowest": lowest, "highest": highest}
    if not norm.value:
        return values
    return values | {
        "trace / norm": spectrum.trace.over(norm.value), "stable rank": spectrum.squares.over(norm.value**2),
        "absolute trace / norm, at least": spectrum.absolute.over(norm.value),
        "the same, half the steps": spectrum.absolute_at_half.over(norm.value),
    }  # fmt: skip
