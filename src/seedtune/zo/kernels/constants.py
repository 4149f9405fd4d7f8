"""The numbers that the noise contract fixes: layout and polynomials. See `seedtune.zo.noise` for what they mean.

Changing one changes every direction ever drawn: then `seedtune.zo.noise.VERSION` changes too, and so do the same
numbers in `compiled_vectors.h`.
"""

GRANULE = 128
GAUSSIAN_LANES = 32
ROUNDING_LANES = 16

RADEMACHER_STREAM = 0
GAUSSIAN_STREAM = 1
ROUNDING_STREAM = 2

PHILOX_M0 = 0xD2511F53
PHILOX_M1 = 0xCD9E8D57
PHILOX_W0 = 0x9E3779B9
PHILOX_W1 = 0xBB67AE85

SQRT_HALF_BITS = 0x3F3504F3
LN2 = 0.6931471805599453
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
QUARTER_PI = 0.7853981633974483
SIN = (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
COS = (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)
