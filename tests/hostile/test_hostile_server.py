"""Whatever a server sends, a client refuses it in a line that tells nothing of its data, and goes on."""

from dataclasses import replace

import pytest
from doubles import BYTES, MODES, ORDERS, Asked, encoded, told_of
from small_federation import examples

from seedtune.errors import SeedtuneError
from seedtune.fed.messages import encode_order

ENGINES = ("in-process", "node")
TAKES_WEIGHTS = {mode for mode in MODES if not ("scalars" in mode or "votes" in mode) or "secure" not in mode}
TAKES_WEIGHTS -= {"scalars, shares"}
"""Where a client works from weights that it is sent: nothing is hidden, or noise hides it at any weights, or masks that
follow from the weights do (`test_model_inconsistency`)."""


@pytest.fixture(autouse=True)
def small_base(monkeypatch):
    from small_federation import site

    from seedtune import assembly

    monkeypatch.setattr(assembly, "base_weights", lambda made: site(made.recipe).replica.weights)


def louder(client):
    inputs, targets = examples(client)
    return 3 * inputs.flip(0), -targets


@pytest.mark.parametrize("attack", ORDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_order_is_refused_by_name_and_the_right_one_is_then_answered(engine, mode, attack, tmp_path):
    """The words are the same whatever the client's data is."""
    told = []
    for name, data in (("one", examples), ("other", louder)):
        asked = Asked(told_of(mode), engine, tmp_path / name, data)
        wrong = ORDERS[attack](asked.order(0), asked.at)
        found = asked.answer(encode_order(wrong))
        if attack == "weights that compute nothing" and mode in TAKES_WEIGHTS:
            assert isinstance(found, bytes)
            return
        assert isinstance(found, SeedtuneError), found
        text = str(found)
        assert "\n" not in text and len(text) <= 2_000
        told.append(asked.texts)
        assert isinstance(asked.answer(encode_order(asked.order(0))), bytes), asked.texts
    assert told[0] == told[1]


@pytest.mark.parametrize("spoiled", BYTES)
@pytest.mark.parametrize("mode", ["scalars, none", "scalars, local", "scalars, shares", "weights, secure"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bytes_that_are_no_order_are_refused_by_name(engine, mode, spoiled, tmp_path):
    asked = Asked(told_of(mode), engine, tmp_path)
    for message in ({0: BYTES[spoiled](encoded(asked.order(0)))}, {0: b"\xff" * 100}):
        ((_, found),) = asked.exchange(message).items()
        assert isinstance(found, SeedtuneError) and len(str(found)) <= 2_000
    assert isinstance(asked.answer(encoded(asked.order(0))), bytes)


@pytest.mark.parametrize("mode", ["scalars, local", "scalars, local and secure", "scalars, shares"])
@pytest.mark.parametrize("engine", ENGINES)
def test_replays_and_floods_get_the_first_answer_and_nothing_else(engine, mode, tmp_path):
    """d1 and d8: with H > 1 a round was answered anew for every other rate."""
    asked = Asked(told_of(mode), engine, tmp_path)
    order = asked.order(0)
    first = asked.answer(encoded(order))
    assert isinstance(first, bytes)
    for k in range(20):
        found = asked.answer(encoded(replace(order, rate=order.rate * (1 + k / 200))))
        assert found == first if k == 0 else isinstance(found, SeedtuneError)
    assert isinstance(asked.answer(encoded(replace(order, digest=bytes(16)))), SeedtuneError)


def test_another_session_of_a_round_masks_the_same_order_alone(tmp_path):
    asked = Asked(told_of("scalars, secure"), "node", tmp_path)
    assert isinstance(asked.answer(encoded(asked.order(0))), bytes)
    sessions = [bytes([number] * 16) for number in range(2)]
    found = asked.masked({0: encoded(asked.order(0))}, sessions[0])[0]
    assert isinstance(found, bytes), "a server that starts again asks for the same"
    missed = replace(asked.order(0), rate=asked.order(0).rate / 2)
    settings = told_of("scalars, secure")
    backing = settings.model_copy(update={"run": settings.run.model_copy(update={"on_surge": "backoff"})})
    asked = Asked(backing, "node", tmp_path / "backing")
    assert isinstance(asked.answer(encoded(asked.order(0))), bytes)
    found = asked.masked({0: encoded(missed)}, sessions[1])[0]
    assert str(found) == "client 0 has masked a reply for round 0, and answers no other order for round 0"
