from dataclasses import replace
from math import inf, nan

import pytest
from small_federation import protocol, recipe, server, site

from seedtune.engines.in_process import InProcess
from seedtune.fed.guard import MAX_BACKOFFS, Guard, Seen
from seedtune.fed.rounds import AHEAD, run_rounds
from seedtune.fed.seed_scalar import SeedScalar
from seedtune.space import copy_into
from seedtune.zo.trajectory import follow


def after_losses(losses, scalar_rms=0.5, rate=1e-4, **over) -> Guard:
    guard = Guard(recipe(**over))
    for since, loss in enumerate(losses):
        guard = guard.after(Seen(since, loss, scalar_rms, rate))
    return guard


def surges(losses, **over) -> list[int]:
    """The rounds, from 0, in which a surge begins."""
    guard, found = Guard(recipe(**over)), []
    for since, loss in enumerate(losses):
        guard = guard.after(Seen(since, loss, 0.5, 1e-4))
        found += [since] if guard.surge else []
    return found


FALLING = [3.0, 2.8, 2.7, 2.5, 2.4, 2.4, 2.3, 2.2]
NOISY = [2.0, 2.6, 1.7, 2.4, 1.9, 2.5, 1.8, 2.3, 2.0, 2.6, 1.7, 2.7, 2.1]


@pytest.mark.parametrize(
    "losses, begins",
    [
        (FALLING, []),
        (NOISY, []),
        ([2.0] * 30, []),
        ([], []),
        ([*FALLING, 3.1, 3.4, 4.1], [9]),  # one round above is not enough
        ([*FALLING, 60.0, 2.2, 2.2], [8]),  # unless it is far above
        ([*FALLING, 2.9, 2.2, 2.9, 2.2], []),
        ([3.0, 80.0, 700.0], [1]),
        ([3.0, 5.0, 3.0, 5.0], []),  # the noise of the first rounds is not known
        ([*FALLING, nan, nan, 2.2, nan], [8, 11]),
        ([nan], [0]),
        ([*FALLING, 3.1, 3.4, 4.1, 2.2, 2.2, 3.4, 3.4], [9, 14]),
    ],
)
def test_a_surge_is_a_rise_above_the_best_level(losses, begins):
    assert surges(losses) == begins


def test_the_good_state_is_where_the_best_level_was_measured():
    guard = after_losses([*FALLING, 3.1, 3.4])
    assert (guard.surge.best, guard.surge.good_state) == (2.3, 7)
    assert after_losses([5.0, nan]).surge.good_state == 0


@pytest.mark.parametrize(
    "settings, losses, scalar_rms, message",
    [
        ({}, [*FALLING, 9.0], 0.5, "the training loss rose from 2.300 to 9.000: local.learning_rate is likely too "
                                        "large"),
        ({}, [*FALLING, 9.0], 900.0, "the training loss rose from 2.300 to 9.000: local.learning_rate is likely "
                                          "too large: a local step moves each weight by 6.4e-02, beyond the 0.01 "
                                          "(local.perturbation_scale) at which the loss was looked at"),
        ({"model": {"dtype": "float16"}}, [*FALLING, nan], 0.5, "the training loss is not finite: float16 overflows "
                                                                "beyond 65,504: use model.dtype = 'bfloat16' or "
                                                                "'float32'"),
        ({"local": {"perturbation_scale": 1e-7}}, [*FALLING, 9.0], 0.5,
         "the training loss rose from 2.300 to 9.000: local.perturbation_scale = 1e-07 is likely too small for "
         "float32: the projected gradients are no larger than the rounding of the losses would make them"),
        ({"local": {"order": "first"}, "federation": {"upload": "weights"}}, [*FALLING, nan], nan,
         "the training loss is not finite: local.learning_rate is likely too large"),
    ],
)  # fmt: skip
def test_the_likely_cause_is_named(settings, losses, scalar_rms, message):
    assert str(after_losses(losses, scalar_rms, **settings).surge) == message


def test_a_backoff_halves_the_rate_and_looks_anew():
    guard = after_losses([*FALLING, 9.0]).backed_off()
    assert (guard.rate_share, guard.surge, guard.level) == (0.5, None, inf)
    assert guard.backed_off().rate_share == 0.25


TOO_FAST = {"local": {"learning_rate": 3.0}, "federation": {"num_rounds": 14}}


def rounds_of(**over):
    settings = recipe(**{**TOO_FAST, **over})
    at = site(settings)

    def put_back(records):
        fresh = site(settings)

        copy_into(at.replica.weights, fresh.replica.weights)
        follow(at.perturber.space, at.replica.weights, at.header, records)

    return list(run_rounds(server(at), protocol(settings), InProcess(at), put_back))


def test_a_rollback_ends_at_an_earlier_digest_and_half_the_rate():
    rounds = rounds_of(run={"on_surge": "backoff"})
    digests = [result.record.digest for _, result in rounds]
    back = [n for n, (_, result) in enumerate(rounds) if result.record.back_to is not None]
    assert back
    for n in back:
        state, result = rounds[n]
        assert result.surge is not None and result.record.scalars.size == 0
        if result.record.back_to:
            assert digests[n] == digests[result.record.back_to - 1]
        assert state.rate < result.rate
        assert all(at <= len(state.log) for at in state.up_to_date.values())


def test_a_client_whose_rounds_were_taken_back_is_sent_the_weights():
    state, _ = rounds_of(run={"on_surge": "backoff"})[-1]
    order = SeedScalar().order(replace(state, up_to_date={1: AHEAD}), 1)
    assert order.weights and not order.missed


def test_ignoring_surges_changes_nothing_and_stopping_ends_the_run():
    ignored, stopped = rounds_of(run={"on_surge": "ignore"}), rounds_of(run={"on_surge": "stop"})
    first = next(n for n, (_, result) in enumerate(ignored) if result.surge)
    assert len(ignored) == 14 and len(stopped) == first + 1
    assert [r.record.digest for _, r in stopped] == [r.record.digest for _, r in ignored[: first + 1]]


def test_a_calm_run_is_the_same_with_every_setting():
    calm = {"local": {"learning_rate": 1e-3}}
    digests = {
        choice: [r.record.digest for _, r in rounds_of(**calm, run={"on_surge": choice})]
        for choice in ("ignore", "stop", "backoff")
    }
    assert digests["ignore"] == digests["stop"] == digests["backoff"]


def test_a_run_that_keeps_surging_stops_after_ten_halvings():
    state = server(site(recipe(run={"on_surge": "backoff"})))
    guard = after_losses([3.0, nan], run={"on_surge": "backoff"})

    assert not replace(state, guard=guard).must_stop
    assert replace(state, guard=replace(guard, num_backoffs=MAX_BACKOFFS)).must_stop


def test_backoff_without_a_way_back_is_refused():
    settings = recipe(**TOO_FAST, run={"on_surge": "backoff"})
    at = site(settings)
    with pytest.raises(ValueError, match=r"run_rounds needs put_back where run.on_surge is 'backoff'"):
        for _ in run_rounds(server(at), protocol(settings), InProcess(at)):
            pass
