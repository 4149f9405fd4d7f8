"""Gaussian noise on a grid.

The sum is taken in whole multiples of a power of two, so it is exact in any order. The noise is float64, from words of
a cryptographic stream, and what is released is rounded to multiples of another power of two, of about a thousandth of
the noise. So its last bits do not tell the sum, as those of a floating-point sampler's output do (Mironov 2012, "On
significance of the least significant bits for differential privacy"). What stays open: the sampler is a float64
approximation of a Gaussian (Box-Muller on 64-bit words: nothing lies beyond 9.5 standard deviations, and the chance of
a point of the grid is right to about float64's precision, not exactly), and the time that drawing takes is not hidden.
"""

from math import floor, log2

import numpy as np

MOST_DEVIATIONS = 9.6
"""Beyond which no value of `gaussian` lies."""
_FINENESS = 2.0**-10  # of a released value, in standard deviations of its noise


def power_of_two_below(value: float) -> float:
    """The largest power of two that is not above a positive value.

    >>> power_of_two_below(3.0), power_of_two_below(0.25)
    (2.0, 0.25)
    """
    return 2.0 ** floor(log2(value))


def gaussian(words: np.ndarray) -> np.ndarray:
    """Standard normal values, float64 [n], from 64-bit words [2 n] (Box and Muller 1958)."""
    first, second = words.astype(np.float64).reshape(2, -1) * 2.0**-64
    return np.sqrt(-2 * np.log(np.maximum(first, 2.0**-65))) * np.cos(2 * np.pi * second)


def noisy(values: np.ndarray, standard_deviation: float, words: np.ndarray) -> np.ndarray:
    """Values plus Gaussian noise, rounded to the grid; float64, in their shape.

    words: two for each value.
    """
    step = grid_below(standard_deviation)
    drawn = gaussian(words).reshape(values.shape)
    return np.rint((values + standard_deviation * drawn) / step) * step


def noisy_share(values: np.ndarray, standard_deviation: float, step: float, words: np.ndarray) -> np.ndarray:
    """Values plus a Gaussian rounded to multiples of `step`, float64, in their shape.

    The values are multiples of `step` themselves, so a sum of shares is the sum of the values plus a sum of rounded
    Gaussians, to the bit: the grid on which it lies tells nothing of the values.

    Args:
        standard_deviation: of one share, at least 2^10 steps: rounding then changes its variance by less than 1e-7.
        words: two for each value.
    """
    return values + np.rint(standard_deviation * gaussian(words).reshape(values.shape) / step) * step


def grid_below(standard_deviation: float) -> float:
    """Return the grid, a power of two, to which noise of this size is rounded."""
    return power_of_two_below(standard_deviation * _FINENESS)
