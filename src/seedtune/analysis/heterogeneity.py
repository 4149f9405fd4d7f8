"""Do the signals by which FedMeZO tells clients apart see how unlike they are?

How unlike they are is known by construction: a Dirichlet partition of concentration alpha, and each client's own
distance, the total variation between its labels (a text task's groups) and everyone's. Against these are held, client
by client at the same weights, the paper's two signals (loss, and distance of the update from the mean update:
`seedtune.fed.personalise`), as one round of the recipe would give them, and what its theory speaks of:

    |grad f - grad f_i|^2 <= c_h |grad f|^2 + sigma_h^2
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..assembly import Experiment
from ..data.examples import Task
from ..data.keyed import client_batch_indices, keyed_permutation
from ..data.partition import partition
from ..errors import ConfigError, DataError
from ..fed.client import Site, local_round
from ..fed.messages import Order, Reply
from ..fed.seed_scalar import SeedScalar
from ..fed.server import Server
from ..sections import PartitionConfig
from ..zo import noise
from .finding import Cost, Finding, Tell, in_silence, plain
from .gradients import dissimilarity, gram_of
from .intervals import Interval, bootstrap
from .spectrum import scipy_part
from .subject import ProbedLoss, Tensors, about, dot, in_batches, key_of, probed_loss

SIGNALS = ("loss", "update distance", "gradient distance")


@dataclass(frozen=True)
class HeterogeneityOptions:
    """alphas: Dirichlet concentrations. examples: of each client, for its gradient. points: weights at which gradients
    are compared, the first being the model's own."""

    alphas: tuple[float, ...] = (0.1, 1.0, 10.0)
    examples: int = 16
    points: int = 3


@dataclass(frozen=True)
class Federation:
    """One partition, measured. By client, float64 [N]: `distance` of its labels from everyone's; `signals` by name.

    apart: |grad f_i - grad f|^2 at each point, [points, N]. squares: |grad f|^2 at each, [points].
    """

    alpha: float
    distance: np.ndarray
    signals: Mapping[str, np.ndarray]
    apart: np.ndarray
    squares: np.ndarray


def heterogeneity(experiment: Experiment, options: HeterogeneityOptions, tell: Tell = in_silence) -> Finding:
    """Rank correlations of signals with the known heterogeneity, and c_h and sigma_h^2, by alpha.

    Cost, a partition: each client's local steps of one round, and its gradient at each point. Memory: two gradients a
    client.

    Raises:
        ConfigError: a recipe whose clients send weights. DataError: one label, or a partition that cannot be dealt.
    """
    recipe = experiment.recipe
    if recipe.federation.upload != "scalars":
        raise ConfigError(
            f"probe heterogeneity: federation.upload = {recipe.federation.upload!r}: it measures local steps that are "
            "told in scalars: --set federation.upload=scalars"
        )
    cost, measured = Cost(), []
    for alpha in options.alphas:
        measured.append(_measured(experiment, alpha, options, cost, tell))
    key = key_of(recipe, "bootstrap")
    values = _pooled(measured, key)
    tables = {
        "by alpha": [_row(each, key) for each in measured],
        "rank correlation with the distance of labels": [_correlations(each, key) for each in measured],
    }
    chosen = {"clients": recipe.partition.num_clients, "examples": options.examples, "points": options.points}
    return Finding("heterogeneity", about(experiment) | chosen, values, tables, plain(vars(cost)), _NOTES)


def _measured(
    experiment: Experiment, alpha: float, options: HeterogeneityOptions, cost: Cost, tell: Tell
) -> Federation:
    clients = _dealt(experiment, alpha)
    replies, distances = _one_round(experiment, alpha, clients, tell)
    cost.forwards += sum(reply.num_forwards for reply in replies)
    apart, squares = _gradients(experiment, alpha, clients, options, cost, tell)
    signals = {"loss": np.array([reply.loss for reply in replies]), "update distance": distances,
               "gradient distance": apart[0]}  # fmt: skip
    return Federation(alpha, label_distances(labels_of(experiment.task), clients), signals, apart, squares)


