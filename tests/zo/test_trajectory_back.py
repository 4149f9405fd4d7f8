"""Rounds that were taken back: written and read, left out of the way to the weights, refused where they cannot be."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from tiny_trajectories import HEADER, SHARED, SPACE, START, assert_same, lived, record, written

from seedtune.errors import TrajectoryError
from seedtune.space import copied, digest
from seedtune.zo import trajectory, trajectory_file
from seedtune.zo.trajectory import Trajectory, path, replay, round_updates, taken_back
from seedtune.zo.trajectory_file import parse
from seedtune.zo.update import apply


def told(ways, num_rounds=10, snapshots=()):
    """Records of rounds with scalars, or snapshots, and what becomes of them, with the weights after each."""
    weights, records, states, kept = copied(START), [], [copied(START)], {}
    for round_ in range(num_rounds):
        if round_ in ways:
            weights = copied(states[ways[round_]])
            done = taken_back(record(round_, [0, 3], np.ones((2, 1, 1))), ways[round_], digest(weights))
        elif round_ in snapshots:
            weights = {name: tensor + 1 + round_ for name, tensor in START.items()}
            kept[round_] = copied(weights)
            done = record(round_, [0, 3], np.zeros((2, 0, 0)), [0, 0], digest(weights))
        else:
            plain = record(round_, [0, 3], [[[0.5 + round_]], [[-1.0]]])
            apply(SPACE, weights, round_updates(HEADER, plain), HEADER.distribution)
            done = replace(plain, digest=digest(weights))
        records.append(done)
        states.append(copied(weights))
    return records, states, kept


def rounds(records) -> list[int]:
    return [one.round for one in path(records)]


def test_a_round_that_was_taken_back_is_read_as_written():
    records, _, _ = told({2: 1, 4: 0, 7: 6, 8: 6})
    data = written(HEADER, records)
    found = parse(data)
    assert_same(found, HEADER, records)
    assert [one.back_to for one in found.records] == [None, None, 1, None, 0, None, None, 6, 6, None]


def test_other_rounds_are_written_as_before():
    """A trajectory in which nothing was taken back has the bytes that it had before there were such rounds."""
    records, _, _ = lived(HEADER)
    assert b"back_to" not in written(HEADER, records)


@pytest.mark.parametrize("clients, shape", [((), (0, 0, 0)), ((2,), (1, 0, 0)), ((0, 5), (2, 0, 0))])
def test_of_a_round_that_was_taken_back_its_clients_stay(clients, shape):
    whole = record(7, clients, np.ones((len(clients), 3, 2)))
    back = taken_back(whole, 4, bytes(16))
    assert (back.round, back.clients, back.digest, back.back_to) == (7, clients, bytes(16), 4)
    assert back.scalars.shape == shape and back.factors.tolist() == [0.0] * len(clients) and not back.is_snapshot
    assert trajectory.broken_rule(back) is None


@pytest.mark.parametrize(
    "ways, expected",
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({5: 5}, [0, 1, 2, 3, 4]),  # a round back to its own start
        ({5: 3}, [0, 1, 2]),
        ({5: 0}, []),
        ({0: 0}, [1, 2, 3, 4, 5]),
        ({2: 1}, [0, 3, 4, 5]),
        ({2: 1, 4: 1}, [0, 5]),  # twice to the same state
        ({2: 1, 4: 0}, [5]),  # beyond an earlier return
        ({2: 1, 5: 4}, [0, 3]),  # to what followed on one
        ({1: 1, 2: 1, 3: 1}, [0, 4, 5]),
    ],
)
def test_the_way_leaves_out_what_was_taken_back(ways, expected):
    records, _, _ = told(ways, num_rounds=6)
    assert rounds(records) == expected
    assert rounds(path(records)) == expected  # it is a way itself
    parse(written(HEADER, records))


@given(st.data())
def test_any_way_leads_through_the_states_that_rounds_began_at(data):
    """Against a simulation that remembers, for every state, the records that led to it."""
    routes, records, current = {0: ()}, [], 0
    for round_ in range(data.draw(st.integers(0, 12))):
        ends = sorted(end for end in routes if routes[end] == routes[current][: len(routes[end])])
        back_to = data.draw(st.none() | st.sampled_from(ends))
        plain = record(round_, [1], np.ones((1, 1, 1)))
        if back_to is None:
            routes[round_ + 1], current = (*routes[current], round_), round_ + 1
            records.append(plain)
        else:
            current = back_to
            records.append(taken_back(plain, back_to, bytes(16)))
        assert tuple(rounds(records)) == routes[current]
    assert_same(parse(written(HEADER, records)), HEADER, records)


@pytest.mark.parametrize("snapshots", [(), (1, 3, 6), (0, 1, 3, 5, 6, 9)], ids=str)
def test_any_round_is_replayed_to_its_recorded_digest(snapshots):
    records, states, kept = told({2: 1, 4: 0, 7: 6, 8: 6}, snapshots=snapshots)
    story = parse(written(HEADER, records))
    for num_rounds in range(len(records) + 1):
        weights = copied(START)
        replay(SPACE, weights, story, num_rounds, kept.__getitem__)
        assert digest(weights) == digest(states[num_rounds])
        assert num_rounds == 0 or digest(weights) == records[num_rounds - 1].digest
    assert len({one.digest for one in records}) == 7  # six rounds moved the weights, one went back to the base


def test_replay_asks_for_no_snapshot_that_was_taken_back():
    records, states, kept = told({4: 2}, num_rounds=6, snapshots=(1, 3))
    asked, weights = [], copied(START)
    replay(SPACE, weights, Trajectory(HEADER, tuple(records)), None, lambda r: (asked.append(r), kept[r])[1])
    assert asked == [1] and digest(weights) == digest(states[-1])


@pytest.mark.parametrize(
    "ways, fault",
    [
        ({0: 1}, "round 0 goes back to 1"),  # the future
        ({3: 4}, "round 3 goes back to 4"),  # its own end
        ({3: 9}, "round 3 goes back to 9"),
        ({3: -1}, "round 3 goes back to -1"),
        ({2: 1, 4: 2}, "round 4 goes back to 2"),  # taken back by round 2
        ({2: 1, 4: 3}, "round 4 goes back to 3"),  # where round 2 ended, which is told as 1
        ({4: 0, 5: 1}, "round 5 goes back to 1"),
    ],
)
def test_a_way_back_to_where_the_weights_did_not_come_from_is_refused(ways, fault):
    plain = [record(round_, [1], np.ones((1, 1, 1))) for round_ in range(6)]
    records = [taken_back(one, ways[one.round], bytes(16)) if one.round in ways else one for one in plain]
    with pytest.raises(TrajectoryError) as caught:
        parse(written(HEADER, records), "mine")
    assert str(caught.value) == (
        f"mine: the record of {fault} rounds, a state that the weights did not come from: take a fresh copy"
    )


@pytest.mark.parametrize("header", [HEADER, SHARED])
def test_a_round_that_was_taken_back_holds_no_scalars(header):
    crafted = replace(record(0, [1], [[[0.5]]]), back_to=0)
    with pytest.raises(TrajectoryError) as caught:
        parse(written(header, [crafted]), "mine")
    rule = "a round that was taken back has no scalars"
    assert str(caught.value) == f"mine: the record of round 0 breaks a rule: {rule}"


@pytest.mark.parametrize("number", ["", "one", "1.0", "nan"])
def test_a_way_back_that_is_no_number_is_not_readable(number):
    arrays = {"clients": np.zeros(0, np.int32), "scalars": np.zeros((0, 0, 0), np.float32), "factors": np.zeros(0),
              "digest": np.zeros(16, np.uint8)}  # fmt: skip
    head = trajectory_file.header_frame(HEADER)
    frame = trajectory_file._frame(head[-16:], save(arrays, {"round": "0", "back_to": number}))
    with pytest.raises(TrajectoryError, match=r"^mine: the record of round 0 is not readable: ValueError\("):
        parse(head + frame, "mine")
