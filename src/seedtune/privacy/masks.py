"""Keys that two clients share, and the streams of words that their masks are: X25519, HKDF-SHA256, ChaCha20.

A secret is a seed of 16 random bytes, since that is what Shamir's shares are of; the private key of X25519 is derived
from it (128 bits of security, as X25519 itself has). Thin calls of `cryptography`; no protocol is here.
"""

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import MessageError
from .fixed_point import WORD
from .public import KEY_BYTES

_FROM_THE_START = bytes(16)  # counter and nonce of ChaCha20: a key makes one stream


def derived(secret: bytes, salt: bytes, purpose: str, *numbers: int, bound: bytes = b"") -> bytes:
    """A key of 32 bytes for one purpose: HKDF-SHA256; other arguments give keys that tell nothing of each other.

    bound: what the key holds for beside its numbers, such as the digest of an order.
    """
    info = f"seedtune secure sum 2: {' '.join([purpose, *map(str, numbers)])}: ".encode() + bound
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(secret)


def private_key(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derived(seed, b"", "private key"))


def public_key(seed: bytes) -> bytes:
    """What a peer needs to agree on a key with the holder of `seed`, 32 bytes."""
    return private_key(seed).public_key().public_bytes_raw()


def agreed(own: X25519PrivateKey, peer: bytes) -> bytes:
    """What both sides come to, 32 bytes, not uniform: to be put through `derived`.

    Raises:
        MessageError: a public key that gives the same with everybody.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise MessageError("a peer's public key is not one of X25519") from None


def words(key: bytes, count: int) -> np.ndarray:
    """The first `count` words of a key's stream, uint64: unlike chance to nobody who lacks the key.

    Cost: about a nanosecond a byte.
    """
    stream = Cipher(ChaCha20(key, _FROM_THE_START), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(count * WORD.itemsize)), WORD)
