"""`seedtune probe ...` as a user meets it."""

import json

import pytest
import tiny_runs
from small_subjects import FEW

from seedtune.analysis import spectrum

QUICK = ["--examples", "4", "--directions", "4", "--eigenvalues", "2", "--starts", "2", "--steps", "4"]


@pytest.fixture
def recipe_file(tiny_model, tiny_table, tmp_path):
    values = tiny_runs.values(tiny_model, tiny_table, model={"trainable": FEW})
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_runs.toml(values))
    return path.name


def refused(result, message):
    assert result.code == 2 and result.err.replace("\n", " ").strip().endswith(message), result.err


def test_json_on_the_output_and_in_a_file_is_one(seedtune, recipe_file, tmp_path):
    result = seedtune("probe", "effective-rank", recipe_file, *QUICK, "--json", "--out", "found.json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found == json.loads((tmp_path / "found.json").read_text()) and found["probe"] == "effective-rank"
    assert found["about"]["tuned_parameters"] == 576 and found["cost"]["seconds"] > 0
    assert result.err.splitlines()[-1] == "largest eigenvalue by layer"
    assert [path.name for path in tmp_path.glob("found*")] == ["found.json"]


def test_people_read_tables_with_intervals_and_notes(seedtune, recipe_file):
    lines = seedtune("probe", "effective-rank", recipe_file, *QUICK, "--no-layers").out.splitlines()
    (trace,) = [line for line in lines if line.startswith("trace  ")]
    assert "(" in trace and " to " in trace
    assert "by layer" not in lines and any(line.startswith("eigenvalue ") for line in lines)
    assert any(line.startswith("cost: 27 forwards") for line in lines)
    assert any(line.startswith("note: intervals of traces") for line in lines)


def test_the_rank_of_each_layers_absolute_hessian_is_asked_for(seedtune, recipe_file):
    asked = ("probe", "effective-rank", recipe_file, *QUICK, "--block-steps", 3)
    found = json.loads(seedtune(*asked, "--json").out)
    assert all(row["effective rank of |H|, at least"][0] > 0 for row in found["tables"]["by layer"])
    refused(seedtune(*asked, "--no-layers"), "is for layers, which --no-layers leaves out: give one of them")


def test_a_run_is_probed_at_its_last_weights(seedtune, recipe_file):
    assert seedtune("run", recipe_file, "--out", "runs/done").code == 0
    digest = seedtune("inspect", "runs/done").out.split("state digest")[1].split()[0]
    found = json.loads(seedtune("probe", "effective-rank", "runs/done", *QUICK, "--json").out)
    assert found["about"]["state_digest"] == digest
    refused(
        seedtune("probe", "effective-rank", "runs/done", "--method", "fedmezo"),
        "probe runs/done: --method 'fedmezo' is for a recipe, and this is a run: leave it out",
    )


def test_a_finding_of_a_run_is_kept_in_its_folder(seedtune, recipe_file, tmp_path):
    assert seedtune("run", recipe_file, "--out", "runs/done").code == 0
    first = seedtune("probe", "effective-rank", "runs/done", *QUICK, "--no-layers")
    kept = tmp_path / "runs/done/probes/effective-rank.json"
    assert first.err.splitlines()[-1] == (
        "kept: runs/done/probes/effective-rank.json; 'seedtune report runs/done' shows it"
    )
    assert json.loads(kept.read_text())["about"]["eigenvalues"] == 2 and [*kept.parent.iterdir()] == [kept]
    again = seedtune("probe", "effective-rank", "runs/done", *QUICK, "--json", "--set", "local.perturbation_scale=0.01")
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert found == json.loads(kept.read_text()) and found["about"]["asked with"] == "local.perturbation_scale=0.01"
    assert seedtune("replay", "runs/done", "--out", "tuned").code == 0


def test_a_folder_that_cannot_be_written_costs_no_finding(seedtune, recipe_file, tmp_path):
    assert seedtune("run", recipe_file, "--out", "done").code == 0
    (tmp_path / "done/probes").write_text("a file")
    result = seedtune("probe", "effective-rank", "done", *QUICK, "--json")
    assert result.code == 0 and json.loads(result.out)["probe"] == "effective-rank"
    assert result.err.splitlines()[-1] == (
        "note: not kept for the report: run folder done: cannot be written: File exists; write what was found "
        "elsewhere with --out"
    )


def test_what_cannot_be_is_refused_before_anything_is_loaded(seedtune, recipe_file, monkeypatch):
    refused(
        seedtune("probe", "effective-rank", recipe_file, "--scales", "1e-3,none"),
        "--scales '1e-3,none': must be numbers above 0, parted by commas, such as 0.1,1",
    )
    refused(
        seedtune("probe", "effective-rank", recipe_file, "--out", "nowhere/found.json"),
        "--out nowhere/found.json: must be a file in a folder that is there",
    )
    refused(seedtune("probe", "effective-rank", recipe_file, "--device", "tpu"),
            "--device 'tpu': must be cpu, cuda or, for one of several GPUs, cuda:N")  # fmt: skip
    assert seedtune("probe", "effective-rank", recipe_file, "--directions", "1").code == 2
    assert seedtune("probe", "effective-rang", recipe_file).code == 2
    assert (
        "unknown recipe 'quickstat': did you mean 'quickstart'?" in seedtune("probe", "effective-rank", "quickstat").err
    )
    monkeypatch.setattr("importlib.import_module", _missing)
    refused(
        seedtune("probe", "effective-rank", recipe_file),
        "probes need scipy: pip install '.[analysis]'",
    )


def _missing(name):
    raise ModuleNotFoundError(name)


KINDS = {
    "perturbation-scale": ["--examples", "2", "--directions", "2", "--scales", "1e-3,1e-2", "--dtypes", "float32"],
    "rate-bound": ["--examples", "2", "--directions", "2", "--batches", "2"],
    "heterogeneity": ["--alphas", "1", "--examples", "2", "--points", "2"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_probe_prints_what_it_found(seedtune, recipe_file, kind):
    result = seedtune("probe", kind, recipe_file, *KINDS[kind], "--out", "found.json")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert any(line.startswith("cost: ") for line in lines) and lines[-1].startswith("note: ")


def test_dtypes_and_concentrations_are_checked(seedtune, recipe_file):
    refused(
        seedtune("probe", "perturbation-scale", recipe_file, "--dtypes", "float31"),
        "unknown dtype 'float31': did you mean 'float32'? Known: bfloat16, float16, float32",
    )
    refused(
        seedtune("probe", "heterogeneity", recipe_file, "--alphas", "0"),
        "--alphas '0': must be numbers above 0, parted by commas, such as 0.1,1",
    )


def test_scipy_is_asked_for_by_name():
    assert spectrum.scipy_part("stats").__name__ == "scipy.stats"
