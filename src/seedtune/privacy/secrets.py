"""Secrets that stay where they are made, and the random numbers that follow from them.

Noise that hides data, and samples whose secrecy is accounted for, cannot follow from the run's public seed. They follow
from 32 bytes of the operating system, kept in a file that only its owner may read, so that a resumed run draws again
what the interrupted one drew. The server keeps its own beside the run; a client's is in what it remembers of the run.

A stream is ChaCha20 under a key that BLAKE2b derives from the secret and from what the stream is for. For noise, that
includes the very numbers that it is added to: a second release of other numbers under the same name has other noise,
and the difference of the two tells nothing that two releases would not.
"""

import os
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..errors import ConfigError, RunStoreError, install_hint

SECRET = "secret"
NUM_BYTES = 32


def new_secret() -> bytes:
    return os.urandom(NUM_BYTES)


def keep_secret(folder: Path, secret: bytes) -> None:
    """Writes the secret of a folder, mode 0600, on the disk when this returns; in place of one that was there."""
    path = folder / SECRET
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(descriptor)


def secret_of(folder: Path) -> bytes:
    """The secret that a folder keeps.

    Raises:
        RunStoreError: it is not there, damaged, or others may read it.
    """
    path = folder / SECRET
    try:
        mode, secret = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise RunStoreError(
            f"{path}: the secret of a private run cannot be read ({error.strerror}): without it, its noise and samples "
            f"cannot be drawn again; put it back, or start another run"
        ) from None
    if mode & 0o077:
        raise RunStoreError(f"{path}: others may read it (mode {mode & 0o777:o}); a secret needs mode 600")
    if len(secret) != NUM_BYTES:
        raise RunStoreError(f"{path}: has {len(secret)} bytes where a secret has {NUM_BYTES}: it is damaged")
    return secret


def words(secret: bytes, purpose: str, count: int, *numbers: int, given: bytes = b"") -> np.ndarray:
    """`count` uniform 64-bit words, uint64, that follow from the arguments and from nothing else.

    numbers: what tells uses of one purpose apart, such as round and client; from -1 up to 2^63 - 1.

    Raises:
        ConfigError: the library `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
    except ImportError:
        raise ConfigError(
            f"privacy.unit: noise is drawn by the library cryptography, not installed: {install_hint('privacy')}"
        ) from None
    label = purpose.encode()
    packed = len(label).to_bytes(8, "little") + label + len(numbers).to_bytes(8, "little")
    key = blake2b(packed + np.array(numbers, "<i8").tobytes() + given, key=secret, digest_size=32).digest()
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()  # a key is used once: no nonce is needed
    return np.frombuffer(stream.update(bytes(8 * count)), "<u8")
