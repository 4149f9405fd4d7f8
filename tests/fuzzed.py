"""How long decoders are tried, and well-formed values with something wrong in them.

`make fuzz` sets SEEDTUNE_FUZZ, a multiple of the examples that the test suite tries.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

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
