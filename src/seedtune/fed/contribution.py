"""What a client adds to a secure sum, and what the server reads out of one.

    COUNTS     whole numbers: 1, whether there is a loss, forwards, floating-point operations, ...
    FIGURES    weight w_i, loss, mean square of the projected gradients
    body       upload = "scalars":  w_i, or 0 where a step was skipped, of each scalar; then w_i times the scalar
               upload = "weights":  w_i (theta_i - theta) of each tuned parameter, theta those of the round's start

Figures and body are coded in fixed point (`privacy.fixed_point`). A number of the body beyond the range is the client's
error, since it would move weights; a figure for the metrics is cut to the range. From the sums follow the same means as
from single replies: over the clients that did not skip a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..config import Recipe
from ..errors import MessageError
from ..privacy.fixed_point import WORD, FixedPoint
from ..space import Space, Weights
from .client import Site, root_mean_square
from .messages import Order, Reply, unpack_weights
from .reach import check_reach
from .replies import share_of

COUNTS = ("clients", "with_loss", "with_scalars", "num_forwards", "num_flops", "num_prefix_flops", "num_skipped")
FIGURES = ("weight", "loss", "square")


@dataclass(frozen=True)
class Total:
    """Sums over clients. body: float64, as laid out above."""

    clients: int
    with_loss: int
    with_scalars: int
    num_forwards: int
    num_flops: int
    num_prefix_flops: int
    num_skipped: int
    weight: float
    loss: float
    square: float
    body: np.ndarray

    @property
    def mean_loss(self) -> float:
        """Over the clients with a finite one, NaN where there is none."""
        return self.loss / self.with_loss if self.with_loss else float("nan")

    @property
    def scalar_rms(self) -> float:
        """Of the projected gradients, NaN where none was finite."""
        return float(np.sqrt(self.square / self.with_scalars)) if self.with_scalars else float("nan")


def num_words(recipe: Recipe, space: Space) -> int:
    """How many a client of this recipe adds."""
    scalars = 2 * recipe.federation.local_steps * recipe.num_scalars
    body = scalars if recipe.federation.upload == "scalars" else space.num_parameters
    return len(COUNTS) + len(FIGURES) + body


def words_of(site: Site, order: Order, reply: Reply, code: FixedPoint) -> np.ndarray:
    """A client's part, uint64 [num_words].

    Memory: for weights, 16 bytes a tuned parameter.

    Raises:
        NotFinite: a number that would move weights and is not finite, or beyond what is coded or can be applied.
    """
    counts = np.minimum(np.array(_counts(reply), np.int64), 2**62 // code.num_parts)
    figures = (share_of(site.recipe, reply), reply.loss, _mean_square(reply))
    cut = np.clip(np.nan_to_num(figures, nan=0.0), -code.limit, code.limit)
    return np.concatenate([counts.view(WORD), code.encoded(cut), code.encoded(body_of(site, order, reply))])


def body_of(site: Site, order: Order, reply: Reply) -> np.ndarray:
    """What of a client's part moves weights, float64: clipped and weighted, not coded yet."""
    weight = share_of(site.recipe, reply)
    if reply.weights:
        moved, start = unpack_weights(reply.weights, site.perturber.space), site.replica.weights
        deltas = [
            (moved[spec.name].double() - start[spec.name].double()).cpu() for spec in site.perturber.space.tensors
        ]
        return torch.cat([delta.view(-1) for delta in deltas]).mul_(weight).numpy()
    if not site.private:  # of a private run the sum is checked: what one client has must not decide whether it answers
        check_reach(site.header, site.perturber.space, (order.rate, None), f"client {order.client} has", reply.scalars)
    scalars = reply.scalars.astype(np.float64).ravel()
    is_there = ~np.isnan(scalars)
    return weight * np.concatenate([is_there, np.where(is_there, scalars, 0.0)])


def total_of(words: np.ndarray, num_clients: int, code: FixedPoint) -> Total:
    """The sums that words say.

    Raises:
        MessageError: words that are not the sum of so many clients' parts: some client lied about its masks.
    """
    counts, figures, body = np.split(words, [len(COUNTS), len(COUNTS) + len(FIGURES)])
    numbers = dict(zip(COUNTS, counts.view(np.int64).tolist(), strict=True))
    numbers |= zip(FIGURES, code.decoded(figures).tolist(), strict=True)
    total = Total(**numbers, body=code.decoded(body))
    if total.clients != num_clients or total.weight <= 0:
        raise MessageError(
            f"a sum of {num_clients} clients says that it is of {total.clients}: a client's masks or shares are not "
            "what it said"
        )
    return total


def mean_scalars(total: Total, shape: Sequence[int]) -> np.ndarray:
    """Float32 [H, P], the mean over those that did not skip; NaN where all did."""
    weight, weighted = total.body.reshape(2, *shape)
    return np.where(weight > 0, weighted / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)


def voted(total: Total, shape: Sequence[int]) -> np.ndarray:
    """Float32 [H, P], the sign that most clients see, 0 in a tie; NaN where all skipped."""
    weight, weighted = total.body.reshape(2, *shape)
    return np.where(weight > 0, np.sign(weighted), np.nan).astype(np.float32)


def mean_deltas(total: Total, space: Space) -> Weights:
    """By tensor, how far the clients' weights moved in the mean, float64."""
    mean, out, first = torch.from_numpy(total.body / total.weight), {}, 0
    for spec in space.tensors:
        out[spec.name] = mean[first : first + spec.num_elements].view(spec.shape)
        first += spec.num_elements
    return out


def _counts(reply: Reply) -> tuple[int, ...]:
    has_loss, has_scalars = np.isfinite(reply.loss), np.isfinite(_mean_square(reply))
    flops = reply.num_flops, reply.num_prefix_flops
    return 1, int(has_loss), int(has_scalars), reply.num_forwards, *flops, reply.num_skipped


def _mean_square(reply: Reply) -> float:
    """Of the projected gradients, NaN where none is finite."""
    rms = root_mean_square(reply.scalars) if reply.scalar_rms is None else reply.scalar_rms
    return float("nan") if rms is None else rms**2
