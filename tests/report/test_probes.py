"""Findings of probes as the page shows them: side by side, whatever their files hold."""

import json
import re

import pytest
import run_folders

from seedtune.errors import ConfigError
from seedtune.report import page
from seedtune.report.probe_tables import BAR_MARGIN, BAR_WIDTH, bars, charts, kinds
from seedtune.report.probes import KINDS, MOST_BYTES, MOST_ENTRIES, MOST_FILES, Measured, cell, findings
from seedtune.report.reading import read

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\ud800"


def saved(folder, found=None):
    return run_folders.keep(run_folders.save(folder, ended={}), run_folders.findings() if found is None else found)


def found_in(*folders, files=()):
    found, damaged = findings(read(folders), files)
    assert damaged == []
    return found


def compared(*folders, files=()):
    return {kind.probe: kind for kind in kinds(found_in(*folders, files=files), len(folders))}


def test_every_finding_of_every_run_is_there(tmp_path):
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", {"x": run_folders.findings()["rate-bound"]})
    found = compared(one, two)
    assert list(found) == list(KINDS)
    assert [each.label for each in found["rate-bound"].findings] == ["one", "two, x"]
    assert [each.look for each in found["rate-bound"].findings] == [0, 1]
    trace = found["effective-rank"].values[0]
    assert trace.name == "trace" and trace.cells[0][0] == Measured(0.28, 0.23, 0.33)
    assert found["effective-rank"].findings[0].cost == "99 forwards, 1 gradients, 49 hessian products, 3.25 seconds"
    assert found["effective-rank"].findings[0].about == "model tiny, dtype float32, task topics, seed 0, examples 8"
    assert [found[name].is_named for name in KINDS] == [True] * 4
    assert not compared(one)["rate-bound"].is_named


def test_values_of_several_runs_stand_in_rows_and_gaps_are_left(tmp_path):
    others = run_folders.findings()
    others["effective-rank"]["values"] = {"stable rank": [3.5, 2.7, 4.3], "trace": [-0.2, -0.3, 0.1]}
    kind = compared(saved(tmp_path / "one"), saved(tmp_path / "two", others))["effective-rank"]
    assert [value.name for value in kind.values] == ["trace", "operator norm", "at scale", "stable rank"]
    (first, bar), (second, other) = kind.values[0].cells
    assert (first.shown, first.interval, second.interval) == ("0.28", "0.23 to 0.33", "-0.3 to 0.1")
    assert bar.zero == other.zero and other.low == BAR_MARGIN and bar.high == BAR_WIDTH - BAR_MARGIN
    assert other.low < other.value < other.zero < other.high < bar.low < bar.value
    assert kind.values[3].cells[0] == (None, None) and kind.values[2].cells[1] == (None, None)


def test_notes_that_all_share_are_said_once(tmp_path):
    others = run_folders.findings()
    others["rate-bound"]["notes"] = ["intervals: 90 %", "only here"]
    found = compared(saved(tmp_path / "one"), saved(tmp_path / "two", others))["rate-bound"]
    assert found.notes == [("intervals: 90 %", ""), ("a note of rate-bound", "one"), ("only here", "two")]


def test_which_weights_were_probed_is_told(tmp_path):
    found = run_folders.findings()
    found["rate-bound"]["about"]["state_digest"] = "00"
    del found["heterogeneity"]["about"]["state_digest"]
    at = {each.probe: (each.at, each.is_stray) for each in found_in(saved(tmp_path / "run", found))}
    assert at["effective-rank"] == ("weights after round 6, the last whole one", False)
    assert at["rate-bound"] == ("weights that this run does not have after any of its rounds", True)
    assert at["heterogeneity"] == ("", False)
    lines = run_folders.rows(6, 4)
    for row in lines[4:]:
        row["state_digest"] = "11"
    early = run_folders.keep(run_folders.save(tmp_path / "early", lines=lines), run_folders.findings())
    assert found_in(early)[0].at == "weights after round 3"
    first = run_folders.save(tmp_path / "first", lines=[{"loss": 3.0, "state_digest": run_folders.DIGEST}])
    assert found_in(run_folders.keep(first, run_folders.findings()))[0].at == "weights before the first round"


def drawn(tmp_path, name, found=None):
    return list(charts(compared(saved(tmp_path / "run", found))[name]))


def test_layers_are_points_with_error_bars(tmp_path):
    trace, rank, largest = drawn(tmp_path, "effective-rank")
    assert trace["categories"] == ["before the layers", "layer 0", "layer 1", "behind the layers"]
    (line,) = trace["lines"]
    assert line["y"] == (2, 3, 4, 5) and line["low"] == (1, 1.5, 2, 2.5) and line["high"][3] == 6.5
    assert rank["lines"][0]["x"] == (0, 1, 2)
    assert largest["lines"][0]["low"][0] == 1.4 and largest["lines"][0]["high"][0] == 1.6


