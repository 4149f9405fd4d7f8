"""A server that tells clients unlike orders learns nothing of one of them (Pasquini et al. 2022, arXiv 2111.07380).

All but a victim are told another rate, other weights or another recipe, so that what they add is nothing; the server
plays the sum to its end, unmasks by every binding that it knows, and compares with the victim's part.
"""

from dataclasses import replace

import numpy as np
import pytest
from doubles import MODES, SESSION, Asked, huge, told_of
from small_federation import site

from seedtune.errors import MessageError
from seedtune.fed import secure_client, secure_messages
from seedtune.fed.binding import order_binding, run_context
from seedtune.fed.client import local_round
from seedtune.fed.contribution import total_of, words_of
from seedtune.fed.messages import encode_order, unpack_weights
from seedtune.privacy.public import Peer, Roster
from seedtune.privacy.secure_sum import unmasked
from seedtune.privacy.sum_plan import SumPlan
from seedtune.recipe_text import build, merged
from seedtune.space import digest

VICTIM = 2
EXCHANGES = {"scalars": "scalars, secure", "votes": "votes, secure", "weights": "weights, secure"}


def tiny_rate(order, at):
    return replace(order, rate=1e-30)


def same(order, at):
    return order


UNLIKE = {"a rate of next to nothing": tiny_rate, "weights that compute nothing": huge}


@pytest.fixture
def credulous(monkeypatch):
    """Clients that check nothing of an order: what is left are the masks."""
    monkeypatch.setattr(secure_client, "check_order", lambda *order: None)
    monkeypatch.setattr("seedtune.fed.client.check_sent_weights", lambda *order: None)


def many(mode):
    """With some 1,000 bytes to compare."""
    local = {"local": {"num_directions": 32}} if "weights" not in mode else {}
    return build(merged(told_of(mode).model_dump(), local))


def learned(mode, changed):
    """What the server unmasks, by each binding that it knows; what the victim added; and the plan of the sum."""
    settings = many(mode)
    asked = Asked(settings, "in-process", None)
    orders = {client: asked.order(client) for client in range(4)}
    told = {c: order if c == VICTIM else changed(order, site(settings)) for c, order in orders.items()}
    # a site has one replica, and each client a state of its own: told one after another, the victim first
    answers = asked.masked({VICTIM: encode_order(told[VICTIM])})
    answers |= asked_again(asked, {c: encode_order(told[c]) for c in told if c != VICTIM})
    replies = {c: secure_messages.decode_masked_reply(answer) for c, answer in answers.items()}
    revealed = asked.revealed(range(4))
    context = run_context(settings, asked.at.header)
    peers = tuple(Peer(c, keys.agreement, keys.mask) for c, keys in sorted(asked.keys.items()))
    plan = SumPlan.of(settings)
    roster = Roster(SESSION, 0, plan.threshold, peers, context)
    total = sum((reply.words for reply in replies.values()), np.zeros_like(replies[0].words))
    found = [
        unmasked(roster, range(4), range(4), total, revealed, bound(context, told[c], settings)) for c in (0, VICTIM)
    ]
    fresh = site(settings)
    return found, words_of(fresh, orders[VICTIM], local_round(fresh, orders[VICTIM]), plan.code), plan


def asked_again(asked, orders):
    """Masked orders in the sum that is under way."""
    requests = {
        c: secure_messages.encode_masked_order(secure_messages.MaskedOrder(SESSION, order, {
            d: boxes[c] for d, boxes in asked.sealed.items() if d != c})) for c, order in orders.items()
    }  # fmt: skip
    return asked._each(requests)


def bound(context, order, settings):
    at = site(settings)
    weights = unpack_weights(order.weights, at.perturber.space) if order.weights else at.replica.weights
    assert digest(weights) == order.digest
    return order_binding(context, order.round, order.rate, order.rate_ratio, weights)


@pytest.mark.parametrize("told", UNLIKE)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_sum_of_unlike_orders_tells_nothing_of_the_victim(exchange, told, credulous):
    """Bytes of what is unmasked agree with the victim's as often as chance has it: one in 256."""
    found, victims, plan = learned(EXCHANGES[exchange], UNLIKE[told])
    for words in found:
        with pytest.raises(MessageError, match="a client's masks or shares are not what it said"):
            total_of(words, 4, plan.code)
        num_bytes = 8 * len(words)
        agreeing = (words.view(np.uint8) == victims.view(np.uint8)).sum()
        assert agreeing < num_bytes / 256 + 6 * np.sqrt(num_bytes / 256), f"{agreeing} of {num_bytes} bytes agree"
        assert not (words == victims).any()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_same_server_with_like_orders_unmasks_the_sum(exchange, credulous):
    """So the attack above is played right."""
    found, _, plan = learned(EXCHANGES[exchange], same)
    assert total_of(found[0], 4, plan.code).clients == 4


def test_clients_of_unlike_recipes_do_not_open_one_anothers_shares():
    settings, other = (told_of("scalars, secure"), build(merged(MODES["scalars, secure"], {"local": {"clip": 1e-9}})))
    assert run_context(settings, site(settings).header) != run_context(other, site(other).header)
    own_places = build(merged(settings.model_dump(), {"model": {"name": "elsewhere"}, "task": {"path": "here"}}))
    assert run_context(settings, site(settings).header) == run_context(own_places, site(own_places).header)


@pytest.mark.parametrize("changed", [dict(base_digest="00" * 16), dict(seed=3), dict(space="f" * 32)])
def test_a_run_stands_on_its_base_its_seed_and_its_space(changed):
    at = site(told_of("scalars, secure"))
    assert run_context(at.recipe, at.header) != run_context(at.recipe, replace(at.header, **changed))
