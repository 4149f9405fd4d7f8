"""Runs end to end on a tiny model, and crashes simulated on a federation without one."""

import json
import math
import os
import signal
import time
from types import SimpleNamespace

import pytest
import small_federation
import tiny_runs
import torch
from peft import PeftModel
from small_federation import without_a_model
from tiny_runs import MACHINE, NOTHING, StopAfter, child, save_model, toml, values
from transformers import AutoModelForCausalLM

from seedtune import baseline, experiment, pinned_inputs, run_store
from seedtune import summary as summary_
from seedtune.assembly import assemble, load_replayed
from seedtune.errors import (
    DigestMismatch,
    EngineError,
    ModelError,
    NotFinite,
    RunStoreError,
    SeedtuneError,
    TrajectoryError,
)
from seedtune.experiment import resolved, resume, run
from seedtune.fed.client import local_round
from seedtune.fed.messages import Order
from seedtune.inspection import exported
from seedtune.models.evaluation import Evaluation
from seedtune.space import bound_weights, digest
from seedtune.trying import evaluated
from seedtune.zo import noise

CLOCKED = ("seconds", "round_seconds", "peak_memory_bytes")


def counts(summary):
    """What does not depend on the clock, nor on the process."""
    return {name: value for name, value in summary.items() if name not in CLOCKED}


# Crashes, on a federation around one linear layer.


class Crash(BaseException):
    """The machine is gone."""


def crash_at(patch, k):
    """Lets the k-th waiting for the disk, or renaming, be the last thing that happens; counts them all."""
    done = []

    def counted(operation):
        def call(*args):
            done.append(operation)
            if len(done) - 1 == k:
                raise Crash
            return operation(*args)

        return call

    patch.setattr(os, "fsync", counted(lambda descriptor: None))
    patch.setattr("pathlib.Path.replace", counted(os.replace))
    return done


@pytest.mark.parametrize("protocol", ["scalars", "weights"])
def test_a_crash_at_any_moment_changes_nothing(tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(experiment, "assemble", without_a_model)
    federation = {"upload": protocol, "num_rounds": 2, "cohort_size": 3, "dropout_rate": 0.2}
    recipe = small_federation.recipe(federation=federation)
    with pytest.MonkeyPatch.context() as patch:
        operations = crash_at(patch, -1)
        whole = run(recipe, MACHINE, tmp_path / "whole", NOTHING)
    for k in range(len(operations)):
        folder = tmp_path / f"crashed-{k}"
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, k)
            with pytest.raises(Crash):
                run(recipe, MACHINE, folder, NOTHING)
            crash_at(patch, -1)
            goes_on = run_store.is_run(folder) and run_store.summary_of(folder) is None
            again = resume(folder, MACHINE, NOTHING) if goes_on else run(recipe, MACHINE, folder, NOTHING, True)
        assert counts(again) == counts(whole), f"crashed at operation {k}"
        assert (folder / "trajectory.seedtune").read_bytes() == (tmp_path / "whole/trajectory.seedtune").read_bytes()


def test_a_resumed_run_sends_what_the_uninterrupted_one_sends_after_failures(tmp_path, monkeypatch):
    """A client that failed is told everything again: that too must survive a restart."""

    def failing(recipe, machine, initial=None, own=None, secret=b"", scratch=None):
        found = without_a_model(recipe, machine, initial)
        bad = noise.derive_key(recipe.run.seed, "batch", round=2, client=2, step=0)

        def batch(client, key):
            if key == bad:
                raise KeyError("client 2 is ill")
            return small_federation.batch_of(recipe, client, key)

        found.site = small_federation.site(recipe, batch=batch)
        return found

    monkeypatch.setattr(experiment, "assemble", failing)
    recipe = small_federation.recipe(federation={"num_rounds": 5})
    whole = run(recipe, MACHINE, tmp_path / "whole", NOTHING)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, MACHINE, tmp_path / "stopped", StopAfter(3))
    assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(whole)
    assert whole["failed_replies"] == 1
    assert run_store.metrics_of(tmp_path / "whole")[3]["failed"] == {"2": "KeyError: 'client 2 is ill'"}


