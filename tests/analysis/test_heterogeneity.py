from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from small_subjects import experiment_of

from seedtune.analysis.gradients import dissimilarity
from seedtune.analysis.heterogeneity import (
    HeterogeneityOptions,
    heterogeneity,
    label_distances,
    rank_correlation,
    unlikeness,
)
from seedtune.errors import ConfigError, DataError
from seedtune.space import digest

OPTIONS = HeterogeneityOptions(alphas=(0.3, 10.0), examples=6, points=2)


def test_clients_of_known_order_are_put_into_it():
    order = np.arange(12.0)
    assert rank_correlation(order, order**3, 1).value == pytest.approx(1)
    assert rank_correlation(order, -order, 1).high == pytest.approx(-1)
    tied = np.array([1.0, 1.0, 2.0, 5.0, 5.0, 7.0])
    assert rank_correlation(tied, order[:6] % 4, 1).value == pytest.approx(spearmanr(tied, order[:6] % 4).statistic)
    mixed = rank_correlation(order, np.roll(order, 3), 1)
    assert mixed == rank_correlation(order, np.roll(order, 3), 1) and mixed.low < mixed.value < mixed.high
    assert np.isnan(rank_correlation(order, 0 * order, 1).value)


def test_dissimilarity_of_noisy_gradients_is_that_of_their_means():
    """Clients 0, 1 and 2 pull apart by 0, 1 and 2 around a common gradient; few examples add noise of 10 times that."""
    rng, weights = np.random.default_rng(1), np.array([0.5, 0.25, 0.25])
    pulls = np.zeros((3, 400))
    pulls[:, 0], pulls[1, 1], pulls[2, 2] = 2.0, 1.0, 2.0
    mean = weights @ pulls
    exact = ((pulls - mean) ** 2).sum(1)
    found = []
    for _ in range(60):
        halves = np.concatenate([pulls, pulls]) + 0.5 * rng.standard_normal((6, 400))
        found.append(dissimilarity(halves @ halves.T, weights))
    apart = np.mean([one for one, _ in found], 0)
    assert np.abs(apart - exact).max() < 0.8  # noise counted as heterogeneity would add some 80
    assert np.mean([squared for _, squared in found]) == pytest.approx(mean @ mean, rel=0.2)


def test_constants_of_unlikeness_are_not_negative():
    squares = np.array([1.0, 2.0, 4.0])
    apart = np.stack([3 * squares + 1, 3 * squares + 3], 1)
    assert unlikeness(apart, squares) == pytest.approx((3.0, 2.0))
    assert unlikeness(-apart, squares) == (0.0, 0.0)
    assert unlikeness(np.ones((3, 2)), squares) == pytest.approx((0.0, 1.0))


def test_distance_of_labels_is_total_variation():
    labels = np.array([0, 0, 1, 1, 2, 2])
    alike = [np.array([0, 2, 4]), np.array([1, 3, 5])]
    assert label_distances(labels, alike).tolist() == pytest.approx([0, 0])
    assert label_distances(labels, [np.array([0, 1]), np.arange(2, 6)]).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_partitions_are_measured_and_weights_put_back(tiny_recipe):
    experiment = experiment_of(tiny_recipe, federation={"local_steps": 2})
    found = heterogeneity(experiment, OPTIONS)
    skewed, even = found.tables["by alpha"]
    assert (skewed["alpha"], even["alpha"]) == (0.3, 10.0)
    assert skewed["distance of labels"] > even["distance of labels"]
    assert skewed["update distance"] > 0 and found.cost["forwards"] == 2 * 4 * 2 * 2
    assert found.cost["gradients"] == 2 * 2 * 8 and len(found.values) == 6
    assert digest(experiment.site.replica.weights) == experiment.site.replica.digest
    again = heterogeneity(experiment_of(tiny_recipe, federation={"local_steps": 2}), OPTIONS)
    assert again.as_json() == found.as_json()


def test_what_has_no_signal_is_refused(tiny_recipe):
    weights = experiment_of(tiny_recipe, federation={"upload": "weights"})
    with pytest.raises(ConfigError, match=r"federation\.upload = 'weights': it measures local steps that are told"):
        heterogeneity(weights, OPTIONS)
    experiment = experiment_of(tiny_recipe)
    alike = replace(experiment.task, train=tuple(replace(each, label=0) for each in experiment.task.train))
    with pytest.raises(DataError, match="all training examples have one label or group"):
        heterogeneity(replace(experiment, task=alike), OPTIONS)
    with pytest.raises(DataError, match=r"partition\.min_examples"):
        heterogeneity(experiment_of(tiny_recipe, partition={"num_clients": 40}), replace(OPTIONS, alphas=(0.01,)))
