"""Fixtures for all rooms: where the shared data sets and models lie."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets (`tasks/`) and small real models (`models/`); without it the test is skipped."""
    path = Path(os.environ.get("SEEDTUNE_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip("no shared data: set SEEDTUNE_SHARED_DATA to the folder with tasks/ and models/")
    return path
