"""A secret in n shares, of which any t give it back and fewer say nothing: Shamir's, split through pycryptodome.

Its secrets are of 16 bytes and its shares lie at the points 1 to n of GF(2^128); without its option `ssss`, which is
for another program. A point is a client's place in the roster.

All secrets of a round are joined from the shares of the same clients, so their Lagrange weights are computed once; the
library computes them for each secret, which took nearly all of the server's time. What is joined is what its `combine`
gives, and the tests hold it against that.
"""

from collections.abc import Mapping
from functools import lru_cache

from Crypto.Protocol.SecretSharing import Shamir

from ..errors import MessageError

_FIELD = 1 << 128 | 0b10000111  # x^128 + x^7 + x^2 + x + 1, as the library has it


def split(secret: bytes, threshold: int, num_shares: int) -> list[bytes]:
    """The shares of places 0 to n - 1. Cost: some t n microseconds; 130 ms for 67 of 100."""
    return [share for _, share in Shamir.split(threshold, num_shares, secret, ssss=False)]


def joined(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from shares by place, of which the first `threshold` are used.

    A share that is not one gives another secret: nothing tells, unless the secret can be recognised.
    Cost: 2 ms for 67 shares; 12 ms more where they are of other places than before.

    Raises:
        MessageError: too few.
    """
    if len(shares) < threshold:
        raise MessageError(f"{len(shares)} shares of a secret are there, {threshold} are needed")
    places = tuple(sorted(shares)[:threshold])
    secret = 0
    for place, weight in zip(places, _weights(places), strict=True):
        secret ^= _product(weight, int.from_bytes(shares[place]))
    return secret.to_bytes(16)


@lru_cache(maxsize=8)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """By which each place's share is multiplied: Lagrange's, of a polynomial's value at 0.

    prod x_m / prod (x_j + x_m)  over all m but j,  x = place + 1
    """
    points = [place + 1 for place in places]
    weights = []
    for j, own in enumerate(points):
        above = below = 1
        for other in points[:j] + points[j + 1 :]:
            above, below = _product(above, other), _product(below, own ^ other)
        weights.append(_product(above, _inverse(below)))
    return tuple(weights)


def _product(a: int, b: int) -> int:
    """In GF(2^128). Cost: that of the shorter one's bits if it comes second."""
    found = 0
    while b:
        if b & 1:
            found ^= a
        a <<= 1
        if a >> 128:
            a ^= _FIELD
        b >>= 1
    return found


def _inverse(a: int) -> int:
    """Of what is not 0, by Euclid's algorithm (Hankerson, Menezes and Vanstone 2004, algorithm 2.48).

    >>> _product(_inverse(12345), 12345)
    1
    """
    u, v, left, right = a, _FIELD, 1, 0
    while u != 1:
        shift = u.bit_length() - v.bit_length()
        if shift < 0:
            u, v, left, right, shift = v, u, right, left, -shift
        u ^= v << shift
        left ^= right << shift
    return left
