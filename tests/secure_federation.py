"""Secure sums around the small federation: engines that lose messages, and what the sums are without masks."""

from collections.abc import Collection, Mapping

import numpy as np
from small_federation import protocol, recipe, server, site

from seedtune.config import Recipe
from seedtune.engines.in_process import InProcess
from seedtune.experiment import exchange_of
from seedtune.fed.client import Site, local_round
from seedtune.fed.contribution import num_words, total_of, words_of
from seedtune.fed.rounds import RoundResult, Server, run_rounds
from seedtune.fed.secure_messages import decode_bundle
from seedtune.fed.wire import kind_of
from seedtune.privacy.fixed_point import WORD
from seedtune.privacy.sum_plan import SumPlan

SHARED = {"upload": "scalars", "keys": "shared"}
VOTES = SHARED | {"aggregation": "sign-vote", "weighting": "equal"}
WEIGHTS = {"upload": "weights", "keys": "own"}


def secure(federation: Mapping = SHARED, **over) -> Recipe:
    """A recipe with secure sums: four clients, three of whom must stay."""
    return recipe(federation=federation, secure_sum={"enabled": True, **over.pop("secure_sum", {})}, **over)


class Lossy:
    """An engine of which some answers are lost: `lost` says whose, by number of the exchange. `kinds`: of the requests
    of each exchange so far."""

    def __init__(self, at: Site, lost: Mapping[int, Collection[int]] | None = None):
        self.engine, self.lost, self.kinds = InProcess(at), lost or {}, []

    def exchange(self, messages):
        number, asked = len(self.kinds), dict(messages)
        self.kinds.append({kind_of(part) for bundle in asked.values() for part in decode_bundle(bundle)})
        for client, answer in self.engine.exchange(asked):
            if client not in self.lost.get(number, ()):
                yield client, answer


class PlainSums:
    """The exchange of a run in which the server sees what each client would have masked: the secure sum's twin."""

    def __init__(self, at: Site, lost: Mapping[int, Collection[int]] | None = None):
        self.site, self.lost = at, lost or {}  # by round

    def __call__(self, server: Server, protocol, engine, asked) -> RoundResult:
        code = SumPlan.of(server.recipe).code
        came = tuple(client for client in asked if client not in self.lost.get(server.round, ()))
        words = np.zeros(num_words(server.recipe, server.space), WORD)
        for client in came:
            order = protocol.order(server, client)
            words += words_of(self.site, order, local_round(self.site, order), code)
        total = total_of(words, len(came), code)
        record = protocol.reduce_sum(server, came, total)
        loss, rms = total.mean_loss, total.scalar_rms
        return RoundResult(record, (), (), {}, {}, {}, rms, server.rate, 0, 0, 0, 0, 0, 0.0, mean_loss=loss)


def rounds(settings: Recipe, at: Site | None = None, engine=None, exchange=None) -> tuple[Server, list[RoundResult]]:
    """A run's last server and its rounds."""
    at = at or site(settings)
    state, results = server(at), []
    engine, exchange = engine or InProcess(at), exchange or exchange_of(settings)
    made = run_rounds(state, protocol(settings), engine, exchange=exchange)
    for state, result in made:  # noqa: B007
        results.append(result)
    return state, results


def digests(results: list[RoundResult]) -> list[str]:
    return [result.record.digest.hex() for result in results]