def _dealt(experiment: Experiment, alpha: float) -> tuple[np.ndarray, ...]:
    recipe = experiment.recipe
    given = {"kind": "dirichlet", "alpha": alpha, "min_examples": max(2, recipe.partition.min_examples)}
    config = PartitionConfig(**recipe.partition.model_dump() | given)
    return partition(experiment.task.train, config, noise.derive_key(recipe.run.seed, "partition"))


def labels_of(task: Task) -> np.ndarray:
    """Of each training example, as a number: its label, or its group where there is none.

    Raises:
        DataError: all are the same.
    """
    kinds = [example.group if example.label is None else example.label for example in task.train]
    numbers = np.unique(kinds, return_inverse=True)[1]
    if numbers.max(initial=0) == 0:
        raise DataError(f"task {task.name!r}: all training examples have one label or group: no partition of them is "
                        "unlike another")  # fmt: skip
    return numbers


def label_distances(labels: np.ndarray, clients: Sequence[np.ndarray]) -> np.ndarray:
    """Total variation between each client's labels and those of all clients together, float64 [N], in [0, 1).

    >>> label_distances(np.array([0, 0, 1, 1]), [np.array([0, 1]), np.array([2, 3])]).tolist()
    [0.5, 0.5]
    """
    shares = [np.bincount(labels[own], minlength=labels.max() + 1) / len(own) for own in clients]
    everyone = np.bincount(labels[np.concatenate(clients)], minlength=labels.max() + 1)
    return np.abs(np.array(shares) - everyone / everyone.sum()).sum(1) / 2


def _one_round(
    experiment: Experiment, alpha: float, clients: Sequence[np.ndarray], tell: Tell
) -> tuple[list[Reply], np.ndarray]:
    """(the replies of a first round of these clients, how far each one's update lies from the mean update)."""
    recipe, start = experiment.recipe, experiment.site
    server = Server.at_start(recipe, start.header, experiment.space, start.replica)

    def batch(client: int, key: int):
        own, size = clients[client], recipe.federation.batch_size
        chosen = own[client_batch_indices(key, len(own), size)]
        return in_batches(experiment, chosen, len(chosen))[0]

    site: Site = replace(start, batch=batch, num_examples=lambda client: len(clients[client]))
    replies = []
    for client in range(len(clients)):
        tell(f"local steps, alpha = {alpha:g}", client, len(clients))
        replies.append(local_round(site, Order(0, client, site.replica.digest, server.rate)))
    distances = SeedScalar().distances(server, replies)
    return replies, np.array([distances[client] for client in range(len(clients))])


def _gradients(
    experiment: Experiment, alpha: float, clients: Sequence[np.ndarray], options: HeterogeneityOptions, cost: Cost,
    tell: Tell,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(|grad f_i - grad f|^2 at each point, [points, N]; |grad f|^2, [points]).

    Points lie on the way that full gradient steps take: each a quarter of Polyak's step, F / |grad f|^2, which would
    take a linear loss to zero. The weights are afterwards what they were.
    """
    weights = np.array([len(own) for own in clients], np.float64)
    weights /= weights.sum()
    losses = _halves(experiment, clients, options.examples)
    start = {name: tensor.clone() for name, tensor in experiment.site.replica.weights.items()}
    apart, squares = [], []
    try:
        for point in range(options.points):
            tell(f"gradients of clients, alpha = {alpha:g}", point, options.points)
            gradients = [each.gradient() for each in losses]
            found, squared = dissimilarity(gram_of(gradients), weights)
            apart.append(found)
            squares.append(squared)
            cost.gradients += len(losses)
            if point + 1 < options.points:
                _descend(experiment, gradients, weights, losses)
    finally:
        for name, tensor in experiment.site.replica.weights.items():
            tensor.copy_(start[name])
    return np.array(apart), np.array(squares)


def _halves(experiment: Experiment, clients: Sequence[np.ndarray], num_examples: int) -> list[ProbedLoss]:
    """The losses of all clients' first halves of `num_examples` keyed examples, then those of their second halves."""
    chosen = []
    for client, own in enumerate(clients):
        key = key_of(experiment.recipe, "client examples", client=client)
        drawn = own[keyed_permutation(key, len(own))[:num_examples]]
        chosen.append((drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]))
    parts = [half[side] for side in (0, 1) for half in chosen]
    return [probed_loss(experiment, in_batches(experiment, part, len(part))) for part in parts]