def test_a_run_stopped_by_failures_can_be_resumed(tmp_path, monkeypatch):
    healthy = []

    def ill(recipe, machine, initial=None, own=None, secret=b"", scratch=None):
        found = without_a_model(recipe, machine, initial)

        def batch(client, key):
            if client > 0 and not healthy and key in bad:
                raise RuntimeError("no memory")
            return small_federation.batch_of(recipe, client, key)

        bad = [noise.derive_key(11, "batch", round=1, client=c, step=0) for c in range(4)]
        found.site = small_federation.site(recipe, batch=batch)
        return found

    monkeypatch.setattr(experiment, "assemble", ill)
    recipe = small_federation.recipe(federation={"min_replies": 2})
    with pytest.raises(EngineError) as error:
        run(recipe, MACHINE, tmp_path / "run", NOTHING)
    assert str(error.value) == (
        "round 1: 1 usable replies, federation.min_replies is 2; 3 failed, first client 1: EngineError: client 1, "
        "round 1, local step 0: RuntimeError: no memory"
    )
    healthy.append(True)
    assert resume(tmp_path / "run", MACHINE, NOTHING)["rounds"] == 3


def test_a_loss_that_is_not_finite_is_null_in_the_files(tmp_path, monkeypatch):
    def diverged(recipe, machine, initial=None, own=None, secret=b"", scratch=None):
        found = without_a_model(recipe, machine, initial)
        losses = iter([1.0])
        found.evaluate = lambda: Evaluation(next(losses, float("nan")), None, 10)
        nan = torch.tensor(float("nan"))
        found.site = small_federation.site(recipe, loss=lambda batch: found.site.module(batch[0]).sum() * nan)
        return found

    monkeypatch.setattr(experiment, "assemble", diverged)
    summary = run(small_federation.recipe(), MACHINE, tmp_path / "run", NOTHING)
    assert summary["loss"] is None and summary["perplexity"] is None and summary["skipped_steps"] == 12
    assert (summary["outcome"], summary["stopped_by"]) == ("diverged", "divergence")
    assert summary["state_digest"] == small_federation.site(small_federation.recipe()).replica.digest.hex()
    for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        assert "NaN" not in text and json.loads(text).get("train_loss") is None


def test_a_changed_recipe_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "assemble", without_a_model)
    recipe = small_federation.recipe()
    with pytest.raises(KeyboardInterrupt):
        run(recipe, MACHINE, tmp_path, StopAfter(1))
    changed = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": 12})})
    (tmp_path / "recipe.json").write_text(changed.model_dump_json())
    with pytest.raises(TrajectoryError, match=r"recorded with seed = 11, the recipe now says 12: put it back"):
        resume(tmp_path, MACHINE, NOTHING)


# The tiny model.


def test_a_run_tells_its_listener_and_writes_its_summary(tiny_recipe, tmp_path):
    heard = []
    recipe = tiny_recipe(run={"eval_every": 2}, baseline={"num_steps": 3}, task={"max_tokens": 5})
    summary = run(recipe, MACHINE, tmp_path / "run", lambda *news: heard.append(news))
    assert [rounds for rounds, _, _ in heard] == [0, 1, 2, 3]
    assert [evaluation is not None for _, _, evaluation in heard] == [True, False, True, True]
    assert heard[0][1] is None and heard[3][1].record.digest.hex() == summary["state_digest"]
    assert summary == json.loads((tmp_path / "run/summary.json").read_text()) == run_store.summary_of(tmp_path / "run")
    assert summary["rounds"] == 3 and summary["forwards"] == 3 * 4 * 2 and summary["model"] == "llama"
    assert summary["bytes_up"] == sum(result.bytes_up for _, result, _ in heard[1:])
    assert summary["bytes_up_per_client_round"] == round(summary["bytes_up"] / 12, 1)
    assert summary["bytes_down_per_client_round"] == round(summary["bytes_down"] / 12, 1) > 0
    assert 0 < summary["truncated_examples"] <= 60 and summary["backprop_loss"] != summary["zero_shot_loss"]
    with pytest.raises(RunStoreError, match=r"has ended \(3 rounds\); there is nothing to resume"):
        resume(tmp_path / "run", MACHINE, NOTHING)


