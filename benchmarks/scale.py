"""Thousands of clients: what a client's round costs beyond its forwards, and what a run does.

overhead: processor time of a round without its losses and noise, a client, from runs around one linear layer whose
loss takes microseconds; against the number of clients N, local steps H, directions P and tuned parameters d, one varied
at a time, with the exponent of a log-log fit and its standard error. It includes drawing the batch, messages in both
directions, keys and the move of the weights; so it grows with H P d by what the step itself must do.
rounds: the same and resident memory as a run goes on. start: seconds to deal examples to 10,000 clients.
ride: rounds of clients that share directions, riding the same perturbed weights, over the same round one by one;
the starter in whole and under LoRA. run: rounds of the recipe of the first run over its own forwards, the same number
of plain forwards of the same batches behind the same frozen layers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from benchmarks._report import arguments, ratio, report, spread
from seedtune import metrics, presets, run_store
from seedtune.assembly import assemble
from seedtune.config import Machine, Recipe
from seedtune.data.examples import Example
from seedtune.data.partition import held_out, partition
from seedtune.engines.in_process import InProcess
from seedtune.experiment import PROTOCOLS
from seedtune.fed.client import Replica, Site, local_round
from seedtune.fed.messages import decode_order, encode_reply
from seedtune.fed.rounds import Engine, RoundResult, Server, run_rounds
from seedtune.recipe_text import build
from seedtune.sections import PartitionConfig
from seedtune.space import bound_weights, digest, model_digest, space_of
from seedtune.zo.meter import Meter, Shape
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturber
from seedtune.zo.trajectory import Header

COHORT = 100
START = {"N": 10_000, "H": 1, "P": 1, "d": 64}
VARIED = {"N": (100, 1_000, 10_000), "H": (1, 3, 9), "P": (1, 3, 9), "d": (64, 4_096, 262_144)}


def recipe(keys: str, num_rounds: int, N: int, H: int, P: int) -> Recipe:
    return build({
        "partition": {"num_clients": N},
        "federation": {"cohort_size": COHORT, "num_rounds": num_rounds, "keys": keys, "local_steps": H},
        "local": {"num_directions": P, "learning_rate": 1e-9},
    })  # fmt: skip


def small_site(recipe: Recipe, d: int) -> Site:
    """Around a layer of d weights, whose loss reads all of them and one batch."""
    layer = torch.nn.Linear(d, 1, bias=False).requires_grad_(False)
    space, rows = space_of(layer, ("weight",)), torch.ones(4, d)
    header = Header("linear", model_digest(layer).hex(), space.fingerprint, 0, recipe.federation.keys,
                    Distribution(recipe.local.distribution), {})  # fmt: skip
    weights = bound_weights(layer, space)
    return Site(recipe, header, layer, Perturber(layer, space), Replica(weights, digest(weights)), {},
                batch=lambda client, key: rows, epoch=lambda client, key: iter([rows]),
                loss=lambda batch: layer(batch).square().mean(), shape=lambda batch: Shape((4, d), None, None, 0),
                num_examples=lambda client: 4, meter=Meter())  # fmt: skip


def rounds_of(site: Site, engine: Engine | None = None) -> Iterator[tuple[Server, RoundResult]]:
    server = Server.at_start(site.recipe, site.header, site.perturber.space, site.replica)
    return run_rounds(server, PROTOCOLS[site.recipe.federation.upload](), engine or InProcess(site))


def overhead(quick: bool) -> list[dict[str, Any]]:
    num_rounds, rows = 3 if quick else 4, []
    for keys in ("shared",) if quick else ("own", "shared"):
        for name, values in VARIED.items():
            found = [_overheads(keys, num_rounds, **START | {name: value}) for value in values]
            exponent, error = fitted(values, [spread(each).median for each in found])
            places = ("least", "middle", "most")
            cells = {f"at {place}": spread(each) for place, each in zip(places, found, strict=True)}
            varied = ", ".join(f"{value:,}" for value in values)
            rows.append({"keys": keys, "varied": f"{name} = {varied}", **cells,
                         "exponent": f"{exponent:.2f} +- {error:.2f}"})  # fmt: skip
    return rows


def _overheads(keys: str, num_rounds: int, N: int, H: int, P: int, d: int) -> list[float]:
    """Milliseconds a client, of each round but the first two; the losses alone are taken away."""
    site = small_site(recipe(keys, num_rounds, N, H, P), d)
    plain = _seconds_of_losses(site)
    found, started = [], process_time()
    for _, result in rounds_of(site):
        ended = process_time()
        found.append(1e3 * (ended - started - plain * result.num_forwards) / COHORT)
        started = ended
    return found[2:]


@torch.no_grad()
def _seconds_of_losses(site: Site) -> float:
    batch, started = site.batch(0, 0), process_time()
    for _ in range(200):
        float(site.loss(batch))
    return (process_time() - started) / 200


def fitted(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """(exponent, its standard error) of costs that grow as a power of sizes.

    >>> fitted([1, 10, 100], [2, 20, 200])
    (1.0, 0.0)
    """
    x, y = np.log(sizes), np.log(np.maximum(costs, 1e-6))
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    error = float(np.sqrt(rest @ rest / max(1, len(x) - 2) / (centred @ centred)))
    return round(slope, 6), round(error, 6)


def rounds(quick: bool) -> list[dict[str, Any]]:
    num_rounds = 8 if quick else 100
    site, rows, found = small_site(recipe("shared", num_rounds, 10_000, 1, 4), 65_536), [], []
    started = process_time()
    with TemporaryDirectory() as folder, run_store.create(Path(folder) / "run") as store:
        store.begin(site.recipe, site.header, {"rounds": 0, "elapsed_seconds": 0.0})
        for server, result in rounds_of(site):
            store.append(result.record, metrics.round_row(server.round, 0.0, result, None))
            found.append(1e3 * (process_time() - started) / COHORT)
            started = process_time()
            if server.round % (num_rounds // 4) == 0:
                row = {"rounds": server.round, "ms a client": spread(found[-num_rounds // 4 :])}
                rows.append(row | {"resident, MB": round(_resident_bytes() / 1e6, 1)})
    return rows


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if Path("/proc").exists() else 0


def start(quick: bool) -> list[dict[str, Any]]:
    examples = [Example("", "", "", "", i % 8, str(i % 3000)) for i in range(100_000)]
    return [_dealt(examples, kind, 1 if quick else 3) for kind in ("iid", "dirichlet", "natural")]


def _dealt(examples: Sequence[Example], kind: str, num_turns: int) -> dict[str, Any]:
    config, found = PartitionConfig(kind=kind, num_clients=10_000, alpha=5.0), []
    for turn in range(num_turns):
        started = perf_counter()
        held_out(partition(examples, config, turn), config, turn)
        found.append(perf_counter() - started)
    return {"partition": kind, "clients": 10_000, "examples": len(examples), "seconds": spread(found)}


def ride(quick: bool) -> list[dict[str, Any]]:
    cases = {"starter, all weights": {"trainable": []}, "starter, LoRA": {"trainable": [], "adapter": "lora"}}
    methods = ("feedsign",) if quick else ("feedsign", "decomfl")
    return [_ridden(method, name, model, 1 if quick else 3) for method in methods for name, model in cases.items()]


def _ridden(method: str, name: str, model: dict[str, Any], num_turns: int) -> dict[str, Any]:
    num_clients = 5 if method == "decomfl" else 25
    over = {"model": model, "partition": {"num_clients": num_clients, "kind": "iid"},
            "federation": {"batch_size": 4, "num_rounds": num_turns + 1},
            "local": {"learning_rate": 1e-6, "evaluations": "one-by-one"}}  # fmt: skip
    composed = presets.composed(None, method, over)
    times: dict[str, list[float]] = {"together": [], "alone": []}
    digests = {}
    sites = {way: assemble(composed, Machine()).site for way in times}
    runs = {"together": rounds_of(sites["together"]), "alone": rounds_of(sites["alone"], OneByOne(sites["alone"]))}
    for turn in range(num_turns + 1):
        for way, each in runs.items():
            started = process_time()
            digests[way] = next(each)[1].record.digest
            times[way] += [process_time() - started] if turn else []
        if digests["together"] != digests["alone"]:
            raise AssertionError(f"{method}, {name}: round {turn} ended at another digest where clients rode together")
    return {"method": method, "tuned": name, "clients": num_clients,
            "together / alone": ratio(times["together"], times["alone"])}  # fmt: skip


@dataclass(frozen=True)
class OneByOne:
    """An engine whose clients never ride."""

    site: Site

    def exchange(self, orders: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        for client, order in orders.items():
            yield client, encode_reply(local_round(self.site, decode_order(order)))


def run(quick: bool) -> list[dict[str, Any]]:
    """Processor seconds of both, in the same turn."""
    num_turns = 2 if quick else 5
    composed = presets.composed(None, None, {"federation": {"num_rounds": num_turns + 1}})
    site = assemble(composed, Machine()).site
    asked: list[Any] = []
    watched = dataclasses.replace(site, batch=_noting(site.batch, asked))
    whole, plain = [], []
    with TemporaryDirectory() as folder, run_store.create(Path(folder) / "run") as store:
        store.begin(site.recipe, site.header, {"rounds": 0, "elapsed_seconds": 0.0})
        each = rounds_of(watched)
        for turn in range(num_turns + 1):
            asked.clear()
            started = process_time()
            server, result = next(each)
            store.append(result.record, metrics.round_row(server.round, 0.0, result, None))
            between = process_time()
            _plain_forwards(site, asked, result.num_forwards // len(result.cohort))
            if turn:
                whole.append(between - started)
                plain.append(process_time() - between)
    return [{"recipe": presets.DEFAULT_RECIPE, "whole / own forwards": ratio(whole, plain)}]


def _noting(batch: Callable, asked: list) -> Callable:
    def noting(client: int, key: int) -> Any:
        asked.append(batch(client, key))
        return asked[-1]

    return noting


@torch.no_grad()
def _plain_forwards(site: Site, batches: Sequence[Any], num: int) -> None:
    for batch in batches:
        for _ in range(num):
            float(site.loss(batch))


def main() -> None:
    quick, path = (options := arguments(__doc__.splitlines()[0])).quick, options.json
    tables = (overhead, rounds, start, ride, run)
    report({table.__name__: table(quick) for table in tables}, path)


if __name__ == "__main__":
    main()
