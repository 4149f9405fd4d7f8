"""Shamir's secrets joined with weights that are kept, against the library that made the shares."""

import os
import random

import pytest
from Crypto.Protocol.SecretSharing import Shamir

from seedtune.errors import MessageError
from seedtune.privacy.shares import _FIELD, _inverse, _product, _weights, joined, split


@pytest.mark.parametrize(("threshold", "num_shares"), [(2, 2), (2, 3), (7, 10), (12, 40)])
def test_any_threshold_of_shares_give_what_the_library_gives(threshold, num_shares):
    draw = random.Random(threshold)
    for _ in range(4):
        secret = os.urandom(16)
        shares = split(secret, threshold, num_shares)
        came = {place: shares[place] for place in draw.sample(range(num_shares), threshold)}
        assert joined(came, threshold) == secret
        came[min(came)] = os.urandom(16)  # an altered share: the same other secret
        assert joined(came, threshold) == Shamir.combine([(place + 1, share) for place, share in came.items()])


def test_secrets_that_begin_with_zeros_keep_their_length():
    for secret in (bytes(16), bytes(15) + b"\x01", b"\x80" + bytes(15), b"\xff" * 16):
        assert joined(dict(enumerate(split(secret, 3, 5))), 3) == secret


def test_only_the_first_places_count_and_weights_are_kept():
    secret = os.urandom(16)
    shares = dict(enumerate(split(secret, 3, 6)))
    shares[5] = bytes(16)
    _weights.cache_clear()
    assert [joined(shares, 3) for _ in range(5)] == [secret] * 5
    assert _weights.cache_info().misses == 1 and _weights.cache_info().hits == 4
    with pytest.raises(MessageError, match="2 shares of a secret are there, 3 are needed"):
        joined({0: shares[0], 4: shares[4]}, 3)


def test_the_field_has_inverses_and_products_that_distribute():
    draw = random.Random(0)
    for _ in range(50):
        a, b, c = (draw.randrange(1, 1 << 128) for _ in range(3))
        assert _product(a, b) == _product(b, a) and _product(a, b ^ c) == _product(a, b) ^ _product(a, c)
        assert _product(_inverse(a), a) == 1 and _product(a, 1) == a
    assert _product(1 << 127, 2) == _FIELD ^ (1 << 128)
