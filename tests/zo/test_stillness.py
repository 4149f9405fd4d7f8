"""A round in which nothing moved names a perturbation scale that would."""

import numpy as np
import pytest
import torch

from seedtune.zo.stillness import explain_stillness, moving_scale

ZEROS = np.zeros((3, 1, 2), np.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_scale_moves_nearly_every_weight(dtype):
    weights = {"w": torch.randn(4096, generator=torch.Generator().manual_seed(0)).to(dtype)}
    scale = moving_scale(weights)
    assert (weights["w"] + torch.tensor(scale, dtype=dtype) != weights["w"]).float().mean() > 0.97
    assert scale < 0.1


def test_it_is_said_only_where_every_scalar_is_zero():
    weights = {"w": torch.ones(8, dtype=torch.bfloat16)}
    assert explain_stillness(ZEROS, weights, 1e-3) == (
        "every projected gradient of the first round is exactly 0: at local.perturbation_scale = 0.001 no weight "
        "moves, or the loss does not depend on what is tuned; try 0.03, or 'auto'"
    )
    assert explain_stillness(ZEROS + np.eye(3, 2, dtype=np.float32)[:, None], weights, 1e-3) == ""
    assert explain_stillness(np.zeros((0, 0, 0), np.float32), weights, 1e-3) == ""
