import pytest


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch, one_thread):
    """Nothing waits for the disk here; what is synced is tested by itself."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