def test_backpropagation_beside_a_run_does_not_change_it(tiny_recipe, tmp_path):
    plain = run(tiny_recipe(), MACHINE, tmp_path / "plain", NOTHING)
    compared = run(tiny_recipe(baseline={"num_steps": 2}), MACHINE, tmp_path / "compared", NOTHING)
    assert plain["state_digest"] == compared["state_digest"] and plain["backprop_loss"] is None


def test_the_memory_of_a_run_is_not_that_of_its_comparison(tmp_path, monkeypatch):
    peak = [1]
    monkeypatch.setattr(experiment, "assemble", without_a_model)
    monkeypatch.setattr(summary_, "peak_memory_bytes", lambda: peak[0])
    monkeypatch.setattr(summary_, "backpropagation", lambda made, advance: peak.insert(0, 2) or made.evaluate())
    summary = run(small_federation.recipe(baseline={"num_steps": 1}), MACHINE, tmp_path / "run", NOTHING)
    assert summary["peak_memory_bytes"] == 1 and summary["backprop_loss"] == 1.0


def test_backpropagation_gives_the_weights_back(tiny_recipe, monkeypatch):
    made = assemble(tiny_recipe(baseline={"num_steps": 20, "learning_rate": 1e-2}), MACHINE)
    before, zero_shot = digest(made.site.replica.weights), made.evaluate()
    assert baseline.backpropagation(made).loss != zero_shot.loss
    assert digest(made.site.replica.weights) == made.site.replica.digest == before

    def not_finite(*args):
        raise NotFinite("weights are finite")

    monkeypatch.setattr(baseline, "unpack_weights", not_finite)
    assert math.isnan(baseline.backpropagation(made).loss)
    assert digest(made.site.replica.weights) == before


def test_snapshots_need_room_too(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20 + 20_000))
    recipe = tiny_recipe(federation={"upload": "weights"})
    with pytest.raises(RunStoreError, match="its disk has 1 MiB free, this run may need 2; make room"):
        run(recipe, MACHINE, tmp_path / "run", NOTHING)
    assert list(tmp_path.iterdir()) == []
    run(tiny_recipe(), MACHINE, tmp_path / "run", NOTHING)


def test_a_heads_start_is_recorded_and_not_computed_again(tiny_recipe, tmp_path, monkeypatch):
    """It comes from a forward pass, which may differ in its last bits on another machine."""
    encoder = tiny_runs.save_encoder(tmp_path / "encoder")
    model = {"name": str(encoder), "label_descriptions": ["red things", "green things", "blue things"]}
    recipe = tiny_recipe(model=model, task={"answers": {}})
    whole = run(recipe, MACHINE, tmp_path / "whole", NOTHING)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, MACHINE, tmp_path / "stopped", StopAfter(1))
    monkeypatch.setattr("seedtune.models.heads.from_labels", lambda *args: pytest.fail("computed again"))
    assert evaluated(str(tmp_path / "whole"))["loss"] == whole["loss"]
    assert counts(resume(tmp_path / "stopped", MACHINE, NOTHING)) == counts(whole)
    replayed = exported(tmp_path / "whole", tmp_path / "tuned", None, None, merge=False)
    assert replayed["state_digest"] == whole["state_digest"]


def test_a_comparison_that_diverges_leaves_the_run_whole(tiny_recipe, tmp_path):
    baseline = {"num_steps": 4, "optimizer": "sgd", "learning_rate": 1e6}
    recipe = tiny_recipe(federation={"num_rounds": 1}, baseline=baseline)
    summary = run(recipe, MACHINE, tmp_path / "run", NOTHING)
    assert summary["rounds"] == 1 and summary["backprop_steps"] == 4 and summary["loss"] is not None


