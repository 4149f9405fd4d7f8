"""Secrets stay with their owner and are found again; a folder that has lost one says so."""

import pytest

from seedtune.errors import RunStoreError
from seedtune.privacy.secrets import keep_secret, new_secret, secret_of


def test_a_secret_is_kept_for_its_owner_alone(tmp_path):
    secret = new_secret()
    keep_secret(tmp_path, secret)
    assert secret_of(tmp_path) == secret and secret != new_secret()
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    keep_secret(tmp_path, bytes(32))
    assert secret_of(tmp_path) == bytes(32)


def test_a_secret_that_is_missing_open_or_damaged_is_refused(tmp_path):
    with pytest.raises(RunStoreError, match="cannot be read"):
        secret_of(tmp_path)
    keep_secret(tmp_path, b"short")
    with pytest.raises(RunStoreError, match="has 5 bytes where a secret has 32"):
        secret_of(tmp_path)
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(RunStoreError, match="others may read it \\(mode 644\\)"):
        secret_of(tmp_path)
