"""Rounds with secure sums end where the plain fixed-point sums lead, cost two exchanges, and survive who drops out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from secure_federation import SHARED, VOTES, WEIGHTS, Lossy, PlainSums, digests, rounds, secure
from small_federation import examples, recipe, site

from seedtune.engines.in_process import InProcess
from seedtune.errors import ConfigError, EngineError, MessageError
from seedtune.experiment import exchange_of
from seedtune.fed import secure_messages as sm
from seedtune.fed.messages import ORDER
from seedtune.fed.wire import kind_of, packed
from seedtune.privacy.sum_plan import SumPlan

STEADY = [{sm.MASKED_ORDER, sm.KEY_REQUEST}, {sm.UNMASK_REQUEST, sm.ROSTER}]
FIRST = [{sm.KEY_REQUEST}, {sm.ROSTER}]
LAST = [{sm.MASKED_ORDER}, {sm.UNMASK_REQUEST}]
EXCHANGES = {"mean": SHARED, "votes": VOTES, "weights": WEIGHTS}


@pytest.mark.parametrize("federation", EXCHANGES.values(), ids=EXCHANGES)
@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_the_sum_is_that_of_plain_integers_to_the_bit(federation, weighting):
    weighting = "equal" if federation == VOTES else weighting  # a vote counts once
    settings = secure(federation | {"weighting": weighting, "local_steps": 2})
    twin = site(settings)
    _, results = rounds(settings)
    _, plain = rounds(settings, twin, exchange=PlainSums(twin))
    assert digests(results) == digests(plain)
    assert [r.train_loss for r in results] == [p.train_loss for p in plain]


@pytest.mark.parametrize("federation", EXCHANGES.values(), ids=EXCHANGES)
def test_it_is_the_run_without_secure_sums_but_for_rounding(federation):
    """A mean of numbers that are each off by at most 2^-31 is off by at most that: with equal weights; then float32."""
    settings = secure(federation | {"weighting": "equal", "num_rounds": 1})
    state, (found,) = rounds(settings)
    single, (plain,) = rounds(recipe(federation=settings.federation.model_dump()))
    if federation == VOTES:
        assert found.record.digest == plain.record.digest
    gap = np.abs(found.record.scalars - plain.record.scalars).max(initial=0.0)
    assert gap <= 2.0**-31 + np.abs(plain.record.scalars).max(initial=0.0) * 2.0**-23
    for name, held in state.replica.weights.items():
        assert (held - single.replica.weights[name]).abs().max() <= 2.0**-31 + held.abs().max() * 2.0**-23
    assert found.train_loss == pytest.approx(plain.train_loss, abs=2.0**-30)
    assert found.scalar_rms == pytest.approx(plain.scalar_rms, rel=1e-6)
    for name in ("num_forwards", "num_flops", "num_prefix_flops", "skipped_steps", "rate", "failed", "cohort"):
        assert getattr(found, name) == getattr(plain, name)
    assert (found.losses, found.signals) == ({}, {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_are_off_by_one_rounding_at_most(dtype):
    settings = secure(WEIGHTS | {"weighting": "equal", "num_rounds": 1})
    state, _ = rounds(settings, site(settings, dtype))
    plain = recipe(federation=settings.federation.model_dump())
    single, _ = rounds(plain, site(plain, dtype))
    for name, held in state.replica.weights.items():
        gap = (held.double() - single.replica.weights[name].double()).abs()
        assert (gap <= held.double().abs() * torch.finfo(dtype).eps).all()
        assert (gap > 0).sum() <= 1  # where the mean lies within 2^-31 of the middle between two numbers


def test_two_exchanges_a_round_and_two_more_before_the_first():
    settings = secure()
    engine = Lossy(at := site(settings))
    _, results = rounds(settings, at, engine)
    assert engine.kinds == [*FIRST, *STEADY, *STEADY, *LAST]
    assert all(result.bytes_down > 0 < result.bytes_up for result in results)
    sizes = [(result.bytes_down, result.bytes_up) for result in results]
    assert sizes[1] < sizes[0] and sizes[2] < sizes[1], "cards are shown once, and the last round prepares no other"


@pytest.mark.parametrize("phase, came", [(0, {1, 2, 3}), (1, {1, 2, 3}), (2, {1, 2, 3}), (3, {0, 1, 2, 3})])
def test_a_client_that_drops_out_is_left_out_and_named(phase, came):
    """In each exchange of the first round; in the next one it has no keys, unless it dropped out before those of the
    second round were asked, and then it is back."""
    settings = secure({**SHARED, "num_rounds": 4})
    engine, twin = Lossy(at := site(settings), {phase: {0}}), site(settings)
    _, results = rounds(settings, at, engine)
    lost = {0: {0} - came, 1: {0} if phase >= 2 else set()}
    _, plain = rounds(settings, twin, exchange=PlainSums(twin, lost))
    assert digests(results) == digests(plain)
    assert set(results[0].record.clients) == came
    assert [sorted(result.failed) for result in results] == [[0], [0] if phase >= 2 else [], [], []]
    assert results[0].failed[0] == "EngineError: no answer"
    assert len(engine.kinds) == 2 + 2 * 4


@pytest.mark.parametrize(
    "phase, did", [(0, "dealt shares"), (1, "dealt shares"), (2, "sent masked values"), (3, "revealed shares")]
)
def test_below_the_threshold_the_round_fails_and_says_where(phase, did):
    settings = secure()
    at = site(settings)
    before = {name: tensor.clone() for name, tensor in at.replica.weights.items()}
    with pytest.raises(EngineError) as caught:
        rounds(settings, at, Lossy(at, {phase: {0, 2}}))
    number = "0" if phase == 0 else "2"
    assert str(caught.value) == (
        f"round 0: {number} clients {did}, a secure sum needs 3; first that did not, client 0: EngineError: no answer; "
        "'seedtune resume' tries the round again"
    )
    assert all(torch.equal(at.replica.weights[name], tensor) for name, tensor in before.items())


def test_where_too_few_made_keys_for_the_next_round_all_are_asked_anew():
    settings = secure({**SHARED, "min_replies": 4, "num_rounds": 2})
    engine, twin = Lossy(at := site(settings), {3: {0}}), site(settings)
    _, results = rounds(settings, at, engine)
    _, plain = rounds(settings, twin, exchange=PlainSums(twin))
    assert engine.kinds == [*FIRST, *STEADY, *FIRST, *LAST]
    assert digests(results) == digests(plain) and [sorted(result.failed) for result in results] == [[0], []]


def test_a_cohort_that_changes_costs_no_more_exchanges():
    settings = secure({**SHARED, "cohort_size": 3, "num_rounds": 4}, partition={"num_clients": 6})
    engine, twin = Lossy(at := site(settings)), site(settings)
    _, results = rounds(settings, at, engine)
    _, plain = rounds(settings, twin, exchange=PlainSums(twin))
    assert digests(results) == digests(plain) and len(engine.kinds) == 2 + 2 * 4
    assert len({result.record.clients for result in results}) > 1
    assert all(result.failed == {} for result in results)


def test_clients_that_stay_silent_by_the_recipe_are_not_asked_and_too_few_move_nothing():
    settings = secure({**SHARED, "dropout_rate": 0.4, "num_rounds": 6})
    _, results = rounds(settings)
    present = [4 - len(result.dropped) for result in results]
    assert min(present) < 3 <= max(present)
    for result, count in zip(results, present, strict=True):
        assert len(result.record.clients) == (count if count >= 3 else 0) and result.failed == {}


def test_a_skipped_step_adds_nothing_and_is_counted():
    settings = secure({**SHARED, "num_rounds": 1})
    batch = lambda client, key: tuple(t * (float("inf") if client == 1 else 1) for t in examples(client))  # noqa: E731
    twin = site(settings, batch=batch)
    _, (result,) = rounds(settings, site(settings, batch=batch))
    _, (without,) = rounds(settings, twin, exchange=PlainSums(twin, {0: {1}}))
    assert result.skipped_steps == 1 and result.record.clients == (0, 1, 2, 3)
    assert (result.record.scalars == without.record.scalars).all()
    assert result.train_loss == without.train_loss


def test_where_all_steps_are_skipped_nothing_moves():
    settings = secure({**SHARED, "num_rounds": 1})
    at = site(settings, batch=lambda client, key: tuple(t * float("inf") for t in examples(client)))
    _, (result,) = rounds(settings, at)
    assert np.isnan(result.record.scalars).all() and np.isnan(result.train_loss) and result.skipped_steps == 4


def test_a_number_beyond_the_range_is_its_clients_error():
    settings = secure({**SHARED, "num_rounds": 1})
    loud = lambda client, key: tuple(t * (1e7 if client == 2 else 1) for t in examples(client))  # noqa: E731
    _, (result,) = rounds(settings, site(settings, batch=loud))
    assert result.record.clients == (0, 1, 3)
    assert result.failed[2] == (
        "NotFinite: client 2, round 0: what it would add to a secure sum is not finite, or too large to be coded or "
        "applied; the number stays on the device: lower local.learning_rate, set local.clip, or lower "
        "secure_sum.fraction_bits"
    )


@pytest.mark.parametrize("federation", [SHARED, WEIGHTS], ids=["scalars", "weights"])
def test_where_no_clients_numbers_fit_nothing_moves_and_the_run_ends_as_diverged(federation):
    settings = secure(federation)
    at = site(settings, batch=lambda client, key: tuple(t * 1e9 for t in examples(client)))
    state, results = rounds(settings, at)
    assert all(result.record.clients == () and len(result.failed) == 4 for result in results)
    assert state.guard.has_diverged and len(results) == 3


def test_a_reply_without_a_mask_is_not_given():
    settings = secure()
    at = site(settings)
    order = packed(ORDER, [0, 0, at.replica.digest, 0.1, [], b""])
    ((_, answer),) = InProcess(at).exchange({0: order})
    assert isinstance(answer, MessageError) and "leaves in secure sums only" in str(answer)
    ((_, answer),) = InProcess(site(recipe())).exchange({0: sm.encode_bundle([])})
    assert isinstance(answer, MessageError) and "its recipe does not have secure_sum.enabled" in str(answer)


class Liar(Lossy):
    """Changes what client 0 answers to requests of one kind."""

    def __init__(self, at, kind, change):
        super().__init__(at)
        self.kind, self.change = kind, change

    def exchange(self, messages):
        for client, answer in super().exchange(messages):
            parts = sm.decode_answers(answer)
            if client == 0:
                parts = [self.change(part) if kind_of(part) == self.kind else part for part in parts]
            yield client, sm.encode_answers(parts)


def flipped(part: bytes) -> bytes:
    return part[:-1] + bytes([part[-1] ^ 1])


@pytest.mark.parametrize(
    "kind, change, reason",
    [
        (sm.KEYS, lambda part: b"\xc1", "MessageError"),
        (sm.SHARES, lambda part: sm.encode_shares(replace(sm.decode_shares(part), sealed={})), "to all others"),
        (sm.MASKED_REPLY, lambda part: part[:-1], "MessageError"),
        (
            sm.UNMASKED,
            lambda part: sm.encode_unmasked(sm.Unmasked(sm.decode_unmasked(part).session, 0, {})),
            "a share of",
        ),
        (sm.UNMASKED, lambda part: sm.encode_unmasked(sm.Unmasked(bytes(16), 0, {})), "by the client"),
    ],
)
def test_nonsense_of_one_client_is_its_own_failure(kind, change, reason):
    settings = secure({**SHARED, "num_rounds": 1})
    _, (result,) = rounds(settings, at := site(settings), Liar(at, kind, change))
    assert list(result.failed) == [0] and reason in result.failed[0]


def test_an_altered_revealed_share_ends_the_round_with_an_error_and_not_with_nonsense():
    settings = secure({**SHARED, "num_rounds": 1})
    at = site(settings)
    with pytest.raises(
        EngineError, match=r"round 0: a sum of 4 clients says that it is of -?[0-9]+: .* tries the round"
    ):
        rounds(settings, at, Liar(at, sm.UNMASKED, flipped))


def test_an_altered_dealt_share_is_noticed_by_whom_it_is_for():
    settings = secure({**SHARED, "num_rounds": 1})
    _, (result,) = rounds(settings, at := site(settings), Liar(at, sm.SHARES, flipped))
    assert list(result.failed) == [3] and "shares in the name of client 0 are not sealed by it" in result.failed[3]


RULES = [
    ({"federation": {"upload": "scalars", "keys": "own"}}, "federation.keys = 'own' with federation.upload"),
    ({"federation": SHARED | {"aggregation": "median", "weighting": "equal"}}, "federation.aggregation = 'median'"),
    ({"federation": SHARED | {"aggregation": "trimmed-mean", "weighting": "equal"}}, "needs each client's own scalars"),
    ({"federation": SHARED, "personalise": {"policy": "round-wise"}}, "personalise.policy = 'round-wise'"),
    ({"federation": WEIGHTS, "personalise": {"policy": "model-diff"}}, "personalise.policy = 'model-diff'"),
    ({"federation": SHARED, "partition": {"num_clients": 1}}, "a cohort of 1"),
    ({"federation": SHARED, "partition": {"num_clients": 101}}, "a sum has 2 to 100 clients"),
    ({"federation": SHARED, "secure_sum": {"threshold": 2}}, "threshold = 2 cannot .* more than half of the 4 clients"),
    ({"federation": SHARED, "secure_sum": {"threshold": 5}}, "threshold = 5 cannot"),
]


@pytest.mark.parametrize("over, words", RULES)
def test_what_needs_single_replies_is_refused(over, words):
    over = {**over, "secure_sum": {"enabled": True, **over.get("secure_sum", {})}}
    with pytest.raises(ConfigError, match=words):
        exchange_of(recipe(**over))


@pytest.mark.parametrize("num_clients, threshold", [(2, 2), (3, 2), (4, 3), (5, 4), (9, 6), (100, 67)])
def test_two_thirds_must_stay_unless_the_recipe_says_otherwise(num_clients, threshold):
    assert SumPlan.of(secure(partition={"num_clients": num_clients})).threshold == threshold


def test_clear_words_where_a_library_is_missing(monkeypatch):
    monkeypatch.setattr("seedtune.privacy.sum_plan.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[privacy\]'"):
        exchange_of(secure())
