"""A trajectory replays to the live weights of any round."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_trajectories import HEADER, SHARED, SPACE, START, assert_same, lived, record, written

from seedtune.errors import DigestMismatch, TrajectoryError
from seedtune.space import copied, digest
from seedtune.zo import trajectory
from seedtune.zo.noise import derive_key
from seedtune.zo.trajectory import RoundRecord, Trajectory, direction_key, replay, round_updates
from seedtune.zo.trajectory_file import parse


@pytest.mark.parametrize("header", [HEADER, SHARED])
def test_replay_to_any_round_is_the_live_state(header):
    records, states, snapshots = lived(header)
    story = parse(written(header, records))
    assert digest(states[1]) != digest(states[0])  # round 0 moved, the empty and the skipped ones did not
    assert digest(states[2]) == digest(states[1]) and digest(states[5]) == digest(states[4])
    for num_rounds in (None, *range(len(records) + 1)):
        weights = copied(START)
        replay(SPACE, weights, story, num_rounds, snapshots.__getitem__)
        assert digest(weights) == digest(states[-1 if num_rounds is None else num_rounds])


def test_replay_begins_at_the_last_snapshot():
    records, states, snapshots = lived(HEADER)
    broken = [replace(records[0], clients=(9,)), *records[1:]]  # could not be applied
    asked, weights = [], copied(START)
    replay(SPACE, weights, Trajectory(HEADER, tuple(broken)), None, lambda r: (asked.append(r), snapshots[r])[1])
    assert asked == [2] and digest(weights) == digest(states[-1])


def test_a_snapshot_needs_its_folder():
    records, _, _ = lived(HEADER)
    with pytest.raises(TrajectoryError) as caught:
        replay(SPACE, copied(START), Trajectory(HEADER, tuple(records)))
    assert str(caught.value) == "round 2 is a snapshot, kept in its run folder: replay the folder, not the file alone"


@pytest.mark.parametrize("num_rounds", [6, -1])
def test_more_rounds_than_there_are(num_rounds):
    records, _, _ = lived(HEADER)
    weights = copied(START)
    with pytest.raises(TrajectoryError) as caught:
        replay(SPACE, weights, Trajectory(HEADER, tuple(records)), num_rounds)
    assert str(caught.value) == f"round {num_rounds} was asked for, but the trajectory holds rounds 0 to 5"
    assert digest(weights) == digest(START)


def test_replay_on_other_weights_says_both_digests():
    records, states, _ = lived(HEADER)
    weights = {name: tensor + 1 for name, tensor in START.items()}
    with pytest.raises(DigestMismatch) as caught:
        replay(SPACE, weights, Trajectory(HEADER, tuple(records)), 1)
    found, expected = digest(weights).hex(), digest(states[1]).hex()
    assert str(caught.value) == f"the weights' digest after round 0 is {found}, expected {expected}"


def test_another_base_is_told_by_its_digest():
    header = replace(HEADER, space=SPACE.fingerprint)
    trajectory.check_base(header, bytes.fromhex("ab" * 16), SPACE)
    with pytest.raises(DigestMismatch) as caught:
        trajectory.check_base(header, bytes(16), SPACE)
    assert str(caught.value) == (
        f"the weights' digest of the base (recorded on 'starter') is {'00' * 16}, expected {'ab' * 16}"
    )
    with pytest.raises(DigestMismatch) as caught:
        trajectory.check_base(HEADER, bytes.fromhex("ab" * 16), SPACE)
    assert str(caught.value) == (
        f"the trajectory tunes the space {'cd' * 16}, this model's is {SPACE.fingerprint}: other tensors, shapes or "
        "dtypes; load the base 'starter' as its header says"
    )


def test_directions_are_ordered_by_client_step_direction():
    scalars = np.arange(8).reshape(2, 2, 2) / 3
    (update,) = round_updates(HEADER, record(6, [1, 4], scalars, [0.1, 0.7]))
    expected = [derive_key(17, "direction", round=6, client=c, step=h, direction=p)
                for c in (1, 4) for h in (0, 1) for p in (0, 1)]  # fmt: skip
    assert update.keys == tuple(expected)
    coefficients = [-float(np.float32(s)) * (0.1 if i < 4 else 0.7) for i, s in enumerate(scalars.reshape(-1))]
    assert update.coefficients.tobytes() == np.array(coefficients).astype(np.float32).tobytes()
    assert update.rounding_key == derive_key(17, "rounding", round=6)
    (shared,) = round_updates(SHARED, record(6, [1, 4], scalars[:1]))
    assert shared.keys == tuple(
        derive_key(17, "direction", round=6, step=h, direction=p) for h in (0, 1) for p in (0, 1)
    )
    assert direction_key(17, 6, None, 1, 0) == shared.keys[2]


def test_a_pools_directions_are_few_and_drawn_by_client_step_and_direction():
    header = replace(HEADER, key_pool=4)
    pool = [derive_key(17, "pool", direction=place) for place in range(4)]
    (update,) = round_updates(header, record(6, [1, 4], np.ones((2, 50, 2))))
    drawn = [derive_key(17, "draw", round=6, client=c, step=h, direction=p) % 4
             for c in (1, 4) for h in range(50) for p in range(2)]  # fmt: skip
    assert update.keys == tuple(pool[place] for place in drawn) and set(update.keys) == set(pool)
    assert np.bincount(drawn).min() > 30  # of 200, all as likely
    assert direction_key(17, 6, 4, 3, 1, key_pool=4) == update.keys[100 + 3 * 2 + 1]
    (one_for_all,) = round_updates(replace(header, keys="shared"), record(6, [1, 4], np.ones((1, 50, 2))))
    assert set(one_for_all.keys) == set(pool) and one_for_all.keys != update.keys[:100]


@pytest.mark.parametrize("header", [replace(HEADER, key_pool=3), replace(SHARED, key_pool=1)])
def test_a_pooled_trajectory_is_read_and_replayed_as_it_was_lived(header):
    records, states, snapshots = lived(header)
    story = parse(written(header, records))
    assert_same(story, header, records)
    weights = copied(START)
    replay(SPACE, weights, story, None, snapshots.__getitem__)
    assert digest(weights) == digest(states[-1]) != digest(lived(replace(header, key_pool=0))[1][-1])


@pytest.mark.parametrize("header", [HEADER, SHARED])
@pytest.mark.parametrize("shape", [(0, 2**31 - 1, 5), (2, 2**31 - 1, 0), (0, 3, 1)])
def test_rounds_without_scalars_have_no_directions(header, shape):
    clients, shape = range(shape[0]), (min(shape[0], 1 if header.keys == "shared" else 2), *shape[1:])
    empty = RoundRecord(0, tuple(clients), np.zeros(shape, np.float32), np.zeros(shape[0]), b"")
    assert round_updates(header, empty) == ()


def test_scalars_of_other_senders_are_refused():
    shared, own = record(6, [1, 4], np.zeros((1, 2, 2))), record(6, [1, 4], np.zeros((2, 2, 2)))
    with pytest.raises(TrajectoryError) as caught:
        round_updates(HEADER, shared)
    assert str(caught.value) == (
        "round 6: 2 clients with own keys need 2 sets of scalars and factors, found 1 and 1: the record is not of "
        "this run"
    )
    with pytest.raises(TrajectoryError, match="2 clients with shared keys need 1 sets of scalars and factors, found 2"):
        round_updates(SHARED, own)


def test_coefficients_beyond_float32_are_refused():
    with pytest.raises(TrajectoryError) as caught:
        round_updates(HEADER, record(6, [1], [[[3e38]]], [2.0]))
    assert str(caught.value) == ("round 6: a scalar times its factor is beyond float32: lower local.learning_rate")