def test_nothing_is_left_of_a_run_whose_model_or_task_is_wrong(tiny_recipe, tmp_path):
    for wrong in (tiny_recipe(model={"name": str(tmp_path / "gone")}), tiny_recipe(task={"template": "{shape}"})):
        with pytest.raises(SeedtuneError):
            run(wrong, MACHINE, tmp_path / "runs" / "run", NOTHING)
        assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_from_another_working_directory(tiny_recipe, tiny_model, tiny_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    table = os.path.relpath(tiny_table)
    recipe = tiny_recipe(model={"name": tiny_model.name}, task={"path": table, "test_path": table})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, MACHINE, tmp_path / "run", StopAfter(1))
    monkeypatch.chdir(tmp_path)
    assert resume(tmp_path / "run", MACHINE, NOTHING)["rounds"] == 3
    assert str(tiny_model.parent).encode() not in (tmp_path / "run/trajectory.seedtune").read_bytes()


def test_what_is_no_path_stays_as_it_is(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "starter").mkdir()
    assert resolved(tiny_recipe(model={"name": "starter"})).model.name == "starter"
    assert resolved(tiny_recipe(model={"name": "gpt2"})).model.name == "gpt2"
    assert resolved(tiny_recipe(run={"num_threads": 0})).run.num_threads == torch.get_num_threads()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_replayed_model_loads_elsewhere_with_the_runs_bits(tiny_recipe, tiny_model, tmp_path, adapter):
    chosen = {"adapter": adapter, "lora_targets": ["q_proj"] if adapter == "lora" else []}
    recipe = tiny_recipe(model=chosen)
    live = run(recipe, MACHINE, tmp_path / "run", NOTHING)
    stands = exported(tmp_path / "run", tmp_path / "tuned", None, None, merge=False)
    assert stands == {"rounds": 3, "state_digest": live["state_digest"]}

    model, space = load_replayed(run_store.trajectory_of(tmp_path / "run"), str(tiny_model), None, None)
    ours = bound_weights(model.module, space)
    assert digest(ours).hex() == live["state_digest"]
    if adapter == "lora":
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        theirs = dict(PeftModel.from_pretrained(base, tmp_path / "tuned").named_parameters())
    else:
        theirs = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").named_parameters())
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items()) and len(ours) >= 2


def test_any_round_can_be_replayed(tiny_recipe, tiny_model, tmp_path):
    run(tiny_recipe(), MACHINE, tmp_path / "run", NOTHING)
    rows = run_store.metrics_of(tmp_path / "run")
    for rounds in (1, 2, 3):
        stands = exported(tmp_path / "run", tmp_path / f"tuned-{rounds}", None, rounds, merge=False)
        assert stands == {"rounds": rounds, "state_digest": rows[rounds]["state_digest"]}
    base = exported(tmp_path / "run", tmp_path / "base", str(tiny_model), 0, merge=False)
    assert base["state_digest"] == run_store.trajectory_of(tmp_path / "run").header.base_digest
    with pytest.raises(TrajectoryError, match="round 4 was asked for, but the trajectory holds rounds 0 to 3"):
        exported(tmp_path / "run", tmp_path / "late", None, 4, merge=False)
    with pytest.raises(ModelError, match="it exists and is not empty"):
        exported(tmp_path / "run", tmp_path / "base", None, None, merge=False)


def test_a_trajectory_on_another_base_is_refused_with_both_digests(tiny_recipe, tmp_path):
    run(tiny_recipe(), MACHINE, tmp_path / "run", NOTHING)
    other = save_model(tmp_path / "other", seed=1)
    header = run_store.trajectory_of(tmp_path / "run").header
    with pytest.raises(DigestMismatch) as error:
        exported(tmp_path / "run/trajectory.seedtune", tmp_path / "tuned", str(other), None, merge=False)
    found = assemble(tiny_recipe(model={"name": str(other)}), MACHINE).header.base_digest
    assert str(error.value) == (
        f"the weights' digest of the base (recorded on 'llama') is {found}, expected {header.base_digest}"
    )
    assert not (tmp_path / "tuned").exists()


