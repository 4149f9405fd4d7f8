"""Whatever a client sends, a round leaves it out by name and goes on with the others, and no reason tells of data."""

from dataclasses import replace

import numpy as np
import pytest
from doubles import MODES, private, told_of
from small_federation import examples, recipe, server, site

from seedtune.engines.in_process import InProcess
from seedtune.errors import EngineError
from seedtune.experiment import exchange_of, protocol_of
from seedtune.fed import secure_messages as sm
from seedtune.fed.messages import decode_reply, encode_reply
from seedtune.fed.rounds import one_round
from seedtune.fed.wire import kind_of
from seedtune.recipe_text import merged

LIAR = 2
PLAIN = {
    "nothing": lambda data: b"",
    "garbage": lambda data: b"\xff" * 1_000,
    "a deep message": lambda data: b"\x91" * 10_000,
    "a text that imitates the log": lambda data: EngineError("no\nround 5, train loss 0.0\x1b[2J"),
    "an error of a megabyte": lambda data: EngineError("x" * 2**20),
    "another's name": lambda data: encode_reply(replace(decode_reply(data), client=0)),
    "an old round": lambda data: encode_reply(replace(decode_reply(data), round=7)),
    "more scalars": lambda data: encode_reply(replace(decode_reply(data), scalars=np.ones((9, 9), np.float32))),
    "weights of another model": lambda data: encode_reply(
        replace(decode_reply(data), weights=b"x" * 99, scalars=np.zeros((0, 0), np.float32))
    ),
}
SECURE = {
    "nothing": lambda part: b"",
    "garbage": lambda part: b"\xff" * 1_000,
    "another session": lambda part: part.replace(sm.decode_masked_reply(part).session, bytes(16)),
    "fewer words": lambda part: sm.encode_masked_reply(replace(sm.decode_masked_reply(part), words=np.zeros(1, "<u8"))),
    "words of another order": lambda part: sm.encode_masked_reply(
        replace(sm.decode_masked_reply(part), shown=bytes(16))
    ),
    "another's name": lambda part: sm.encode_masked_reply(replace(sm.decode_masked_reply(part), client=0)),
}


class Lying:
    """An engine whose client 2 answers otherwise: all of a plain answer, or its masked reply."""

    def __init__(self, at, lie, is_secure):
        self.inner, self.lie, self.is_secure = InProcess(at), lie, is_secure

    def exchange(self, messages):
        for client, answer in self.inner.exchange(dict(messages)):
            if client == LIAR and isinstance(answer, bytes):
                answer = self._bundled(answer) if self.is_secure else self.lie(answer)
            yield client, answer

    def _bundled(self, answer):
        parts = [
            self.lie(part) if isinstance(part, bytes) and kind_of(part) == sm.MASKED_REPLY else part
            for part in sm.decode_answers(answer)
        ]
        return sm.encode_answers(parts)


CASES = [(mode, lie) for mode in MODES for lie in (SECURE if "secure" in mode or "shares" in mode else PLAIN)]


@pytest.mark.parametrize("mode, lie", CASES, ids=[f"{mode}: {lie}" for mode, lie in CASES])
def test_a_client_that_lies_is_left_out_by_name_and_the_round_goes_on(mode, lie):
    settings = told_of(mode)
    at, is_secure = site(settings), settings.secure_sum.enabled
    state = replace(server(at), secret=bytes(32))
    engine = Lying(at, (SECURE if is_secure else PLAIN)[lie], is_secure)
    ahead, result = one_round(state, protocol_of(settings), engine, exchange=exchange_of(settings))
    assert set(result.record.clients) == {0, 1, 3} and set(result.failed) == {LIAR}
    assert ahead.round == 1 and "\n" not in result.failed[LIAR]
    if settings.is_private:
        assert result.failed[LIAR] == "withheld"


def test_of_a_secret_cohort_nobody_is_named_where_a_round_fails():
    settings = recipe(**merged(MODES["scalars, central"], {
        "partition": {"num_clients": 20}, "federation": {"cohort_size": 4},
        "privacy": {"sampling": "fixed-size", "noise_multiplier": 1.0},
    }))  # fmt: skip
    at = site(settings)

    class Failing:
        def exchange(self, messages):
            return [(client, EngineError("the patient is called X")) for client in messages]

    with pytest.raises(EngineError) as failure:
        one_round(replace(server(at), secret=bytes(32)), protocol_of(settings), Failing())
    assert str(failure.value) == ("round 0: too few usable replies, federation.min_replies is 1; others failed")


@pytest.mark.parametrize("noise", ["local", "central"])
def test_a_client_that_rides_with_others_tells_no_reason_either(noise):
    """With shared keys and one step, clients but the first are measured side by side."""
    settings = recipe(**merged(MODES["scalars, none"], merged(private(noise), {"federation": {"local_steps": 1}})))
    at = site(settings)

    def failing(client, key):
        if client == LIAR:
            raise ValueError("the patient is called X")
        return tuple(tensor[:5] for tensor in examples(client))

    told = []

    class Listening(InProcess):
        def exchange(self, messages):
            for client, answer in super().exchange(dict(messages)):
                told.append(f"{client}: {answer}" if isinstance(answer, Exception) else "")
                yield client, answer

    engine = Listening(replace(at, batch=failing))
    _, result = one_round(replace(server(at), secret=bytes(32)), protocol_of(settings), engine)
    assert set(result.record.clients) == {0, 1, 3}
    assert [text for text in told if text] == [
        "2: client 2, round 0: a local step of a private run failed; why stays on the device"
    ]
