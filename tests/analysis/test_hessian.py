"""Products, traces and eigenvalues against the whole Hessian of a tiny model."""

from functools import partial

import numpy as np
import pytest
import tiny_runs
import torch
from small_subjects import experiment_of, whole_hessian

from seedtune.analysis.finding import in_silence
from seedtune.analysis.hessian import blocks_of, hessian_of, operator_of
from seedtune.analysis.intervals import student
from seedtune.analysis.spectrum import top_eigenvalues
from seedtune.analysis.subject import batches_of, probed_loss
from seedtune.analysis.trace import by_forwards, by_products
from seedtune.models.objective import loss


@pytest.fixture(scope="module")
def found(tiny_model, tiny_table):
    """(experiment, its probed loss, the whole Hessian)."""
    experiment = experiment_of(partial(tiny_runs.recipe, tiny_model, tiny_table))
    probed = probed_loss(experiment, batches_of(experiment, 6, 4, 5))
    return experiment, probed, whole_hessian(probed)


def test_products_are_those_of_the_whole_hessian(found):
    experiment, probed, whole = found
    with hessian_of(probed) as hessian:
        times, size = operator_of(hessian, experiment.model.trainable)
        vector = torch.linspace(-1, 1, size)
        assert (times(vector).double() - whole @ vector.double()).norm() < 1e-5 * (whole @ vector.double()).norm()
        block, rows = operator_of(hessian, experiment.model.trainable[1:2])
        part = whole[32:544, 32:544] @ vector[:rows].double()
        assert (block(vector[:rows]).double() - part).norm() < 1e-5 * part.norm()
    assert probed.cost.hessian_products == 2 and not any(p.requires_grad for p in probed.parameters().values())


def test_largest_eigenvalues_are_numpys(found):
    experiment, probed, whole = found
    exact = np.linalg.eigvalsh(whole.numpy())
    exact = exact[np.argsort(-np.abs(exact))]
    with hessian_of(probed) as hessian:
        times, size = operator_of(hessian, experiment.model.trainable)
        top = top_eigenvalues(times, size, 4, key=3)
        again = top_eigenvalues(times, size, 4, key=3)
        gain, rows = operator_of(hessian, experiment.model.trainable[:1])
        formed = top_eigenvalues(gain, rows, 3, key=3)
    assert top == again
    for each, value in zip(top, exact, strict=False):
        assert abs(each.value - value) < 1e-4 * abs(exact[0]) and each.residual < 1e-2 * abs(exact[0])
    inner = np.linalg.eigvalsh(whole[:32, :32].numpy())
    assert np.allclose([abs(each.value) for each in formed], np.sort(np.abs(inner))[::-1][:3], rtol=1e-3)


def test_traces_lie_in_their_intervals_as_often_as_these_say(found):
    experiment, probed, whole = found
    blocks, trainable = blocks_of(experiment.model.module, experiment.model.trainable), experiment.model.trainable
    assert list(blocks) == ["layer 0", "layer 1", "behind the layers"] and sum(map(len, blocks.values())) == 3
    with hessian_of(probed) as hessian:
        samples = by_products(probed, hessian, range(1, 121), blocks, in_silence)
    places = {trainable[0]: (0, 32), trainable[1]: (32, 544), trainable[2]: (544, 576)}
    exact = {label: whole[slice(*places[name])][:, slice(*places[name])].trace() for label, (name,) in blocks.items()}
    assert sum(exact.values()) == pytest.approx(float(whole.trace()))
    assert student(samples.whole).contains(float(whole.trace()))
    assert student(samples.squares).value == pytest.approx(float(whole.square().sum()), rel=0.1)
    for values, truth in [(samples.whole, whole.trace()), *((samples.blocks[b], exact[b]) for b in exact)]:
        tries = [student(part).contains(float(truth)) for part in values.reshape(15, 8)]
        assert sum(tries) >= 10  # 90 % of 15 is 13.5; fewer than 10 have a chance of 0.2 %


def test_forwards_alone_give_the_same_samples(found):
    experiment, probed, whole = found
    keys = range(1, 41)
    with hessian_of(probed) as hessian:
        samples = by_products(probed, hessian, keys, {"all": experiment.model.trainable}, in_silence)
    before = probed.cost.forwards
    differences = by_forwards(probed, keys, 1e-2, in_silence)
    assert probed.cost.forwards - before == 81
    assert np.abs(differences - samples.whole).max() < 0.05 * samples.whole.std()
    assert student(differences).contains(float(whole.trace()))


def test_a_sum_over_batches_is_weighted_by_examples(found):
    experiment, probed, _ = found
    together = probed_loss(experiment, batches_of(experiment, 6, 6, 5))
    assert [batch.num_examples for batch in probed.batches] == [4, 2]
    assert probed.at([None])[0] == pytest.approx(float(loss(experiment.model, together.batches[0])), rel=1e-5)
    one, other = probed.gradient(), together.gradient()
    for name, part in one.items():
        torch.testing.assert_close(part, other[name], rtol=1e-4, atol=1e-6)
