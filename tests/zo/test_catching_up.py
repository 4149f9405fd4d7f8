"""What a replay will take is counted from the records alone, and priced by this machine's pace."""

import math
from dataclasses import replace

import pytest
from tiny_trajectories import HEADER, SHARED, SPACE, START, lived

from seedtune.space import copied
from seedtune.zo import noise
from seedtune.zo.catching_up import CatchingUp, Pace, catching_up, pace_here
from seedtune.zo.expansion import Split
from seedtune.zo.noise import Distribution
from seedtune.zo.trajectory import path, round_updates, since_last_snapshot
from seedtune.zo.update import apply

SPLIT = Split("nested", 1, 2, "leave-one-out", 0.5, "1")


@pytest.mark.parametrize("header", [HEADER, SHARED, replace(HEADER, split=SPLIT)], ids=["own", "shared", "split"])
def test_the_counts_are_what_the_kernels_are_asked_for(header, monkeypatch):
    asked = {"values": 0, "rounded": 0}

    def spy(weights, start, keys, coefficients, ends, rounding_keys, distribution):
        asked["values"] += len(keys) * weights.numel()
        asked["rounded"] += len(ends) * weights.numel()

    records = path(lived(header)[0])
    monkeypatch.setattr(noise, "accumulate_updates", spy)
    for some in (records[:2], records[3:]):
        asked.update(values=0, rounded=0)
        found = catching_up(SPACE, header, some)
        apply(SPACE, copied(START), [u for each in some for u in round_updates(header, each)], header.distribution)
        assert asked == {"values": found.num_values, "rounded": found.num_rounded}
        assert found.weight_bytes == sum(tensor.nbytes for tensor in START.values()) and found.dtype == "bfloat16"
    assert catching_up(SPACE, header, records[:2]).num_values > 0
    assert catching_up(SPACE, header, since_last_snapshot(records)) == catching_up(SPACE, header, records[3:])


def test_nothing_missed_costs_nothing():
    nothing = catching_up(SPACE, HEADER, ())
    assert (nothing.num_directions, nothing.num_values, nothing.num_rounded) == (0, 0, 0)
    assert nothing.seconds(Pace(1.0, 1.0)) == 0 and nothing.break_even(Pace(1.0, 1.0), 0) == math.inf


def test_seconds_and_the_link_over_which_the_weights_arrive_as_soon():
    ahead, pace = CatchingUp(10, 2_000, 600, 5_000, "float16"), Pace(1e-3, 5e-3)
    assert ahead.seconds(pace) == pytest.approx(5.0)
    assert ahead.break_even(pace, 1_000) == pytest.approx(800.0)
    assert ahead.break_even(pace, 6_000) == 0  # the records alone are longer: any link


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_pace_is_measured(dtype, monkeypatch):
    from seedtune.zo import catching_up as module

    monkeypatch.setattr(module, "_COUNT", 2**12)
    pace = pace_here(Distribution.GAUSSIAN, dtype)
    assert 0 < pace.value < 1 and pace.rounding >= 0 and (pace.rounding == 0 or dtype != "float32")