def test_errors_go_over_logarithmic_scales(tmp_path):
    found = run_folders.findings()
    found["perturbation-scale"]["tables"]["float32"].append({"mu": -1, "error": 3})
    single, half = drawn(tmp_path, "perturbation-scale", found)
    assert single["is_log_x"] and single["is_log_y"] and single["categories"] is None
    assert [line["name"] for line in single["lines"]] == ["error", "truncation", "rounding"]
    assert single["lines"][1]["x"] == (1e-4, 1e-3, 1e-2) and single["lines"][1]["y"] == (1e-8, 1e-6, 1e-4)
    assert half["title"] == "Errors in float16, as shares" and len(half["lines"][0]["x"]) == 2


def test_a_single_layer_is_no_chart(tmp_path):
    found = run_folders.findings()
    found["effective-rank"]["tables"]["by layer"] = found["effective-rank"]["tables"]["by layer"][2:3]
    assert drawn(tmp_path, "effective-rank", found) == []
    assert compared(tmp_path / "run")["effective-rank"].has_tables


WRONG = [
    {}, [], "text", 3, True, None, [1, 2, 3, 4], [None, 1, 2], {"low": 1}, float("inf"), float("nan"), 10**400,
    [[[]]], EVIL, "x" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("place", ["probe", "about", "values", "tables", "cost", "notes"])
def test_a_value_of_another_type_is_not_known(tmp_path, place):
    for i, value in enumerate(WRONG):
        good = run_folders.findings()["effective-rank"]
        bad = {
            "whole": good | {place: value},
            "inside": good | {place: {"trace": value, "by layer": value, "seed": value}},
            "rows": good | {"tables": {"by layer": [value, {"block": value, "trace": value}, *[{"block": "a"}] * 3]}},
        }
        folder = saved(tmp_path / f"run-{i}", {"good": good} | bad)
        text = page.html(read([folder]))
        assert "NaN" not in text and "alert(1)</script>" not in text
        assert text.encode() and json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["probes"]


def test_cells_are_numbers_texts_or_not_known():
    assert [cell(value) for value in (True, float("nan"), [1, 2], 10**400, {})] == ["not known"] * 5
    assert (
        cell([2, 3, 1]).bounds is None
        and cell([2, 3, 4]).interval == "3 to 4"
        and cell([2, float("nan"), 3]).interval == ""
    )
    assert bars([cell([1e308, -1e308, 1e308]), cell([0, 0, 0]), "none", None]) == [None] * 4
    assert bars([cell([0, 0, 0])]) == [None]


def test_what_is_no_finding_is_named(tmp_path):
    folder = saved(tmp_path / "run", {"b": {}, "c": [1], "d": {"values": 3}})
    (folder / "probes/a.json").write_text("{")
    (folder / "probes/e.json").write_text('{"values": {}}' + " " * MOST_BYTES)
    (folder / "probes/f.json").write_bytes(b"\xff")
    (folder / "probes/g.json").write_text("[" * 100_000)
    (folder / "probes/h.json").mkdir()
    (folder / "probes/notes.txt").write_text("mine")
    found, damaged = findings(read([folder]))
    assert found == [] and damaged == [f"run: probes/{name}.json holds no finding of a probe" for name in "abcdefg"]
    assert "run: probes/a.json holds no finding of a probe." in page.html(read([folder]))


def test_too_much_is_left_out(tmp_path):
    good = run_folders.findings()["effective-rank"]
    good["values"] = {f"value {i}": i for i in range(MOST_ENTRIES + 1)}
    good["notes"] = [f"note {i}" for i in range(MOST_ENTRIES + 1)]
    good["tables"]["by layer"] *= MOST_ENTRIES
    found = found_in(saved(tmp_path / "run", {f"rank-{i}": good for i in range(MOST_FILES + 1)}))
    assert len(found) == MOST_FILES
    first = found[0]
    assert {len(first.values), len(first.notes), len(first.tables["by layer"])} == {MOST_ENTRIES}


def test_findings_from_elsewhere_are_shown_too(tmp_path):
    path = tmp_path / "elsewhere.json"
    path.write_text(json.dumps(run_folders.findings()["rate-bound"]))
    kind = compared(saved(tmp_path / "run"), files=[path])["rate-bound"]
    assert [(each.label, each.look, each.at) for each in kind.findings] == [
        ("run", 0, "weights after round 6, the last whole one"), ("elsewhere.json", 1, "")
    ]  # fmt: skip
    assert compared(run_folders.save(tmp_path / "bare"), files=[path])["rate-bound"].is_named
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"elsewhere.json: holds no finding; 'seedtune probe ... --out FILE' writes"):
        page.write([tmp_path / "run"], tmp_path / "report.html", [path])
    assert not (tmp_path / "report.html").exists()


def test_without_a_finding_there_is_no_section(tmp_path):
    text = page.html(read([run_folders.save(tmp_path / "run", ended={})]))
    assert 'id="probes"' not in text and 'href="#probes"' not in text
    assert 'href="#probes"' in page.html(read([saved(tmp_path / "probed")]))
