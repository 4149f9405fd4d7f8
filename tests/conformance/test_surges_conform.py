"""What a surge takes back is taken back for everyone: live, replayed, resumed and late weights stay the same."""

import itertools

import pytest
import small_federation
from test_protocols_conform import EXCHANGES, counts, late_client, replayed
from test_rates_conform import late_client as joined_late
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import run_store
from seedtune.experiment import resume, run
from seedtune.recipe_text import merged

EXPLOSIVE = {"num_directions": 2, "learning_rate": 3.0}
STOPS = {"float32": (2,), "bfloat16": (1, 5)}
"""Rounds after which a run is stopped and goes on, by the weights' type."""
CASES = list(itertools.product(EXCHANGES, STOPS))


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def recipe(request, tiny_recipe):
    exchange, dtype = request.param
    settings = {
        "federation": {"num_rounds": 8, "cohort_size": 3}, "model": {"dtype": dtype}, "local": EXPLOSIVE,
        "run": {"on_surge": "backoff", "eval_every": 4},
    }  # fmt: skip
    return tiny_recipe(**merged(settings, EXCHANGES[exchange]))


def test_a_run_with_rounds_taken_back_is_replayed_resumed_and_joined_late(recipe, tmp_path):
    live = run(recipe, MACHINE, tmp_path / "live", NOTHING)

    records = run_store.trajectory_of(tmp_path / "live").records
    undone = [record for record in records if record.back_to is not None]
    assert undone and len(live["surges"]) == len(undone)
    assert all(record.digest == ends(tmp_path / "live")[record.back_to] for record in undone)
    assert replayed(tmp_path / "live") == live["state_digest"] == records[-1].digest.hex()
    assert late_client(recipe, tmp_path / "live") == live["state_digest"]
    for stop in STOPS[recipe.model.dtype]:
        with pytest.raises(KeyboardInterrupt):
            run(recipe, MACHINE, tmp_path / "stopped", StopAfter(stop), replace_run=True)
        assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(live), f"stopped after {stop}"


def ends(folder):
    """The digest of the tuned weights after each number of rounds, from the start on."""
    trajectory = run_store.trajectory_of(folder)
    return [bytes.fromhex(replayed(folder, num_rounds=0)), *(record.digest for record in trajectory.records)]


# On a federation without a model, where the loss falls before it rises: rounds are taken back to one after the first.

GRADUAL = {
    "local": {"learning_rate": 0.08, "warmup_rounds": 14, "num_directions": 2},
    "federation": {"num_rounds": 24, "batch_size": 12, "dropout_rate": 0.08, "min_replies": 4},
    "run": {"on_surge": "backoff", "eval_every": 4},
}
"""Where somebody stays silent the round moves nothing: in nine of the rounds."""


@pytest.mark.parametrize("exchange", ["scalars-own", "scalars-shared", "weights"])
def test_rounds_are_taken_back_to_a_later_state_than_the_base(exchange, small_runs, tmp_path):
    own_rates = {"personalise": {"policy": "five-round", "alpha": 0.1}} if exchange != "scalars-shared" else {}
    settings = small_federation.recipe(**merged(merged(GRADUAL, EXCHANGES[exchange]), own_rates))
    live = run(settings, MACHINE, tmp_path / "live", NOTHING)

    records = run_store.trajectory_of(tmp_path / "live").records
    undone = [record for record in records if record.back_to]
    assert undone and len(live["surges"]) == len([record for record in records if record.back_to is not None])
    assert [record.digest for record in undone] == [records[record.back_to - 1].digest for record in undone]
    assert any(record.back_to is None and not record.clients for record in records)
    for stop in (3, 8, 14, 15, 16, 17, 23):
        with pytest.raises(KeyboardInterrupt):
            run(settings, MACHINE, tmp_path / "stopped", StopAfter(stop), replace_run=True)
        stands = run_store.trajectory_of(tmp_path / "stopped").records[-1].digest.hex()
        assert joined_late(settings, tmp_path / "stopped") == stands
        assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(live), f"stopped after {stop}"
