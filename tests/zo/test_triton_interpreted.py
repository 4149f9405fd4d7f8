"""The checks of the Triton kernels that need no GPU, through Triton's interpreter: a process must choose it early."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).resolve().parents[2]


def test_the_kernels_give_the_bits_of_the_reference():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--confcutdir=tests/gpu", "tests/gpu"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", found.stdout)[1]) >= 45
