"""One suite for every rate policy: whoever folds the records has the rates that the run had, and so its weights."""

import itertools

import pytest
from small_federation import protocol, recipe, server, site
from test_protocols_conform import counts
from tiny_runs import MACHINE, NOTHING, StopAfter

from seedtune import run_store
from seedtune.experiment import resume, run
from seedtune.fed.client import catch_up
from seedtune.fed.messages import decode_order, encode_order
from seedtune.fed.personalise import POLICIES
from seedtune.fed.rounds import after
from seedtune.metrics import result_of
from seedtune.space import digest
from seedtune.zo.trajectory import replay

EXCHANGES = {
    "scalars-own": {"upload": "scalars", "keys": "own"},
    "scalars-shared": {"upload": "scalars", "keys": "shared"},
    "weights": {"upload": "weights"},
}
NUM_ROUNDS = 8
"""`five-round` acts in the last three."""


pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(params=itertools.product(POLICIES, EXCHANGES), ids="-".join)
def personal(request):
    policy, exchange = request.param
    federation = {**EXCHANGES[exchange], "num_rounds": NUM_ROUNDS, "cohort_size": 3, "dropout_rate": 0.2}
    return recipe(federation={**federation, "local_steps": 2}, personalise={"policy": policy, "alpha": 0.9})


def test_live_replayed_resumed_and_late_weights_are_the_same(personal, tmp_path):
    live = run(personal, MACHINE, tmp_path / "live", NOTHING)

    assert replayed(personal, tmp_path / "live") == late_client(personal, tmp_path / "live") == live["state_digest"]
    for stop in (1, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            run(personal, MACHINE, tmp_path / "stopped", StopAfter(stop), replace_run=True)
        assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(live), f"stopped after {stop}"


def test_a_policy_moves_the_weights_from_the_round_on_in_which_it_acts(personal, tmp_path):
    """So the suite above sees it; with `fixed` rates all is as with none."""
    everyone = personal.federation.model_copy(update={"cohort_size": 0, "dropout_rate": 0.0})
    personal = personal.model_copy(update={"federation": everyone})
    stories, plain = [], personal.model_copy(update={"personalise": recipe().personalise})
    for name, settings in (("personal", personal), ("plain", plain)):
        run(settings, MACHINE, tmp_path / name, NOTHING)
        stories.append([record.digest for record in run_store.trajectory_of(tmp_path / name).records])
    same = [ours == theirs for ours, theirs in zip(*stories, strict=True)]
    policy = POLICIES[personal.personalise.policy]
    first = NUM_ROUNDS if personal.personalise.policy == "fixed" else policy.num_rounds
    assert same == [round_ < first for round_ in range(NUM_ROUNDS)]


def replayed(settings, folder):
    fresh = site(settings)
    snapshot = lambda round_: run_store.snapshot_of(folder, round_)  # noqa: E731
    replay(fresh.perturber.space, fresh.replica.weights, run_store.trajectory_of(folder), None, snapshot)
    return digest(fresh.replica.weights).hex()


def late_client(settings, folder):
    """One that takes part for the first time after the last round, with a site of its own."""
    state = server_after(settings, folder)
    late = site(settings)
    catch_up(late, decode_order(encode_order(protocol(settings).order(state, 3))))
    return late.replica.digest.hex()


def server_after(settings, folder):
    state = server(site(settings))
    trajectory = run_store.trajectory_of(folder)
    replay(state.space, state.replica.weights, trajectory, None, lambda round_: run_store.snapshot_of(folder, round_))
    state.replica.digest = digest(state.replica.weights)
    for record, row in zip(trajectory.records, run_store.metrics_of(folder)[1:], strict=True):
        state = after(state, result_of(record, row))
    return type(state)(**{**vars(state), "up_to_date": {}})
