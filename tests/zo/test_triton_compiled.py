"""The Triton kernels as compiled for a GPU, on a machine that needs none: what the assembly may and may not hold."""

import os
import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the kernels are interpreted", allow_module_level=True)

import numpy as np
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from seedtune.zo.kernels import triton_cuda

KEYS, FACTORS = np.array([1, 2], np.uint64), np.ones(2, np.float32)
ENDS, ROUNDING_KEYS = np.array([1, 2]), np.array([3, 4], np.uint64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def assembly(monkeypatch, tmp_path):
    """The PTX of each kernel that was called since, compiled as a launch would, but not launched."""
    found: list[str] = []
    run = JITFunction.run

    def compiled(self, *args, warmup, **options):
        found.append(run(self, *args, warmup=True, **options).asm["ptx"])

    target = GPUTarget("cuda", 90, 32)
    device = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: f"none, {target}",
        get_current_stream=lambda device: 0,
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compiled)
    monkeypatch.setattr(driver, "_active", device)
    return found


def test_floats_are_neither_fused_nor_flushed_nor_approximate(assembly):
    """A dtype each, as every conversion is a part of one of them."""
    wide, bfloat16, float16 = (torch.zeros(4096, dtype=dtype) for dtype in DTYPES)
    triton_cuda.perturb_both(bfloat16.clone(), bfloat16.clone(), bfloat16, 2**64 - 1, 128, 1e-3, True)
    triton_cuda.perturb_rows(wide.clone().view(2, -1), wide.view(2, -1), torch.tensor([0, 1]), 5, 3, 1e-3, True)
    triton_cuda.accumulate(float16, 128, KEYS, FACTORS, ENDS, ROUNDING_KEYS, True)
    assert len(assembly) == 3
    for text in assembly:
        assert not re.findall(r"fma|mad\.rn\.f|ftz|approx|div\.full", text)
        assert "add.rn.f32" in text and "sqrt.rn.f32" in text


def test_other_numbers_need_no_other_kernel(assembly):
    """Keys, starts and scales are arguments: a run compiles each kernel once."""
    weights = torch.zeros(4096)
    for key, start, mu in ((1, 0, 1e-3), (2**64 - 1, 2**40, -1.0), (16, 1280, 0.5)):
        triton_cuda.perturb(weights.clone(), weights, key, start, mu, False)
    triton_cuda.perturb(weights[:128].clone(), weights[:128], 1, 0, 1e-3, False)
    assert len(assembly) == 4 and len(set(assembly)) == 1