def _descend(
    experiment: Experiment, gradients: Sequence[Tensors], weights: np.ndarray, losses: Sequence[ProbedLoss]
) -> None:
    shares = np.concatenate([weights, weights]) / 2
    mean: Tensors = {}
    for name in gradients[0]:
        terms = (float(share) * each[name] for share, each in zip(shares, gradients, strict=True))
        mean[name] = sum(terms, torch.zeros(()))
    value = float(sum(share * each.at([None])[0] for share, each in zip(shares, losses, strict=True)))
    step = 0.25 * value / max(dot(mean, mean), 1e-30)
    for name, tensor in experiment.site.replica.weights.items():
        tensor.sub_((step * mean[name]).to(tensor.dtype))


def rank_correlation(one: np.ndarray, other: np.ndarray, key: int) -> Interval:
    """Spearman's, with a bootstrap's interval over the units; no number where one side is constant."""
    return bootstrap(lambda chosen: spearman(one[chosen], other[chosen]), len(one), key)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """The rank correlation; NaN where one side is constant, or has a value that is not finite.

    >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.3, 0.2]))
    0.5
    """
    sides = one, other
    if not all(np.isfinite(side).all() for side in sides) or any(np.ptp(side) == 0 for side in sides):
        return float("nan")
    left, right = (_ranks(side) - (len(side) + 1) / 2 for side in sides)
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def unlikeness(apart: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """(c_h, sigma_h^2): the line c_h x + sigma_h^2 with both at least 0 that is nearest, by least squares, to the
    clients' mean of |grad f_i - grad f|^2 over x = |grad f|^2 at each point.

    >>> c, s = unlikeness(np.array([[3.0, 5.0], [5.0, 7.0]]), np.array([1.0, 2.0]))
    >>> round(c, 6), round(s, 6)
    (2.0, 2.0)
    """
    sides = np.stack([squares, np.ones_like(squares)], 1)
    found = scipy_part("optimize").nnls(sides, apart.mean(1))[0]
    return float(found[0]), float(found[1])


def _row(found: Federation, key: int) -> dict[str, Any]:
    count = len(found.distance)

    def part(place: int) -> Interval:
        return bootstrap(lambda chosen: unlikeness(found.apart[:, chosen], found.squares)[place], count, key, 200)

    losses, distances = found.signals["loss"], found.signals["update distance"]
    return {
        "alpha": found.alpha, "distance of labels": float(found.distance.mean()),
        "loss, standard deviation": float(losses.std()), "update distance": float(distances.mean()),
        "gradient distance / |grad f|^2": float(found.apart[0].mean() / found.squares[0]),
        "c_h": part(0), "sigma_h^2": part(1),
    }  # fmt: skip


def _correlations(found: Federation, key: int) -> dict[str, Any]:
    ranked = {name: rank_correlation(found.signals[name], found.distance, key) for name in SIGNALS}
    return {"alpha": found.alpha, **ranked}


def _pooled(measured: Sequence[Federation], key: int) -> dict[str, Any]:
    """Over the clients of all partitions: each signal against the distance of labels, and against alpha."""
    alphas = np.concatenate([np.full(len(each.distance), each.alpha) for each in measured])
    distance = np.concatenate([each.distance for each in measured])
    values: dict[str, Any] = {}
    for name in SIGNALS:
        signal = np.concatenate([each.signals[name] for each in measured])
        values[f"{name} and distance of labels"] = rank_correlation(signal, distance, key)
        values[f"{name} and alpha"] = rank_correlation(signal, alphas, key)
    return values


_NOTES = (
    "correlations are Spearman's over clients; their intervals: 90 %, bootstrap over clients. A signal that sees "
    "heterogeneity rises with the distance of labels and falls with alpha",
    "loss and update distance are those of one round of the recipe's local steps, from the same weights for all "
    "partitions; the update distance of clients with directions of their own is mostly that of the directions",
    "gradient distance is |grad f_i - grad f|^2 from inner products of two halves of each client's examples, so that "
    "few examples do not look like heterogeneity; it may be below 0 by chance",
    "c_h and sigma_h^2: a line with both at least 0 through the clients' mean gradient distance over |grad f|^2, at as "
    "many weights as 'points'; the theory asks for a bound at all weights and for every client, which is larger",
)
