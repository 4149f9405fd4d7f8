"""What a client asks of an order before it computes anything: that the recipe can have led to it.

    round       one of the run's
    rates       those of the recipe's schedule, to the last digits; where clients' rates follow from what rounds measure
                (`personalise`, `auto`), within the bounds that these policies keep
    missed      no more records than rounds went before, each of the size and shape that this recipe makes
    weights     of the tuned space's size; none where secure sums exchange scalars: a client then comes to a state by
                replay alone

Nothing here knows whether records are true: of that, digests and the masks of secure sums (`binding`) take care.
"""

from collections.abc import Iterator
from math import isclose

import torch

from ..config import Recipe
from ..errors import MessageError
from ..space import Space
from ..zo.trajectory import RoundRecord
from .auto import MOST_APART, RATES
from .guard import MAX_BACKOFFS
from .messages import Order, unpack_record
from .personalise import Rates
from .schedule import rate_share_at

_PRECISION = 1e-9  # of a cosine on another machine
_HEADER_BYTES = 2**16  # of packed weights, over the tensors themselves: names and shapes


def check_order(recipe: Recipe, space: Space, order: Order) -> None:
    """Check an order against the recipe. Cost: microseconds.

    Raises:
        MessageError: a round, rate or size that this recipe does not have, with what it has.
    """
    check_sent_weights(recipe, order)
    client, num_rounds = f"client {order.client}", recipe.federation.num_rounds
    if order.round >= num_rounds:
        raise MessageError(f"{client} was asked for round {order.round} of a run of {num_rounds} rounds")
    if len(order.missed) > order.round:
        raise MessageError(f"{client} was told {len(order.missed)} rounds before round {order.round}")
    largest, most = max(map(len, order.missed), default=0), _most_record_bytes(recipe)
    if largest > most:
        raise MessageError(f"{client} was told a round of {largest} bytes, where this recipe's have at most {most}")
    if len(order.weights) > _most_weight_bytes(space):
        raise MessageError(f"{client} was sent {len(order.weights)} bytes of weights, more than the tuned space has")
    _check_rates(recipe, order)


def check_sent_weights(recipe: Recipe, order: Order) -> None:
    """
    Raises:
        MessageError: weights sent whole, where a client takes only states that it can replay.
    """
    if order.weights and recipe.secure_sum.enabled and recipe.federation.upload == "scalars":
        raise MessageError(
            f"client {order.client} was sent whole weights, which it cannot verify: with secure sums of scalars a "
            "client comes to a state by replaying the rounds alone"
        )


def unpacked_records(recipe: Recipe, order: Order) -> Iterator[RoundRecord]:
    """Unpack the rounds that an order tells, each as soon as it is known to be of this recipe's shape.

    Raises:
        MessageError: bytes that are no record, or scalars of another shape.
    """
    asked = (recipe.federation.local_steps, recipe.num_scalars)
    for packed in order.missed:
        record = unpack_record(packed)
        if record.scalars.size and (record.scalars.shape[1:] != asked or len(record.scalars) > _cohort(recipe)):
            raise MessageError(
                f"round {record.round} was told with scalars of shape {record.scalars.shape}, where this recipe's have "
                f"{asked} for each of at most {_cohort(recipe)} clients"
            )
        yield record


def _check_rates(recipe: Recipe, order: Order) -> None:
    """
    Raises:
        MessageError: a learning rate, or a ratio of two blocks', that the recipe does not lead to.
    """
    if order.rate_ratio is not None and not (recipe.is_rate_auto and recipe.is_split):
        raise MessageError(f"client {order.client} was sent a ratio of rates, and this recipe's is fixed")
    low, high = rate_bounds(recipe, order.round, order.client)
    halvings = range(MAX_BACKOFFS + 1) if recipe.run.on_surge == "backoff" else range(1)
    bounds = [(0.5**k * low * (1 - _PRECISION), 0.5**k * high * (1 + _PRECISION)) for k in halvings]
    if not any(least <= order.rate <= most for least, most in bounds):
        expected = f"{low:.6g}" if isclose(low, high) else f"{low:.6g} to {high:.6g}"
        raise MessageError(
            f"client {order.client} was sent the learning rate {order.rate:.6g} for round {order.round}, where the "
            f"recipe's is {expected}"
        )


def rate_bounds(recipe: Recipe, round_: int, client: int) -> tuple[float, float]:
    """Return the least and the largest rate that a client may be sent, before a surge halves it.

    They are equal where the recipe alone gives the rate.
    """
    share = rate_share_at(recipe, round_)
    if recipe.is_rate_auto:
        (least, largest), own = RATES, Rates.of(recipe).alpha
        return least * share / MOST_APART * (1 - own), largest * MOST_APART * (1 + own)
    rates, rate = Rates.of(recipe), recipe.first_rate * share
    if rates.policy.signal is None:
        exact = rate * rates.factor(round_, client)
        return exact, exact
    return rate * (1 - rates.alpha), rate * (1 + rates.alpha)


def _cohort(recipe: Recipe) -> int:
    return recipe.federation.cohort_size or recipe.partition.num_clients


def _most_record_bytes(recipe: Recipe) -> int:
    """Of a packed round: a client's number, its factor and its scalars; and the rest."""
    scalars = recipe.federation.local_steps * recipe.num_scalars
    most = recipe.partition.num_clients if recipe.is_private else _cohort(recipe)  # drawn in secret, it may be larger
    return 256 + most * (4 + 8 + 4 * scalars)


def _most_weight_bytes(space: Space) -> int:
    sizes = (spec.num_elements * getattr(torch, spec.dtype).itemsize for spec in space.tensors)
    return sum(sizes) + _HEADER_BYTES * (1 + len(space.tensors))
