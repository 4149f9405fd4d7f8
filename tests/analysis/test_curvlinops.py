"""Products and traces against curvlinops, an independent implementation, where it is installed."""

import warnings

import pytest
import tiny_runs
import torch
from small_subjects import experiment_of, forward_mode

from seedtune.analysis.hessian import hessian_of, operator_of
from seedtune.analysis.spectrum import top_eigenvalues
from seedtune.analysis.subject import batches_of, probed_loss
from seedtune.models.objective import scores

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # linear_operator, which it imports, compiles with torch.jit
    curvlinops = pytest.importorskip("curvlinops", exc_type=ImportError)


class _Scores(torch.nn.Module):
    """Logits of one batch; what curvlinops passes in are its row numbers."""

    def __init__(self, model, batch):
        super().__init__()
        self.inner, self._model, self._batch = model.module, model, batch

    def forward(self, rows):
        return scores(self._model, self._batch)


QUERY = "encoder.encoder.layer.1.attention.self.query.weight"


def test_products_and_eigenvalues_are_those_of_curvlinops(tiny_recipe, tmp_path):
    """On an encoder, since the activation of the tiny causal model has no derivative forwards over backwards."""
    model = {"name": str(tiny_runs.save_encoder(tmp_path / "encoder")), "head": "fresh", "trainable": [QUERY, "head.*"]}
    experiment = experiment_of(tiny_recipe, model=model)
    probed = probed_loss(experiment, batches_of(experiment, 8, 8, 5))
    (batch,), parameters = probed.batches, list(probed.parameters().values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    data = [(torch.arange(8), batch.labels)]
    loss = torch.nn.CrossEntropyLoss()
    with forward_mode():
        theirs = curvlinops.HessianLinearOperator(_Scores(experiment.model, batch), loss, parameters, data)
        columns = theirs @ torch.eye(theirs.shape[0])
    with hessian_of(probed) as hessian:
        times, size = operator_of(hessian, experiment.model.trainable)
        ours = torch.stack([times(unit) for unit in torch.eye(size)[:40]], 1)
        top = top_eigenvalues(times, size, 2, key=1)
    torch.testing.assert_close(ours, columns[:, :40], rtol=1e-3, atol=1e-5 * float(columns.abs().max()))
    exact = torch.linalg.eigvalsh((columns + columns.T).double() / 2)
    assert abs(top[0].value) == pytest.approx(float(exact.abs().max()), rel=1e-4)
