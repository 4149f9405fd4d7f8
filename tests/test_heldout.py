"""Examples that clients hold out: evaluated client by client, and never trained on, whoever trains."""

import numpy as np
import pytest
import tiny_runs
from tiny_runs import MACHINE, NOTHING

from seedtune import assembly, baseline, run_store
from seedtune.assembly import assemble
from seedtune.baseline import backpropagation
from seedtune.errors import DataError
from seedtune.experiment import run
from seedtune.fed.client import local_round
from seedtune.fed.messages import Order
from seedtune.models.evaluation import evaluate

QUARTER = {"heldout_fraction": 0.25}


@pytest.fixture
def trained_on(monkeypatch):
    """The indices of all examples that anybody trains on from now on."""
    seen = set()
    for room in (assembly, baseline):
        whole = room.batch_of

        def recorded(examples, indices, whole=whole):
            seen.update(number_of[id(examples.examples[i])] for i in indices)
            return whole(examples, indices)

        monkeypatch.setattr(room, "batch_of", recorded)
    number_of = Numbers(monkeypatch)
    return seen


class Numbers(dict):
    """The place of each training example in the task, by identity: subsets number theirs anew."""

    def __init__(self, monkeypatch):
        super().__init__()
        whole = assembly.encode

        def encode(*args):
            encoded = whole(*args)
            if not self:  # the training examples come first
                self.update({id(example): i for i, example in enumerate(encoded.examples)})
                self.kept = encoded  # so that nothing else takes their places in memory
            return encoded

        monkeypatch.setattr(assembly, "encode", encode)


def parts(made) -> tuple[set[int], set[int]]:
    return tuple({int(i) for own in dealt for i in own} for dealt in (made.clients, made.heldout))


@pytest.mark.parametrize("federation", [{"local_steps": 9}, {"upload": "weights", "local_epochs": 1}], ids=str)
def test_clients_never_train_on_what_they_hold_out(tiny_recipe, trained_on, federation):
    made = assemble(tiny_recipe(partition=QUARTER, federation=federation), MACHINE)
    train, held = parts(made)
    for client in range(4):
        local_round(made.site, Order(0, client, made.site.replica.digest, 1e-3))
    assert trained_on == train and held and not held & train and held | train == set(range(len(made.train)))
    assert all(made.site.num_examples(client) == len(own) for client, own in enumerate(made.clients))


def test_neither_does_the_comparison_by_backpropagation(tiny_recipe, trained_on):
    made = assemble(tiny_recipe(partition=QUARTER, baseline={"num_steps": 60}), MACHINE)
    backpropagation(made)
    assert trained_on == parts(made)[0]


def test_nor_is_a_probe_fitted_on_it(tiny_recipe, trained_on, tmp_path):
    model = {"name": str(tiny_runs.save_encoder(tmp_path / "encoder")), "head": "probe"}
    made = assemble(tiny_recipe(model=model, task={"answers": {}}, partition=QUARTER), MACHINE)
    assert trained_on == parts(made)[0]


def test_each_client_is_evaluated_on_its_own(tiny_recipe):
    made = assemble(tiny_recipe(partition=QUARTER), MACHINE)
    found = made.evaluate_clients()
    assert list(found) == [0, 1, 2, 3]
    for client, own in enumerate(made.heldout):
        alone = [evaluate(made.model, made.train.subset([i])) for i in own]
        assert found[client].num_examples == len(own) >= 2
        assert found[client].loss == pytest.approx(np.mean([each.loss for each in alone]), rel=1e-5)
        assert found[client].accuracy == pytest.approx(np.mean([each.accuracy for each in alone]))


def test_clients_are_evaluated_at_the_servers_weights(tiny_recipe):
    made = assemble(tiny_recipe(partition=QUARTER, federation={"local_steps": 2}), MACHINE)
    before = made.evaluate_clients()
    local_round(made.site, Order(0, 1, made.site.replica.digest, 1.0))
    assert made.evaluate_clients() == before
    made.site.replica.weights["model.norm.weight"] *= 2
    assert made.evaluate_clients() != before


def test_a_client_too_small_to_hold_out_is_left_out(tiny_recipe):
    """46 examples of 12 clients, four each or three: a quarter of three is none."""
    made = assemble(tiny_recipe(partition={**QUARTER, "num_clients": 12}), MACHINE)
    assert [len(own) for own in made.heldout] == [1] * 10 + [0] * 2 and list(made.evaluate_clients()) == list(range(10))


def test_a_run_of_which_nobody_can_hold_out_is_refused(tiny_recipe, tmp_path):
    """46 examples of 23 clients, two each. Its patience would watch test examples."""
    settings = tiny_recipe(partition={**QUARTER, "num_clients": 23}, run={"patience": 2})
    with pytest.raises(DataError, match=r"partition.heldout_fraction = 0.25: the largest of 23 clients has 2 training"):
        run(settings, MACHINE, tmp_path / "run", NOTHING)
    assert not (tmp_path / "run").exists()


def test_rows_and_summary_hold_every_clients_evaluation(tiny_recipe, tmp_path):
    settings = tiny_recipe(partition=QUARTER, run={"eval_every": 2})
    summary, made = run(settings, MACHINE, tmp_path / "run", NOTHING), assemble(settings, MACHINE)
    rows, sizes = run_store.metrics_of(tmp_path / "run"), [len(own) for own in made.heldout]
    assert [row["rounds"] for row in rows if "heldout" in row] == [0, 2, 3]
    for row in (rows[0], rows[2], rows[3]):
        each = [row["heldout"][str(client)] for client in range(4)]
        for name in ("loss", "accuracy"):
            mean = np.average([scores[name] for scores in each], weights=sizes)
            assert row[f"heldout_{name}"] == pytest.approx(mean)
    together = evaluate(made.model, made.train.subset(np.concatenate(made.heldout)))
    assert rows[0]["heldout_loss"] == pytest.approx(together.loss, rel=1e-5)
    assert summary["heldout_loss"] == rows[3]["heldout_loss"] != rows[0]["heldout_loss"]
    assert summary["heldout_accuracy"] == rows[3]["heldout_accuracy"]
    best = min((rows[0], rows[2], rows[3]), key=lambda row: row["heldout_loss"])
    assert (summary["best_rounds"], summary["best_loss"]) == (best["rounds"], best["loss"])


def test_without_held_out_examples_rows_do_not_speak_of_them(tiny_recipe, tmp_path):
    summary = run(tiny_recipe(), MACHINE, tmp_path / "run", NOTHING)
    assert summary["heldout_loss"] is None and summary["heldout_accuracy"] is None
    assert not any(name.startswith("heldout") for row in run_store.metrics_of(tmp_path / "run") for name in row)
