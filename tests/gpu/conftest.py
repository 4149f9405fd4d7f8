"""Where the checks of the GPU run: on a GPU, or not at all.

Under TRITON_INTERPRET=1 those of the kernels run on a CPU, through Triton's interpreter, without a GPU.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # for tiny_runs, also where the conftest.py above is not read
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the Triton kernels run."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if IS_INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available() or torch.version.hip:
        pytest.skip("no NVIDIA GPU")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def gpu(device) -> torch.device:
    if device.type == "cpu":
        pytest.skip("needs a GPU, not an interpreter")
    return device


@pytest.fixture(autouse=True)
def overflowing() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where a GPU does not."""
    with np.errstate(all="ignore"):
        yield
