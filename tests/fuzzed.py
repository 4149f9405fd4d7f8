"""How long decoders are tried, and well-formed values with something wrong in them.

`make fuzz` sets SEEDTUNE_FUZZ, a multiple of the examples that the test suite tries.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from seedtune.errors import SeedtuneError
from seedtune.foreign_text import MOST_MESSAGE

TIMES = int(os.environ.get("SEEDTUNE_FUZZ", "1"))
SLOW = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)

plain = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4)
    | st.binary(max_size=24) | st.sampled_from([0, 1, -1, 2**31 - 1, 2**31, 0.0, 1e308, float("nan"), b"", ""])
)  # fmt: skip
junk = st.recursive(plain, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
json_junk = st.recursive(
    plain.filter(lambda value: not isinstance(value, bytes)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def fuzzed(num_examples: int) -> Callable[[Callable], Callable]:
    """A test with that many examples, or `TIMES` as many; marked, so that `make fuzz` finds it."""

    def decorated(test: Callable) -> Callable:
        limits = settings(max_examples=num_examples * TIMES, deadline=None, suppress_health_check=SLOW)
        return pytest.mark.fuzz(limits(test))

    return decorated


@contextmanager
def no_foreign_error(name: str) -> Iterator[None]:
    """Takes success, or an error of ours of at most 2,000 printable characters."""
    try:
        yield
    except SeedtuneError as error:
        assert 0 < len(str(error)) <= MOST_MESSAGE and str(error).isprintable(), (name, str(error)[:100])


def torn(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with one changed, some cut off, left out or put in, or others in their place."""
    place = st.integers(0, max(0, len(data) - 1))
    return (
        st.tuples(place, st.integers(1, 255)).map(
            lambda at: data[: at[0]] + bytes([data[at[0]] ^ at[1]]) + data[at[0] + 1 :]
        )
        | place.map(lambda at: data[:at])
        | st.tuples(place, place).map(lambda at: data[: min(at)] + data[max(at) :])
        | st.tuples(place, st.binary(min_size=1, max_size=8)).map(lambda at: data[: at[0]] + at[1] + data[at[0] :])
        | st.binary(max_size=40)
    )


WILD = ("[" * 100_000, "9" * 5000, "1e400", "-1", "1.5", "true", "null", "NaN", '"\\ud800"', '"\\u0000"',
        '"\\u001b[31m\\u202e\\n"', json.dumps("x" * 100_000), "{" + '"a":{' * 50_000)  # fmt: skip
"""JSON values that are hard on whoever reads them."""


def wild_json(tree: Any) -> st.SearchStrategy[bytes]:
    """JSON in which one value at the top, or the whole, is hard to read."""
    wild = st.sampled_from(WILD)
    if not isinstance(tree, dict) or not tree:
        return wild.map(str.encode)
    plain = {name: json.dumps(value) for name, value in tree.items()}
    changed = st.tuples(st.sampled_from(sorted(tree)), wild).map(lambda at: plain | {at[0]: at[1]})
    text = changed.map(lambda texts: "{" + ", ".join(f"{json.dumps(k)}: {v}" for k, v in texts.items()) + "}")
    return (text | wild).map(str.encode)


@st.composite
def spoiled(draw: st.DrawFn, tree: Any, junk: st.SearchStrategy = junk, most: int = 3) -> Any:
    """`tree` (lists, dictionaries and plain values) with one to `most` of its nodes replaced, left out or repeated."""
    for _ in range(draw(st.integers(1, most))):
        tree = draw(_once(tree, junk))
    return tree


@st.composite
def _once(draw: st.DrawFn, tree: Any, junk: st.SearchStrategy) -> Any:
    """One change, at this node or below it."""
    if not isinstance(tree, (list, dict)) or not tree or draw(st.integers(0, 9)) == 0:
        return draw(_near(tree) | junk)
    place = draw(st.sampled_from(range(len(tree)) if isinstance(tree, list) else sorted(tree)))
    what = draw(st.sampled_from(["below", "below", "below", "leave out", "repeat"]))
    if isinstance(tree, dict):
        changed = {place: draw(_once(tree[place], junk))} if what != "leave out" else {}
        return {name: value for name, value in tree.items() if name != place} | changed
    middle = {"below": [draw(_once(tree[place], junk))], "leave out": [], "repeat": [tree[place]] * 2}[what]
    return [*tree[:place], *middle, *tree[place + 1 :]]


def _near(value: Any) -> st.SearchStrategy:
    """What a value could be by a small mistake."""
    if isinstance(value, bytes) and value:
        return st.integers(0, len(value) - 1).flatmap(
            lambda at: st.integers(1, 255).map(lambda by: value[:at] + bytes([value[at] ^ by]) + value[at + 1 :])
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return st.nothing()
    whole = (max(-(2**63), min(near, 2**64 - 1)) for near in (value + 1, value - 1, -value))  # what msgpack can say
    return st.sampled_from([*whole, value * 1e30, float(value)])