def test_a_base_that_is_not_found_is_asked_for(tiny_recipe, tmp_path):
    run(tiny_recipe(), MACHINE, tmp_path / "run", NOTHING)
    with pytest.raises(ModelError, match=r"'llama': .*; if the base has moved, name it with --base$"):
        exported(tmp_path / "run/trajectory.seedtune", tmp_path / "tuned", None, None, merge=False)


def test_memory_is_one_base_and_one_working_copy(tiny_recipe):
    """The site's model is the server's replica: nothing else holds tuned weights, before or after a client's round."""
    made = assemble(tiny_recipe(federation={"local_steps": 2}), MACHINE)
    model = {p.data_ptr() for p in made.model.module.parameters()}
    assert {t.data_ptr() for t in made.site.replica.weights.values()} == model
    assert not {t.data_ptr() for t in made.site.working.values()} & model
    local_round(made.site, Order(0, 0, made.site.replica.digest, 1e-2))
    assert {p.data_ptr() for p in made.model.module.parameters()} == model


# Real processes.


def waited(folder, num_rounds, process):
    """Waits until a run in another process has so many whole rounds (-1: until its folder has a recipe)."""
    for _ in range(2000):
        manifest = run_store.RunStore(folder).manifest() if run_store.is_run(folder) else None
        if (manifest.num_rounds if manifest else -1 if run_store.is_run(folder) else -2) >= num_rounds:
            return
        assert process.exitcode is None, f"ended early with {process.exitcode}"
        time.sleep(0.005)
    raise AssertionError("the run does not get on")


@pytest.fixture
def long_recipe(tiny_model, tiny_table, tmp_path):
    """A recipe file whose run takes a few seconds, and the same as a recipe."""
    long = values(tiny_model, tiny_table, federation={"num_rounds": 60, "local_steps": 2}, run={"eval_every": 60})
    (tmp_path / "long.toml").write_text(toml(long))
    return experiment.Recipe(**long)


def test_a_killed_run_ends_as_the_uninterrupted_one(long_recipe, tmp_path):
    whole = run(long_recipe, MACHINE, tmp_path / "whole", NOTHING)
    for moment in (-1, 7, 25):
        arguments = ["resume", "runs/long"] if run_store.is_run(tmp_path / "runs/long") else ["run", "long.toml"]
        process = child(arguments, tmp_path, tmp_path)
        waited(tmp_path / "runs/long", moment, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert run_store.summary_of(tmp_path / "runs/long") is None, "it ended before it was killed"
    assert counts(resume(tmp_path / "runs/long", MACHINE, NOTHING)) == counts(whole)


def test_a_second_process_is_refused_and_ctrl_c_says_how_to_go_on(long_recipe, tmp_path):
    process = child(["run", "long.toml"], tmp_path, tmp_path)
    folder = tmp_path / "runs/long"
    waited(folder, 2, process)
    for attempt in (
        lambda: resume(folder, MACHINE, NOTHING),
        lambda: run(long_recipe, MACHINE, folder, NOTHING, replace_run=True),
    ):
        with pytest.raises(RunStoreError, match="is in use by another process; wait for it, or choose another folder"):
            attempt()
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "stderr").read_text() == (
        "stopped; every whole round is kept: continue with 'seedtune resume runs/long'\n"
    )
    assert "\x1b" not in (tmp_path / "stdout").read_text()
    assert resume(folder, MACHINE, NOTHING)["rounds"] == 60


def test_versions_name_what_packs_the_base(monkeypatch):
    monkeypatch.setattr(pinned_inputs, "version", lambda name: f"{name} 1")
    packed = small_federation.recipe(model={"name": "a", "adapter": "lora", "quantisation": "4bit"})
    assert summary_.versions(packed) == summary_.versions() | {"bitsandbytes": "bitsandbytes 1"}
    assert summary_.versions(small_federation.recipe()) == summary_.versions()
