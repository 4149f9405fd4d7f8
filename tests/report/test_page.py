"""The page: all sections for every kind of run, nothing from a network, nothing of a file taken for HTML."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import run_folders

import seedtune.report
from seedtune.errors import ConfigError
from seedtune.report import figure, page
from seedtune.report.reading import read

VOID = {"meta", "rect", "path", "wbr", "link", "input", "br", "img"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&\ud800"


class Parsed(HTMLParser):
    """Elements with their attributes, the texts by element, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open, self.ids = [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + text


def page_of(*folders):
    return page.html(read(folders))


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def kinds_of_runs(tmp_path):
    """Runs of all kinds, by name."""
    options = {
        "ended": {"ended": {}}, "going-on": {}, "no-round": {"lines": []}, "first-row": {"lines": [{"loss": 3.0}]},
        "eventful": {"num_rounds": 12, "lines": run_folders.eventful(), "ended": {"stopped_by": "surge"}},
        "own-rates": {"ended": {}, "personalise": {"policy": "random"}}, "probed": {"ended": {}},
        "answered": run_folders.of_two_classes(),
    }  # fmt: skip
    runs = {name: run_folders.save(tmp_path / name, **each) for name, each in options.items()}
    run_folders.keep(runs["probed"], run_folders.findings())
    return runs


def test_every_kind_of_run_has_a_page_alone_and_together(tmp_path):
    runs = kinds_of_runs(tmp_path)
    for folders in (*([folder] for folder in runs.values()), list(runs.values())):
        found = Parsed(page_of(*folders))
        missing = {name for name, _ in page.SECTIONS} - set(found.ids)
        shown = {"probes": runs["probed"] in folders, "answers": runs["answered"] in folders}
        assert missing == {name for name, is_shown in shown.items() if not is_shown}
        assert len(found.ids) == len(set(found.ids))


def test_a_page_says_what_was_run_and_what_came_of_it(tmp_path):
    runs = kinds_of_runs(tmp_path)
    body = " ".join(Parsed(page_of(runs["eventful"])).texts["main"].split())
    for text in (
        "test accuracy", "12 rounds", run_folders.DIGEST, "federation.num_rounds", "TimeoutError: no answer",
        run_folders.SURGE, "ended early: the loss surged", "2.13.0", "seedtune run", "Where the time went",
    ):  # fmt: skip
        assert text in body, text


def test_a_page_opens_with_what_was_tried_and_how_it_went(tmp_path):
    runs = kinds_of_runs(tmp_path)
    opening = {
        "answered": "4 clients tuned starter on stdlib-topics by forward passes only: 6 of 6 rounds, 4 s, 2.6 kB sent. "
        "Tuning helped: test accuracy 45.0% → 90.0%, test loss 3.000 → 1.300.",
        "going-on": "So far, after 6 rounds: test accuracy 30.0% → 56.2%, test loss 3.000 → 1.286.",
        "no-round": "Nothing was evaluated yet.",
    }
    for name, sentence in opening.items():
        assert sentence in " ".join(Parsed(page_of(runs[name])).texts["header"].split())
    both = " ".join(Parsed(page_of(runs["answered"], runs["going-on"])).texts["header"].split())
    assert "ended, 6 of 6 rounds. Tuning helped" in both and "So far, after 6 rounds" in both


def test_several_runs_stand_side_by_side(tmp_path):
    runs = kinds_of_runs(tmp_path)
    text = page_of(runs["ended"], runs["eventful"])
    found = Parsed(text)
    assert found.texts["h1"] == "2 runs" and "differs" in found.texts["table"]
    assert [run["label"] for run in data_of(text)["runs"]] == ["ended", "eventful"]


def test_the_same_folders_give_the_same_page(tmp_path):
    folder = run_folders.save(tmp_path / "run")
    assert page_of(folder) == page_of(folder)


def test_data_is_strict_json(tmp_path):
    lines = run_folders.rows(3, 4)
    lines[2] |= {"train_loss": float("nan"), "loss": float("inf")}
    text = page_of(run_folders.save(tmp_path / "run", 3, lines=lines))
    (run,) = data_of(text)["runs"]
    assert run["y"]["train_loss"][2] is None and run["y"]["loss"] == [3, None, None, None] and "NaN" not in text


def test_nothing_of_a_file_is_taken_for_html(tmp_path):
    lines = run_folders.rows(3, 4)
    lines[1] |= {"failed": {EVIL: EVIL}, "surge": EVIL, "state_digest": EVIL, "losses": {EVIL: 1.0}}
    lines[3] |= {"state_digest": EVIL}
    lines[0] |= {"labels": [EVIL, EVIL], "confusion": [[1, 2], [3, 4]], "test_examples": EVIL,
                 "samples": [{"text": EVIL, "truth": EVIL, "predicted": EVIL}, EVIL]}  # fmt: skip
    ended = {"model": EVIL, "versions": {EVIL: EVIL}, "stopped_by": EVIL, "backprop_loss": EVIL}
    task = {"name": EVIL[:-1], "template": EVIL[:-1], "answers": {EVIL[:-1]: EVIL[:-1]}}
    folder = run_folders.save(tmp_path / "<b>evil&", 3, lines=lines, ended=ended, task=task, run={"method": EVIL[:-1]})
    found = run_folders.findings()["effective-rank"]
    evil = {"probe": EVIL, "about": {EVIL: EVIL}, "values": {EVIL: EVIL, "a": [1, 0, 2]}, "notes": [EVIL],
            "tables": {EVIL: [{EVIL: EVIL}], "by layer": [{"block": EVIL, "trace": 1}]}, "cost": {EVIL: 3}}  # fmt: skip
    run_folders.keep(folder, {EVIL[9:20]: found, "evil": evil, "layers": evil | {"probe": "effective-rank"}})
    for folders in ([folder], [folder, run_folders.save(tmp_path / "other")]):
        text = page_of(*folders)
        found = Parsed(text)
        names = [tag for tag, _ in found.elements]
        assert names.count("script") == 2 and "img" not in names
        assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
        assert "alert(1)" in found.texts["main"] and "<script>alert" not in text


def test_the_page_asks_no_network_and_runs_nothing_else(tmp_path):
    text = page_of(run_folders.save(tmp_path / "run"))
    found = Parsed(text)
    (policy,) = (each["content"] for tag, each in found.elements if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("script", "style"):
        for inline in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            assert f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'" in policy
    assert not any({"src", "srcset", "style"} & each.keys() for _, each in found.elements)
    assert all(each["href"].startswith("#") for _, each in found.elements if "href" in each)
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}


def test_templates_are_small_files_that_do_not_end_the_element_they_stand_in():
    for path in (Path(seedtune.report.__file__).parent / "templates").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 400 and max(map(len, lines)) <= 120, path.name
        if path.suffix != ".html":
            assert path.name in (*page.SCRIPTS, *page.STYLES) and "</" not in path.read_text(encoding="utf-8")


def test_lines_have_the_colours_of_the_figures():
    """Okabe and Ito's: made darker for contrast, two of them are one to who sees no green (difference 1.4 of 100)."""
    style = (Path(seedtune.report.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r"--c0.*?--c6: #\w+", style, re.DOTALL)
    assert tuple(colour.upper() for colour in re.findall(r"#\w+", light)) == figure.COLOURS
    assert set(re.findall(r"#\w+", dark)) - set(re.findall(r"#\w+", light)) == {"#f0e442", "#ffffff"}


def test_long_and_wide_runs_have_small_pages(tmp_path):
    long = run_folders.save(tmp_path / "long", 10_000, 8, lines=run_folders.rows(10_000, 8, eval_every=100), ended={})
    wide = run_folders.save(tmp_path / "wide", 100, 1_000, lines=run_folders.rows(100, 1_000), ended={})
    for folder in (long, wide):
        assert len(page_of(folder)) < 600_000
    assert len(page_of(long, wide)) < 1_000_000


def test_a_report_lies_beside_its_run_and_is_replaced_by_the_next(tmp_path):
    folder = run_folders.save(tmp_path / "runs" / "mine")
    path = page.write([folder])
    assert path == tmp_path / "runs" / "mine-report.html" and path.read_text(encoding="utf-8") == page_of(folder)
    assert page.write([folder]) == path
    other = page.write([folder], tmp_path / "new" / "place.html")
    assert other.read_bytes() == path.read_bytes() and sorted(p.name for p in folder.parent.iterdir()) == [
        "mine", "mine-report.html"
    ]  # fmt: skip


def test_a_run_named_by_a_dot_has_a_report_beside_it_too(tmp_path, monkeypatch):
    folder = run_folders.save(tmp_path / "mine")
    monkeypatch.chdir(folder)
    assert page.beside([Path(".")]) == tmp_path / "mine-report.html"


def refused(folders, path, reason):
    with pytest.raises(ConfigError) as error:
        page.write(folders, path)
    assert str(error.value) == reason


def test_what_is_no_report_is_not_replaced(tmp_path):
    folder = run_folders.save(tmp_path / "run")
    kept = (folder / "metrics.jsonl").read_bytes()
    path = folder / "metrics.jsonl"
    refused([folder], path, f"report {path}: is a file, and no report that may be replaced; choose another with --out")
    assert path.read_bytes() == kept
    refused([folder], folder, f"report {folder}: is a folder; give the name of a file with --out")
    path /= "below"
    refused([folder], path, f"report {path}: {path.parent} is a file, no folder; choose another place with --out")


def test_a_disk_that_says_no_is_told(tmp_path, monkeypatch):
    folder = run_folders.save(tmp_path / "run")
    monkeypatch.setattr(page, "replace_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    path = tmp_path / "run-report.html"
    refused(
        [folder], None, f"report {path}: cannot be written: No space left on device; choose another file with --out"
    )
