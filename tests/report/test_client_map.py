"""The map of clients: every client and round where they are few, a part where they are many, rates as they were."""

import math

import numpy as np
import pytest
import run_folders
from small_federation import recipe
from tiny_runs import MACHINE, NOTHING

from seedtune.analysis.heterogeneity import spearman
from seedtune.analysis.rate_signals import rate_signals
from seedtune.experiment import run
from seedtune.fed import rounds
from seedtune.report.client_map import MOST_CLIENTS, MOST_COLUMNS, grid, maps, own_rates
from seedtune.report.reading import read


def test_few_clients_and_rounds_are_shown_as_they_are():
    found = grid([(1, {0: 1.0, 2: 3.0}), (2, {0: 2.0}), (4, {2: 0.12345678})])
    assert found == {
        "clients": [0, 2], "num_clients": 2, "spans": [[1, 1], [2, 2], [4, 4]], "rounds_a_column": 1,
        "values": [[1, 2, None], [3, None, 0.1235]],
    }  # fmt: skip


def test_many_rounds_are_taken_together_by_their_mean():
    found = grid([(n, {0: float(n)}) for n in range(1, 10_001)])
    assert len(found["spans"]) == MOST_COLUMNS and found["rounds_a_column"] == 25
    assert found["spans"][0] == [1, 25] and found["values"][0][0] == 13 and found["spans"][-1] == [9976, 10_000]


def test_of_many_clients_the_lowest_to_the_highest_are_shown():
    found = grid([(1, {client: math.cos(client) for client in range(1_000)})])
    means = [row[0] for row in found["values"]]
    assert len(found["clients"]) == MOST_CLIENTS and found["num_clients"] == 1_000 and means == sorted(means)
    ordered = sorted(range(1_000), key=math.cos)
    assert (found["clients"][0], found["clients"][-1]) == (ordered[0], ordered[-1])


def test_maps_of_many_runs_are_small(tmp_path):
    lines = [{}, *(run_folders.row(n, list(range(100))) for n in range(1, 301))]
    (found,) = read([run_folders.save(tmp_path / "run", 300, 100, lines=lines)])
    assert len(maps(found, 1)["losses"]["spans"]) == 300 and len(maps(found, 50)["losses"]["spans"]) == 40


def test_maps_that_a_run_has_no_numbers_for_are_left_out(tmp_path):
    (found,) = read([run_folders.save(tmp_path / "run")])
    assert maps(found, 1).keys() == {"losses"}
    (found,) = read([run_folders.save(tmp_path / "empty", lines=[])])
    assert maps(found, 1) == {}


def test_heldout_losses_stand_at_their_evaluations(tmp_path):
    lines = run_folders.rows(3, 2)
    lines[2]["heldout"] = {"0": {"loss": 1.5}, "1": {"loss": None}, "5": "nonsense"}
    (found,) = read([run_folders.save(tmp_path / "run", 3, 2, lines=lines)])
    assert maps(found, 1)["heldout"]["spans"] == [[2, 2]] and maps(found, 1)["heldout"]["values"] == [[1.5]]


MEASURED = {"local": {"learning_rate": "auto"}, "auto": {"per_client": True, "learning_rate": 3.0}}


@pytest.mark.parametrize("policy", ["round-wise", "five-round", "random", "fixed"])
@pytest.mark.parametrize("rate", [{"local": {"learning_rate": 3.0}}, MEASURED], ids=["given", "measured"])
def test_rates_are_those_of_the_run_taken_back_rounds_included(small_runs, monkeypatch, tmp_path, policy, rate):
    """As the report shows them, and as studies set them against how unlike the clients are."""
    used, factors, one_round = [], [], rounds.one_round

    def told(server, *others):
        factors.append([server.rate_factor(client) for client in range(4)])
        used.append([server.rate * factor for factor in factors[-1]])
        return one_round(server, *others)

    monkeypatch.setattr(rounds, "one_round", told)
    settings = {"run": {"on_surge": "backoff"}, "personalise": {"policy": policy}, **rate}
    dealt = {"num_clients": 4, "kind": "dirichlet"}
    run(recipe(federation={"num_rounds": 12}, partition=dealt, **settings), MACHINE, tmp_path / "run", NOTHING)
    (read_back,) = read([tmp_path / "run"])
    assert any(row.get("back_to") is not None for row in read_back.rows)
    is_own = policy != "fixed" or rate is MEASURED
    found = dict(own_rates(read_back))
    assert bool(found) == is_own == (np.ptp(factors, axis=1).max() > 0)
    assert all(found[n] == {client: used[n - 1][client] for client in found[n]} for n in found)

    followed = rate_signals(read_back.recipe, read_back.rows)
    by_round = [spearman(np.array(each), followed.distance) for each in factors]
    assert followed.rate == np.nanmean(by_round) if is_own else np.isnan(followed.rate)


def test_a_round_that_says_it_went_where_the_run_never_was_did_not(tmp_path):
    lines = run_folders.rows(4, 2)
    for line, back in zip(lines[1:], (0, 1, 7, "x"), strict=True):
        line |= {"back_to": back, "signals": {"0": 1.0, "1": 2.0}}
    settings = {"personalise": {"policy": "round-wise"}}
    (found,) = read([run_folders.save(tmp_path / "run", 4, 2, lines=lines, **settings)])
    shares = [each[1] / each[0] for each in dict(own_rates(found)).values()]
    assert shares == [1, 1, 3, 3]


@pytest.mark.parametrize(
    ("estimator", "slopes"),
    [
        ("two-point", {"0": [1.0, 1.0, 1.0], "1": [1.0, 3.0, 1.0]}),
        ("split", {"0": [1.0, 1.0, 1.0, 1.0, 2.0], "1": [1.0, 3.0, 1.0, 3.0, 2.0]}),
    ],
)
def test_measured_rates_of_clients_are_those_of_the_run(tmp_path, estimator, slopes):
    """And numbers that somebody altered are passed over."""
    local = {"learning_rate": "auto", "estimator": estimator}
    asked = {"local": local, "auto": {"per_client": True, "learning_rate": 1e-3, "rate_ratio": 1.0}}
    lines = run_folders.rows(7, 2)
    for line in lines[1:]:
        line["slopes"] = slopes
    lines[1]["slopes"] = {**slopes, "2": [1.0], "x": [1.0, 2.0, 3.0], "3": ["a", 1.0, 2.0], "4": 7, "5": []}
    (found,) = read([run_folders.save(tmp_path / "run", 7, 2, lines=lines, **asked)])
    rates = dict(own_rates(found))
    assert rates[1] == {0: 1e-3, 1: 1e-3}
    assert rates[7][1] < 1e-3 < rates[7][0]
