"""Did the clients' own learning rates follow how unlike the clients are? Read from a run's records; nothing is trained.

How unlike a client is, is known by construction: the total variation between its labels and everyone's
(`heterogeneity.label_distances`). Its rate in every round follows from what the rounds before it recorded
(`fed.rates`), and is folded again here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..assembly import TASK_KEY
from ..config import Recipe
from ..data.partition import partition
from ..data.tasks import load_task
from ..fed.rates import before_each
from ..metrics import told_of
from ..models.load import kind_of
from ..zo.noise import derive_key
from .heterogeneity import label_distances, labels_of, spearman


@dataclass(frozen=True)
class Followed:
    """rate, loss: Spearman's correlations over clients with the distance of labels, the mean over a run's rounds; NaN
    where no round has any. By client, float64 [N]: `distance` of labels, and the mean over rounds of the loss and of
    what the policy recorded of it (NaN where it records nothing)."""

    rate: float
    loss: float
    distance: np.ndarray
    mean_loss: np.ndarray
    mean_signal: np.ndarray


def rate_signals(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> Followed:
    """rows: the run's metrics, the one before its first round included.

    Cost: reads the task's data and deals it; loads no model.

    Raises:
        DataError: a task whose examples have one label.
    """
    task = load_task(recipe.task, TASK_KEY, kind_of(recipe.model))
    clients = partition(task.train, recipe.partition, derive_key(recipe.run.seed, "partition"))
    distance = label_distances(labels_of(task), clients)
    by_rate, losses, signals = [], [], []
    before = before_each(recipe, [told_of(row) for row in rows[1:]])
    for round_, (row, rates) in enumerate(zip(rows[1:], before, strict=True)):
        factors = [rates.factor(round_, client) for client in range(len(clients))]
        by_rate.append(spearman(np.array(factors), distance))
        losses.append(_by_client(row["losses"], len(clients)))
        signals.append(_by_client(row["signals"], len(clients)))
    heard = [np.isfinite(one) for one in losses]
    by_loss = [spearman(one[known], distance[known]) for one, known in zip(losses, heard, strict=True) if known.any()]
    return Followed(_mean(by_rate), _mean(by_loss), distance, _means(losses), _means(signals))


def _by_client(found: Mapping[str, float | None], count: int) -> np.ndarray:
    return np.array([found.get(str(client)) for client in range(count)], np.float64)


def _means(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([_mean(column) for column in np.array(rows).T])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
