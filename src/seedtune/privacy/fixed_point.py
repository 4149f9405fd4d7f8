"""Real numbers as integers modulo 2^64: sums of them are exact, in any order, and can be masked.

    code(x) = round(x 2^f) mod 2^64          sum of codes = code of the sum, to n 2^-(f+1)

Guarantee: a sum of up to n codes cannot overflow, since a number beyond the limit is refused and none is clipped. A
sum is then the same integer whatever the masks were and in whatever order it was taken.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import NotFinite

WORD = np.dtype("<u8")
"""Of codes, of masks and of what travels."""


@dataclass(frozen=True)
class FixedPoint:
    """Numbers with `fraction_bits` binary places, of which at most `num_parts` are added.

    >>> money = FixedPoint(fraction_bits=8, num_parts=3)
    >>> money.decoded(money.encoded(np.array([1.25, -7.0])) + money.encoded(np.array([0.5, 1.0]))).tolist()
    [1.75, -6.0]
    """

    fraction_bits: int
    num_parts: int

    @property
    def limit(self) -> float:
        """The largest magnitude of a number: n (limit 2^f + 1/2) < 2^63."""
        return 2.0 ** (62 - self.fraction_bits) / self.num_parts

    @property
    def precision(self) -> float:
        """The most by which a coded number differs from what was given."""
        return 2.0 ** -(self.fraction_bits + 1)

    def encoded(self, values: np.ndarray) -> np.ndarray:
        """Codes, uint64, of float64 numbers of any shape.

        Raises:
            NotFinite: a number that is not finite, or beyond the limit; the first is named.
        """
        if not (fits := np.abs(values) <= self.limit).all():
            first = float(values[~fits].flat[0])
            raise NotFinite(
                f"{first:.3g} cannot be part of a secure sum: with {self.fraction_bits} fraction bits and "
                f"{self.num_parts} clients a number, times its client's weight, lies within {self.limit:.3g}: lower "
                "local.learning_rate, set local.clip, or lower secure_sum.fraction_bits"
            )
        return np.rint(np.ldexp(values, self.fraction_bits)).astype(np.int64).view(WORD)

    def decoded(self, total: np.ndarray) -> np.ndarray:
        """The numbers, float64, of codes or of a sum of them; a sum beyond 53 bits is rounded to nearest."""
        return np.ldexp(total.view(np.int64).astype(np.float64), -self.fraction_bits)
