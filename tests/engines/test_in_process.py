import dataclasses

import pytest
from small_federation import protocol, recipe, server, site

from seedtune.engines.in_process import InProcess
from seedtune.errors import DigestMismatch, EngineError, MessageError
from seedtune.fed.messages import Order, decode_reply, encode_order
from seedtune.fed.rounds import one_round


def orders_of(at, clients=(0, 1, 2)):
    return {client: encode_order(protocol(at.recipe).order(server(at), client)) for client in clients}


def test_every_client_answers_in_turn():
    at = site(recipe())
    answers = dict(InProcess(at).exchange(orders_of(at)))
    assert list(answers) == [0, 1, 2]
    assert [decode_reply(answer).client for answer in answers.values()] == [0, 1, 2]


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AttributeError, ZeroDivisionError, MemoryError])
def test_whatever_one_client_raises_is_its_answer(error):
    at = site(recipe())

    def batch(client, key):
        if client == 1:
            raise error("not here")
        return at.batch(client, key)

    answers = dict(InProcess(dataclasses.replace(at, batch=batch)).exchange(orders_of(at)))
    assert isinstance(answers[1], EngineError if error is RuntimeError else error)
    assert isinstance(answers[0], bytes) and isinstance(answers[2], bytes)


def test_an_order_that_is_nonsense_or_cannot_be_met_is_the_answer():
    at = site(recipe())
    orders = orders_of(at) | {0: b"\xc1", 2: encode_order(Order(0, 2, bytes(16), 0.01))}
    answers = dict(InProcess(at).exchange(orders))
    assert isinstance(answers[0], MessageError) and isinstance(answers[2], DigestMismatch)
    assert isinstance(answers[1], bytes)


def test_ctrl_c_is_not_an_answer():
    at = site(recipe())

    def batch(client, key):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_round(server(at), protocol(at.recipe), InProcess(dataclasses.replace(at, batch=batch)))
