"""What studies measure beside their runs: asked, kept, planned, taken once, gone on with; each way on a tiny model."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import STUDY, run
from transformers import LlamaConfig

from seedtune.analysis import memory
from seedtune.errors import ConfigError, RunStoreError, SeedtuneError
from seedtune.studies import measuring
from seedtune.studies.catalogue import STUDIES
from seedtune.studies.jobs import num_expected, wanted
from seedtune.studies.measuring import Asked, Kept, Reading, kept, take
from seedtune.studies.plan import Request, planned
from seedtune.studies.runner import carry_out
from seedtune.studies.study import Case, Measure, Study

SHORT = {"examples": 2, "steps": 4, "block_steps": 2}
RANKS = (Measure("start", "block-ranks", options=SHORT), Measure("tuned", "block-ranks", "end", SHORT))
MEASURED = Study(
    "measured", "What?", "nowhere", (Case("case", measures=RANKS),), lambda measured: f"{len(measured.taken)} taken.",
    over_subjects=True,
)  # fmt: skip


def quiet(news) -> None: ...


def written(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.glob("measures/**/*.json"))
    }


def test_a_measurement_is_kept_whole_and_known_by_what_was_asked(tmp_path, monkeypatch):
    found = [Reading("", "a", 1.0), Reading("layer 0", "b", 2.0, 1.5, 2.5), Reading("", "c", None)]
    monkeypatch.setitem(measuring.WAYS, "made-up", lambda asked, run: iter(found))
    asked = Asked("made-up", "apart", {"size": 3})
    take(asked, None, tmp_path / "here/seed-0.json")
    again = kept(tmp_path / "here/seed-0.json")
    assert (again.key, again.readings) == (asked.key, tuple(found)) and again.seconds >= 0
    assert asked.key != Asked("made-up", "apart", {"size": 4}).key != Asked("made-up", "start", {"size": 4}).key


@pytest.mark.parametrize("text", ["", "{}", '{"asked": {}, "readings": [{"odd": 1}], "seconds": 0}'])
def test_a_damaged_measurement_says_so(tmp_path, text):
    (tmp_path / "seed-0.json").write_text(text)
    with pytest.raises(RunStoreError, match=r"cannot be read .*: delete it, and it is made again"):
        kept(tmp_path / "seed-0.json")


def test_measurements_follow_the_runs_that_they_are_of(request_of):
    plan = planned(request_of(MEASURED, num_seeds=2))
    first = wanted(plan, {})
    assert [job.name for job in first] == [
        "llama, case, seed 7",
        "llama, case, seed 7, start",
        "llama, case, seed 8, start",
    ]
    done = {first[0].key: run(3.0, 2.0)}
    more = [job for job in wanted(plan, done) if job.key not in {one.key for one in first}]
    assert [job.name for job in more] == ["llama, case, seed 8", "llama, case, seed 7, tuned"]
    assert str(more[1].folder) == "measures/llama-case/tuned/seed-7.json"
    assert num_expected(plan, {}) == num_expected(plan, done) == 6
    assert len({job.key for job in (*first, *more)}) == 5


def test_a_study_measures_at_the_start_and_the_end_and_never_twice(request_of, tmp_path):
    plan, news = planned(request_of(MEASURED)), []
    outcome = carry_out(plan, tmp_path / "out", 1, news.append)
    assert outcome.finding == "2 taken."
    start, tuned = outcome.measured.taken
    assert [one.name for one in (start, tuned)] == ["start", "tuned"]
    parts = list(dict.fromkeys(one.part for one in start.kept.readings))
    assert parts == ["whole", "before the layers", "layer 0", "layer 1", "behind the layers"]
    for one in (start, tuned):
        assert 0 < one.value("stable rank", "whole") < one.value("parameters", "whole")
    assert start.value("norm", "whole") != tuned.value("norm", "whole")
    with open(tmp_path / "out/measures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["study", "case", "subject", "seed", "measure", "part", "quantity", "value", "low", "high"]
    assert len(rows) == sum(len(one.kept.readings) for one in (start, tuned))
    assert [one.job.name for one in news if one.has_ended and isinstance(one.run, Kept)] == [
        "llama, case, seed 7, start", "llama, case, seed 7, tuned",
    ]  # fmt: skip

    before = written(tmp_path / "out")
    (tmp_path / "out/measures/llama-case/tuned/seed-7.json").unlink()
    again = carry_out(plan, tmp_path / "out", 1, quiet)
    after = written(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"measures/llama-case/tuned/seed-7.json"}
    assert again.measured.taken[1].kept.readings == tuned.kept.readings


def test_a_file_that_holds_something_else_is_left_alone(request_of, tmp_path):
    plan = planned(request_of(MEASURED))
    place = tmp_path / "out/measures/llama-case/start/seed-7.json"
    place.parent.mkdir(parents=True)
    place.write_text("precious")
    with pytest.raises(RunStoreError, match="is of something else, or damaged: choose another folder with --out"):
        carry_out(plan, tmp_path / "out", 1, quiet)
    assert place.read_text() == "precious"


def test_what_cannot_be_measured_is_named_and_the_rest_is_kept(request_of, tmp_path):
    odd = Measure("many", "no way at all")
    study = replace(MEASURED, cases=(Case("case", measures=(replace(RANKS[0], name="few"), odd)),))
    with pytest.raises(SeedtuneError, match="1 of 3 runs failed, first llama, case, seed 7, many: KeyError"):
        carry_out(planned(request_of(study)), tmp_path / "out", 1, quiet)
    assert list(written(tmp_path / "out")) == ["measures/llama-case/few/seed-7.json"]


def test_the_rates_of_a_run_are_held_against_its_clients(request_of, tmp_path):
    records = Measure("records", "rate-signals", "end")
    cases = tuple(
        Case(name, {"personalise": {"policy": name}}, measures=(records,)) for name in ("fixed", "round-wise")
    )
    study = replace(MEASURED, cases=cases, over_subjects=False)
    outcome = carry_out(planned(request_of(study, partition={"kind": "dirichlet"})), tmp_path / "out", 1, quiet)
    fixed, by_loss = outcome.measured.taken
    assert fixed.value("rate and distance") is None and -1 <= by_loss.value("rate and distance") <= 1
    assert [one.value("signal", "client 0") is None for one in (fixed, by_loss)] == [True, False]
    assert fixed.value("distance", "client 3") == by_loss.value("distance", "client 3") > 0


def test_peak_memory_is_that_of_a_process_of_its_own_where_it_fits(tmp_path, monkeypatch):
    LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path / "shape")  # fmt: skip
    options = STUDIES["memory-by-model-size"].cases[0].measures[1].options
    asked = Asked("peak-memory", "apart", {**options, "model": str(tmp_path / "shape/config.json")})
    found = {one.quantity: one.value for one in measuring.peak_memory(asked, None)}
    assert found["peak"] > found["libraries"] > 1e8 and found["weights"] == 4 * found["parameters"]
    monkeypatch.setattr("seedtune.analysis.memory_cases.bytes_free", lambda device: 0)
    monkeypatch.setattr(memory, "in_fresh_process", lambda *given: pytest.fail("was started"))
    assert [one.quantity for one in measuring.peak_memory(asked, None)] == ["parameters", "needed"]


def test_subjects_are_made_of_all_cases_each_with_its_own_model_and_task(request_of, tiny_table, tmp_path):
    request = request_of(MEASURED)
    other = tmp_path / "other.toml"
    other.write_text("[model]\nlora_rank = 3\nadapter = 'lora'\n[federation]\nnum_rounds = 5\n")
    plan = planned(replace(request, subjects=(other,), settings={"federation": {"local_steps": 2}}))
    assert [case.label for case in plan.cases] == ["starter, case", "other, case"]
    own, its = (case.recipe for case in plan.cases)
    assert (own.federation.num_rounds, its.federation.num_rounds) == (30, 5)
    assert (own.model.adapter, its.model.adapter, its.model.trainable) == ("none", "lora", ())
    assert own.federation.local_steps == its.federation.local_steps == 2
    with pytest.raises(ConfigError, match="there is a subject 'other' already; give the file another name"):
        planned(replace(request, subjects=(other, other)))
    with pytest.raises(ConfigError, match=r"study steps: is of one model and task: leave out --also"):
        planned(replace(request, study=STUDY, subjects=(other,)))
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read"):
        planned(replace(request, subjects=(tmp_path / "gone.toml",)))
    for text, message in (
        ("", "names neither a model nor a task"),
        ("model = 3", "model"),
        ("[task]\nnmae = 1", "nmae"),
    ):
        other.write_text(text)
        with pytest.raises(ConfigError, match=rf"--also .*other\.toml: .*{message}"):
            planned(replace(request, subjects=(other,)))


def test_a_study_of_shapes_takes_no_recipe_and_its_quick_form_leaves_large_ones_out():
    study = STUDIES["memory-by-model-size"]
    assert study.is_apart and not STUDIES["lora-rank-vs-effective-rank"].is_apart
    plan, quick = planned(Request(study, num_seeds=None)), planned(Request(study, quick=True))
    assert 2 < len(quick.cases) < len(plan.cases) == len(study.cases)
    assert all(job.asked.recipe is None for job in wanted(plan, {}))
    for given in ({"model": "starter"}, {"task": "sst2"}, {"settings": {"run": {"seed": 1}}}, {"num_seeds": 2}):
        with pytest.raises(ConfigError, match="measures models of given shapes, without runs: leave out --model"):
            planned(Request(study, **given))


def test_a_setting_that_came_later_leaves_what_was_measured_known(request_of, tmp_path):
    study = replace(MEASURED, cases=(Case("case", measures=RANKS[:1]),))
    carry_out(planned(request_of(study)), tmp_path / "out", 1, quiet)
    place = tmp_path / "out/measures/llama-case/start/seed-7.json"
    found = json.loads(place.read_text())
    assert found["asked"]["what"] == "block-ranks" and found["asked"]["recipe"]["run"]["seed"] == 7
    del found["asked"]["recipe"]["local"]["warmup_rounds"]
    place.write_text(json.dumps(found))
    before = written(tmp_path / "out")
    carry_out(planned(request_of(study)), tmp_path / "out", 1, quiet)
    assert written(tmp_path / "out") == before
