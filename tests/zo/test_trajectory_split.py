"""Rounds told in scalars of two blocks: read, replayed, and refused where header, record and weights do not agree."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from test_trajectory_file import fails, header_payload, sealed
from tiny_trajectories import HEADER, SHARED, SPACE, START, assert_same, lived, record, written

from seedtune.errors import TrajectoryError
from seedtune.space import copied, digest
from seedtune.zo.expansion import Split
from seedtune.zo.trajectory import check_base, direction_key, replay, round_updates
from seedtune.zo.trajectory_file import header_frame, parse
from seedtune.zo.update import apply

NESTED = Split("nested", 1, 2, "leave-one-out", 0.5, "1")  # block 1 is the bias
SPLITS = {
    "nested": NESTED,
    "no baseline": replace(NESTED, baseline="none", block1="2"),
    "clean-prefix": Split("clean-prefix", 1, 1, "none", 3.0, "1"),
    "one q": Split("nested", 2, 1, "none", 1.0, "1"),
}
SENDERS = {"own": HEADER, "shared": SHARED}


@pytest.fixture(params=SENDERS.values(), ids=SENDERS)
def header(request):
    return request.param


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_replay_to_any_round_is_the_live_state(header, split):
    header = replace(header, split=split)
    records, states, snapshots = lived(header)
    story = parse(written(header, records))
    assert_same(story, header, records)
    for num_rounds in range(len(records) + 1):
        weights = copied(START)
        replay(SPACE, weights, story, num_rounds, snapshots.__getitem__)
        assert digest(weights) == digest(states[num_rounds])
    assert digest(states[-1]) != digest(lived(replace(header, split=None))[1][-1]) or split == SPLITS["one q"]


def test_one_direction_of_block_2_for_each_of_block_1_is_no_split_to_the_bit(header):
    """bfloat16 too: each tensor belongs to one block, so it is rounded once, by the same key."""
    ends = [lived(replace(header, split=split))[1] for split in (None, SPLITS["one q"])]
    assert [digest(state) for state in ends[0]] == [digest(state) for state in ends[1]]


def test_a_round_is_an_update_a_block():
    updates = round_updates(replace(HEADER, split=NESTED), record(6, [1, 4], np.ones((2, 1, 2)) * [3, 1], [0.5, 0.25]))
    key = {(c, p): direction_key(17, 6, c, 0, p) for c in (1, 4) for p in (0, 1)}
    first, second = updates
    assert (first.tensors, second.tensors) == (0b1, ~0b1)
    assert first.keys == (key[1, 0], key[4, 0]) and first.coefficients.tolist() == [-2.0, -1.0]
    assert second.keys == tuple(key.values()) and second.coefficients.tolist() == [-0.5, 0.5, -0.25, 0.25]
    assert first.rounding_key == second.rounding_key
    assert first.coefficients.dtype == second.coefficients.dtype == np.float32


def test_blocks_move_their_own_tensors():
    updates = round_updates(replace(HEADER, split=NESTED), record(6, [1], [[[3, 1]]]))
    for update, name in zip(updates, ("bias", "weight"), strict=True):
        moved = copied(START)
        apply(SPACE, moved, [update], HEADER.distribution)
        assert {n for n in moved if not moved[n].equal(START[n])} == {name}


def test_steps_of_another_split_are_refused():
    for scalars in (np.zeros((1, 2, 3)), np.zeros((1, 2, 1))):
        with pytest.raises(TrajectoryError) as caught:
            round_updates(replace(HEADER, split=NESTED), record(6, [1], scalars))
        assert str(caught.value) == (
            f"round 6: its steps have {scalars.shape[2]} scalars, the split of this run makes 2: the record is not of "
            "this run"
        )


def test_coefficients_of_a_block_beyond_float32_are_refused():
    """Each factor times scalar is a float32, block 1's sum is not."""
    split = replace(NESTED, baseline="none")
    for scalars, is_refused in (([3e38, -3e38], False), ([3e38, 3e38], True)):
        asked = replace(HEADER, split=split), record(6, [1], [[scalars]], [1.0])
        if not is_refused:
            assert len(round_updates(*asked)) == 2
            continue
        with pytest.raises(TrajectoryError, match="round 6: a scalar times its factor is beyond float32"):
            round_updates(*asked)


def test_headers_from_before_splits_have_none():
    payload = header_payload()
    assert parse(sealed(payload)).header.split is None
    older = payload.replace(rb", \"split\": null", b"")
    length = int.from_bytes(payload[:8], "little") - (len(payload) - len(older))
    assert b"split" not in older
    assert parse(sealed(length.to_bytes(8, "little") + older[8:])).header == replace(HEADER, initial={})


def test_a_split_costs_the_header_little():
    assert len(header_frame(replace(HEADER, split=NESTED))) - len(header_frame(HEADER)) < 200


@pytest.mark.parametrize(
    "split, message",
    [
        (7, "its header is not complete: seedtune.zo.expansion.Split() argument after ** must be a mapping, not int"),
        ({}, "its header is not complete: Split.__init__() missing 6 required positional arguments: "),
        (
            asdict(NESTED) | {"cut": 3},
            "its header is not complete: Split.__init__() got an unexpected keyword argument",
        ),
        (asdict(NESTED) | {"num_suffix": 1}, "its header is not complete: split.baseline = 'leave-one-out'"),
        (asdict(NESTED) | {"num_suffix": 2**40}, f"its header is not complete: split.num_suffix = {2**40}"),
        (asdict(NESTED) | {"block1": "zz"}, "its header is not complete: split.block1 = 'zz'"),
        (asdict(NESTED) | {"rate_ratio": float("inf")}, "its header is not complete: split.rate_ratio = inf"),
    ],
)
def test_headers_whose_split_cannot_be(split, message):
    assert fails(sealed(header_payload(split=split))).startswith(message)


@pytest.mark.parametrize("mask", ["3", "4", "f0"])
def test_a_split_of_another_space_is_refused(mask):
    header = replace(HEADER, space=SPACE.fingerprint, split=replace(NESTED, block1=mask))
    with pytest.raises(TrajectoryError) as caught:
        check_base(header, bytes.fromhex("ab" * 16), SPACE)
    assert str(caught.value) == (
        f"the trajectory's first block is the mask {mask} of tensors, of which this space has 2, and some must be left "
        "for the second: its header was altered"
    )
    check_base(replace(header, split=NESTED), bytes.fromhex("ab" * 16), SPACE)
