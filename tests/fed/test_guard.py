from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from small_federation import protocol, recipe, server, site

from seedtune.engines.in_process import InProcess
from seedtune.errors import DigestMismatch
from seedtune.fed.client import catch_up
from seedtune.fed.guard import MAX_BACKOFFS, Guard, Seen
from seedtune.fed.messages import unpack_record
from seedtune.fed.rounds import AHEAD, LOST, RoundResult, after, run_rounds
from seedtune.fed.seed_scalar import SeedScalar
from seedtune.space import copy_into, digest
from seedtune.zo.trajectory import RoundRecord, follow


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


def noisy(seed, num_rounds, level=3.0, noise=0.3):
    return level + noise * np.random.default_rng([8, seed]).standard_normal(num_rounds)


def test_long_calm_runs_seldom_raise_an_alarm():
    """Of these, eight do where the level is the best of the whole run, and 4 deviations above it are a surge."""
    assert sum(bool(surges(noisy(seed, 500))) for seed in range(12)) <= 1


@pytest.mark.parametrize("before", [30, 300])
def test_a_rise_is_found_in_the_noise_however_late(before):
    rising = noisy(1, before + 6) + np.r_[np.zeros(before), 0.8 * np.arange(1, 7)]
    assert before + 1 <= surges(rising)[0] < before + 6


def test_the_level_is_that_of_the_last_25_to_50_rounds():
    lucky = [2.0] * 5 + [1.0] * 4
    assert [after_losses(lucky + [2.0] * later).level for later in (0, 15, 16, 40, 41, 90)] == [1, 1, 1, 1, 2, 2]
    assert after_losses(lucky + [2.0] * 41).good_state == 25


def test_a_level_is_kept_where_a_whole_block_of_rounds_knows_of_none():
    guard = after_losses([3.0, *[nan] * 80])
    assert (guard.level, guard.good_state) == (3.0, 0) and after_losses([nan] * 80 + [3.0]).level == 3.0


def test_a_surge_leads_back_to_a_state_that_was_named_before():
    """Weights of other states need not be kept."""
    guard = Guard(recipe())
    for since, loss in enumerate(noisy(2, 150)):
        ahead = guard.after(Seen(since, loss, 0.5, 1e-4))
        assert ahead.good_states <= guard.good_states | {since} and ahead.good_state in ahead.good_states
        guard = ahead
    assert guard.good_state > 90


def test_a_backoff_halves_the_rate_and_looks_anew():
    guard = after_losses([*FALLING, 9.0]).backed_off()
    assert (guard.rate_share, guard.surge, guard.level) == (0.5, None, inf)
    assert guard.backed_off().rate_share == 0.25


def test_a_surge_right_after_a_backoff_goes_back_to_the_same_state():
    """The guard has seen nothing since that it could call better."""
    again = after_losses([*FALLING, 9.0]).backed_off().after(Seen(7, nan, 0.5, 5e-5))
    assert again.surge.good_state == 7


TOO_FAST = {"local": {"learning_rate": 3.0}, "federation": {"num_rounds": 14}}
GRADUAL = {"local": {"learning_rate": 0.1, "warmup_rounds": 12}, "federation": {"num_rounds": 16, "batch_size": 12}}
"""A rate that rises until the loss does: it is best after four rounds."""


def rounds_of(**over):
    settings = recipe(**{**TOO_FAST, **over})
    at = site(settings)

    def put_back(records):
        fresh = site(settings)
        copy_into(at.replica.weights, fresh.replica.weights)
        follow(at.perturber.space, at.replica.weights, at.header, records)

    return list(run_rounds(server(at), protocol(settings), InProcess(at), put_back))


@pytest.mark.parametrize("settings, ways", [(TOO_FAST, {1: 0, 3: 0}), (GRADUAL, {8: 4, 14: 4})], ids=["base", "later"])
def test_a_rollback_ends_at_an_earlier_digest_and_half_the_rate(settings, ways):
    rounds = rounds_of(**settings, run={"on_surge": "backoff"})
    ends = [site(recipe()).replica.digest, *(result.record.digest for _, result in rounds)]
    found = {n: result.record.back_to for n, (_, result) in enumerate(rounds) if result.record.back_to is not None}
    assert found.items() >= ways.items()
    for n, back_to in found.items():
        state, result = rounds[n]
        assert result.surge.good_state == back_to and result.record.scalars.size == 0
        assert ends[n + 1] == ends[back_to] and state.rate < result.rate
        assert [record.round for record in state.log] == list(range(back_to))
        assert state.guard.num_backoffs == list(found).index(n) + 1
        assert all(at <= back_to for at in state.up_to_date.values())


