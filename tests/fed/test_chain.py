import numpy as np

from seedtune.fed.chain import Chain
from seedtune.zo.trajectory import RoundRecord


def state(number):
    return bytes([number]) * 16


def record(round_, ends_at):
    return RoundRecord(round_, (0,), np.ones((1, 1, 1), np.float32), np.ones(1), state(ends_at))


def rounds(way):
    origin, records = way
    return origin, [record.round for record in records]


def test_pieces_that_overlap_make_one_way():
    chain = Chain({state(0)})
    assert [r.round for _, r in chain.link(state(0), [record(0, 1), record(1, 2)])] == [0, 1]
    assert [r.round for _, r in chain.link(state(0), [record(0, 1), record(1, 2), record(2, 3)])] == [2]
    assert [r.round for _, r in chain.link(state(2), [record(2, 3), record(3, 4)])] == [3]
    assert rounds(chain.way(state(0), state(4))) == (state(0), [0, 1, 2, 3])
    assert rounds(chain.way(state(2), state(4))) == (state(2), [2, 3])
    assert rounds(chain.way(state(4), state(4))) == (state(4), [])


def test_a_piece_that_comes_through_where_a_client_stands_is_taken_from_there():
    chain = Chain({state(0)})
    chain.link(state(0), [record(0, 1)])
    chain.link(state(1), [record(0, 1), record(1, 2)])
    assert rounds(chain.way(state(1), state(2))) == (state(1), [1])


def test_a_way_that_was_taken_back_is_left_by_the_root():
    chain = Chain({state(0)})
    chain.link(state(0), [record(0, 1), record(1, 2), record(2, 3)])
    chain.link(state(1), [record(4, 7), record(5, 8)])
    assert rounds(chain.way(state(3), state(8))) == (state(0), [0, 4, 5])
    assert rounds(chain.way(state(1), state(8))) == (state(1), [4, 5])


def test_rounds_that_moved_nothing_and_ways_in_a_circle_add_no_link():
    chain = Chain({state(0)})
    chain.link(state(0), [record(0, 0), record(1, 1), record(2, 1), record(3, 0), record(4, 2)])
    assert rounds(chain.way(state(1), state(0))) == (state(0), [])
    assert rounds(chain.way(state(0), state(2)))[0] == state(0)
    assert state(9) not in chain and chain.way(state(0), state(9)) is None


def test_what_starts_nowhere_is_not_learned():
    chain = Chain({state(0)})
    assert chain.link(state(5), [record(0, 6)]) == [] and state(6) not in chain


def test_weights_that_were_sent_whole_are_a_root():
    chain = Chain({state(0), state(5)})
    chain.link(state(5), [record(5, 6)])
    assert rounds(chain.way(state(2), state(6))) == (state(5), [5])
    assert list(chain) == [(state(5), chain.links[state(6)][1])]
