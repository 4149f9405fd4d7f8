"""Writes noise.json: the noise contract once more, a coordinate at a time, from the formulas of `seedtune.zo.noise`.

Independent of the package on purpose: plain Python integers, and numpy float32 scalars for floats.
Run: python tests/known_answers/make_noise.py
"""

import json
import struct
from hashlib import blake2b
from pathlib import Path

from numpy import float32, sqrt

LOG = (0.070376836292, -0.11514610310, 0.11676998740, -0.12420140846, 0.14249322787)
LOG += (-0.16668057665, 0.20000714765, -0.24999993993, 0.33333331174)
SIN = tuple(map(float32, (-0.16666654611, 0.0083321608736, -0.00019515295891)))
COS = tuple(map(float32, (0.04166664568298827, -0.001388731625493765, 0.00002443315711809948)))
ONE, HALF = float32(1), float32(0.5)


def bits(x: float32) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def floated(pattern: int) -> float32:
    return float32(struct.unpack("<f", struct.pack("<I", pattern))[0])


def philox(key: int, counter: int, stream: int) -> list[int]:
    k = [key % 2**32, key >> 32]
    x = [counter % 2**32, counter >> 32, stream, 0]
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(b >> 32) ^ x[1] ^ k[0], b % 2**32, (a >> 32) ^ x[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def rademacher(key: int, i: int) -> float32:
    g, p = divmod(i, 128)
    return float32(1 - 2 * (philox(key, g, 0)[p // 32] >> p % 32 & 1))


def gaussian(key: int, i: int) -> float32:
    g, p = divmod(i, 128)
    words = philox(key, 32 * g + p % 32, 1)
    row = p // 32
    return box_muller(words[row // 2 * 2], words[row // 2 * 2 + 1])[row % 2]


def box_muller(a: int, b: int) -> tuple[float32, float32]:
    r = radius(a)
    top = (b >> 8) - (2**24 if b >= 2**31 else 0)
    x = float32(top) * float32(2.0**-23) * float32(0.7853981633974483)
    s = x * x
    sine = x * (ONE + s * (SIN[0] + s * (SIN[1] + s * SIN[2])))
    cosine = (ONE - HALF * s) + (s * s) * (COS[0] + s * (COS[1] + s * COS[2]))
    quarter = (
        ((r, sine), (r, cosine)),
        ((r, cosine), (r, -sine)),
        ((-r, sine), (-r, cosine)),
        ((-r, cosine), (-r, -sine)),
    )
    (r0, z0), (r1, z1) = quarter[b % 4]
    return r0 * z0, r1 * z1


def radius(a: int) -> float32:
    u = (float32(a // 2) + HALF) * float32(2.0**-31)
    exponent = (bits(u) - 0x3F3504F3) >> 23
    f = floated(bits(u) - exponent * 2**23) - ONE
    poly = float32(LOG[0])
    for c in LOG[1:]:
        poly = poly * f + float32(c)
    log = f * f * f * poly - HALF * f * f + f + float32(exponent) * float32(0.6931471805599453)
    return sqrt(float32(-2) * log)


def rounded(x: float32, key: int, i: int, name: str) -> int:
    """Bits of x after keyed stochastic rounding; x is finite and below the largest number."""
    g, p = divmod(i, 128)
    h = p // 16
    r = philox(key, 16 * g + p % 16, 2)[h // 2] >> 16 * (h % 2) & 0xFFFF
    sign, magnitude = bits(x) >> 31, bits(x) % 2**31
    if name == "bfloat16":
        return sign << 15 | (magnitude + r) >> 16
    if abs(x) >= 2**-14:
        return sign << 15 | (magnitude + r // 8 >> 13) - (112 << 10)
    return sign << 15 | int(abs(float(x)) * 2**37) + r // 8 >> 13


def derive(run_seed: int, purpose: str, round: int, client: int | None, step: int, direction: int, block: int) -> int:
    label = purpose.encode()
    whole = struct.pack("<q", len(label)) + label
    whole += struct.pack("<6q", run_seed, round, -1 if client is None else client, step, direction, block)
    return int.from_bytes(blake2b(whole, digest_size=8).digest(), "little")


KEYS = (0, 1, 0x0123456789ABCDEF, 2**64 - 1)
STARTS = (0, 117, 2**32 - 5, 2**39 - 3, 2**62 - 40)
ARGUMENTS = (
    (0, "direction", 0, None, 0, 0, 0),
    (17, "direction", 0, 0, 0, 0, 0),
    (16, "direction", 1, 0, 0, 0, 0),
    (17, "batch", 3, 5, 2, 1, 4),
    (2**63 - 1, "größe", 2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1),
)


def vectors() -> list[dict]:
    draw = {"rademacher": rademacher, "gaussian": gaussian}
    return [
        {"key": key, "start": start, "distribution": name, "bits": [bits(f(key, start + n)) for n in range(40)]}
        for name, f in draw.items()
        for key in KEYS
        for start in STARTS
    ]


def roundings() -> list[dict]:
    numbers = [float32(x) for x in (1.0, -1.001, 0.3337, 3.3e-5, -7.7e-7, 6.1e-5, 0.0, 123.456)]
    return [
        {"key": key, "start": start, "dtype": name, "float32": [bits(x) for x in numbers], "bits": out}
        for name in ("bfloat16", "float16")
        for key in KEYS
        for start in STARTS
        for out in [[rounded(x, key, start + n, name) for n, x in enumerate(numbers)]]
    ]


if __name__ == "__main__":
    derived = [{"arguments": arguments, "key": derive(*arguments)} for arguments in ARGUMENTS]
    answers = {"version": 1, "values": vectors(), "roundings": roundings(), "keys": derived}
    lines = [f'"{name}": {json.dumps(part)}' for name, part in answers.items()]
    text = "{\n" + ",\n".join(lines).replace("}, {", "},\n  {") + "\n}\n"
    Path(__file__).with_name("noise.json").write_text(text)