@pytest.mark.parametrize("settings", [TOO_FAST, GRADUAL], ids=["base", "later"])
def test_clients_rates_are_taken_back_too(settings):
    """What the loss was on weights that are no longer there says nothing."""
    rounds = rounds_of(**settings, run={"on_surge": "backoff"}, personalise={"policy": "five-round", "alpha": 0.1})
    start = server(site(recipe(**settings, personalise={"policy": "five-round", "alpha": 0.1}))).rates.personal.signals
    ends = [start, *(state.rates.personal.signals for state, _ in rounds)]
    found = [(n, result.record.back_to) for n, (_, result) in enumerate(rounds) if result.record.back_to is not None]
    assert found
    for n, back_to in found:
        np.testing.assert_array_equal(ends[n + 1], ends[back_to])
        assert back_to == n or not np.array_equal(ends[n], ends[back_to], equal_nan=True)


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


def test_a_run_that_keeps_surging_ends_after_ten_halvings_where_the_loss_was_best():
    hopeless = {"local": {"learning_rate": 1e5}, "federation": {"num_rounds": 60}}
    rounds = rounds_of(**hopeless, run={"on_surge": "backoff"})
    state, last = rounds[-1]
    undone = [result for _, result in rounds if result.record.back_to is not None]
    assert len(undone) == MAX_BACKOFFS + 1 and len(rounds) < 60 and state.must_stop
    assert last is undone[-1] and last.surge and last.rate == pytest.approx(1e5 / 2**MAX_BACKOFFS)
    assert last.record.digest == site(recipe()).replica.digest and not rounds[-2][0].must_stop


def test_backoff_without_a_way_back_is_refused():
    settings = recipe(**TOO_FAST, run={"on_surge": "backoff"})
    at = site(settings)
    with pytest.raises(ValueError, match=r"run_rounds needs put_back where run.on_surge is 'backoff'"):
        for _ in run_rounds(server(at), protocol(settings), InProcess(at)):
            pass


def taken_back_to_a_later_state():
    """The server and the result of a round that was taken back, with others, to a state after the base."""
    return next(pair for pair in rounds_of(**GRADUAL, run={"on_surge": "backoff"}) if pair[1].record.back_to)


def test_no_record_that_is_sent_is_of_a_round_taken_back():
    for state, _ in rounds_of(**GRADUAL, run={"on_surge": "backoff"}):
        assert all(record.back_to is None for record in state.log)
        packed = SeedScalar().order(replace(state, up_to_date={}), client=1).missed
        assert [unpack_record(record).digest for record in packed] in ([], [record.digest for record in state.log])


def test_a_client_that_failed_before_rounds_were_taken_back_is_sent_the_weights():
    """It may stand on one of them: told the others, a replica of its own would not come to the server's weights."""
    ahead, _ = taken_back_to_a_later_state()
    ill = {1: "EngineError: no answer"}
    failed = after(replace(ahead, up_to_date={}), unmoved(ahead, failed=ill))
    assert failed.up_to_date == {1: LOST} and len(SeedScalar().order(failed, 1).missed) == len(failed.log)
    back = after(failed, unmoved(failed, back_to=failed.log[-1].round + 1))
    again = after(back, unmoved(back, failed=ill))
    assert back.up_to_date == again.up_to_date == {1: AHEAD}

    elsewhere, order = site(ahead.recipe), SeedScalar().order(again, 1)
    elsewhere.replica.weights["bias"] += 1
    elsewhere.replica.digest = digest(elsewhere.replica.weights)
    catch_up(elsewhere, order)
    assert elsewhere.replica.digest == order.digest == ahead.replica.digest


def unmoved(state, failed=None, back_to=None):
    """The next round, as `after` reads it, where nobody moved the weights."""
    none = RoundRecord(state.round, (), np.zeros((0, 0, 0), np.float32), np.zeros(0), state.replica.digest, back_to)
    return RoundResult(none, (), (), failed or {}, {}, {}, nan, 0.1, 0, 0, 0, 0, 0, 0.0)


def test_weights_that_come_back_otherwise_are_refused_with_both_digests():
    settings = recipe(**GRADUAL, run={"on_surge": "backoff"})
    at = site(settings)

    def forgotten(records):
        """Leaves the weights where the surge took them."""

    ends, rounds = [], run_rounds(server(at), protocol(settings), InProcess(at), forgotten)
    with pytest.raises(DigestMismatch) as error:
        for _, result in rounds:
            ends.append(result.record.digest.hex())
    found = digest(at.replica.weights).hex()
    assert str(error.value) == f"the weights' digest put back to 4 rounds is {found}, expected {ends[3]}"


def test_a_round_without_replies_is_no_surge():
    """A surge is told once, also where nobody answers in the round after it."""
    state = server(site(recipe()))
    surging = replace(state, guard=after_losses([3.0, nan]))
    assert surging.guard.surge and after(surging, unmoved(state)).guard.surge is None
    assert after(surging, unmoved(state)).guard.is_surging
