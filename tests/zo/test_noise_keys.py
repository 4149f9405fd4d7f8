"""Keys: the known ones, never the same for different arguments, checked ranges."""

import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.zo.noise import derive_key

ANSWERS = json.loads((Path(__file__).parents[1] / "known_answers" / "noise.json").read_text())


def test_derived_keys_are_the_known_ones():
    for known in ANSWERS["keys"]:
        run_seed, purpose, round, client, step, direction, block = known["arguments"]
        got = derive_key(run_seed, purpose, round=round, client=client, step=step, direction=direction, block=block)
        assert got == known["key"]


def test_neighbouring_arguments_have_keys_of_their_own():
    """DeComFL's formula gives (17, 0) and (16, 1) one seed; here no two of 20,000 arguments share a key."""
    clients = (None, 0, 1, 16, 17)
    grid = product(
        (0, 16, 17), ("a", "aa", "batch", "direction"), (0, 1, 16, 17), clients, range(3), range(5), range(6)
    )
    keys = [
        derive_key(seed, purpose, round=round, client=client, step=step, direction=direction, block=block)
        for seed, purpose, round, client, step, direction, block in grid
    ]
    assert len(set(keys)) == len(keys) > 20_000


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.text(min_size=1, max_size=20))
@settings(max_examples=50)
def test_every_argument_matters(seed, value, purpose):
    def key(**changed):
        given = {
            "run_seed": seed,
            "purpose": purpose,
            "round": 0,
            "client": None,
            "step": 0,
            "direction": 0,
            "block": 0,
        }
        return derive_key(**(given | changed))

    keys = [key(), key(purpose=purpose + "\0"), key(client=value), key(run_seed=(seed + 1) % 2**63)]
    keys += [key(**{name: value + (value < 2**62)}) for name in ("round", "step", "direction", "block")]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["run_seed", "round", "client", "step", "direction", "block"])
@pytest.mark.parametrize("value", [-1, 2**63])
def test_derive_key_checks_ranges(name, value):
    with pytest.raises(ValueError, match=rf"derive_key: {name} = {value}: must be from 0 to 2\^63 - 1"):
        derive_key(**({"run_seed": 0, "purpose": "x"} | {name: value}))


def test_derive_key_needs_a_purpose():
    with pytest.raises(ValueError, match="derive_key: purpose is empty: say what the key is for"):
        derive_key(0, "")
