"""Measured learning rates in every exchange: live, replayed, resumed and late weights are the same."""

import itertools

import numpy as np
import pytest
from small_federation import recipe
from test_protocols_conform import counts
from test_rates_conform import EXCHANGES, NUM_ROUNDS, late_client, replayed
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import run_store
from seedtune.experiment import resume, run

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(params=itertools.product(EXCHANGES, ("one", "own")), ids="-".join)
def measured(request):
    exchange, whose = request.param
    federation = {**EXCHANGES[exchange], "num_rounds": NUM_ROUNDS, "cohort_size": 3, "dropout_rate": 0.2}
    return recipe(
        federation={**federation, "local_steps": 1 if whose == "one" else 3}, local={"learning_rate": "auto"},
        auto={"learning_rate": 0.002, "per_client": whose == "own", "every": 1},
    )  # fmt: skip


def test_live_replayed_resumed_and_late_weights_are_the_same(measured, tmp_path):
    live = run(measured, MACHINE, tmp_path / "live", NOTHING)

    assert replayed(measured, tmp_path / "live") == late_client(measured, tmp_path / "live") == live["state_digest"]
    for stop in (1, 5):
        with pytest.raises(KeyboardInterrupt):
            run(measured, MACHINE, tmp_path / "stopped", StopAfter(stop), replace_run=True)
        assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(live), f"stopped after {stop}"


def test_rates_move_and_are_recorded(measured, tmp_path):
    run(measured, MACHINE, tmp_path / "live", NOTHING)
    rows = run_store.metrics_of(tmp_path / "live")[1:]
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == 0.002 and len(set(rates)) > 1
    clients = [client for row in rows for client in row["slopes"]]
    assert clients == [client for row in rows for client in row["losses"]], "every client that took part measured"
    assert all(np.isfinite(numbers).all() and len(numbers) == 3 for row in rows for numbers in row["slopes"].values())
