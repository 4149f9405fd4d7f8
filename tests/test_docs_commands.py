"""Every command that README and docs show is run, page by page and in order, on small models and few rows.

Names such as path/to/model are there, as are the runs that a page speaks of; options that make a command small are laid
over its own. What needs minutes or another machine stands in `NOT_RUN`, with the reason and what is checked of it.
"""

import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import tiny_gguf
import tiny_runs
import typer.main

import seedtune.cli as cli
from seedtune import presets
from seedtune.models.starter import starter_folder
from seedtune.studies import catalogue

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
PINNED = "".join(path.read_text() for path in ROOT.glob("requirements-demo-*.lock"))

SIZES = ("task.max_train=160", "task.max_eval=6", "federation.batch_size=2", "run.num_threads=1")
A_RUN = (
    *SIZES,
    "federation.num_rounds=2",
    "federation.local_steps=1",
    "baseline.num_steps=0",
    "partition.min_examples=1",
)
SMALL = {
    "run": (*(part for text in A_RUN for part in ("--set", text)), "--replace"),
    "resume": (), "inspect": (), "report": (), "replay": (), "compare": (), "recipes": (),
    "evaluate": ("--set", "task.max_eval=6"), "generate": ("--tokens", "2"),
    "probe effective-rank": ("--examples", "2", "--directions", "2", "--eigenvalues", "1", "--no-layers",
                             "--starts", "2", "--steps", "2", "--set", "task.max_train=160"),
    "probe perturbation-scale": ("--examples", "2", "--directions", "2", "--scales", "1e-2,1e-1",
                                 "--dtypes", "float32", "--set", "task.max_train=160"),
    "probe heterogeneity": ("--alphas", "1", "--examples", "2", "--points", "2", "--set", "partition.num_clients=2",
                            "--set", "task.max_train=160", "--set", "federation.num_rounds=1"),
    "probe rate-bound": ("--examples", "2", "--directions", "2", "--batches", "2", "--set", "task.max_train=160"),
    "deploy keys": (), "deploy node-key": (), "deploy nginx": (), "deploy server": ("--print",),
    "deploy node": ("--print",), "deploy ledger": (), "study --list": (),
    "doctor": (), "init": (), "predict": (), "task": ("--set", "task.max_train=160"), "tasks": (),
}  # fmt: skip
"""What makes each command small. A command that is not here, nor in `NOT_RUN`, fails its page."""

INSTEAD = {
    "--round 50": ("--round", "1"), "min_examples=150": ("--set", "partition.min_examples=15"),
    "--task sst2": ("--set", "task.path=path/to/sst2"),
}  # fmt: skip
"""What a small run has otherwise than a page's; SST-2 is not asked of the hub."""

NOT_RUN = {
    "study ": "takes minutes to hours: parsed, and the study is known",
    "run quickstart --engine flower-sim": "starts Ray, which takes half a minute: parsed; tests/deployment runs it",
    "run demo": "needs a package of 98 MB and an archive: parsed, and the recipe is known",
    "evaluate smollm2-135m-instruct": "needs that package: parsed; tests/models/test_gguf_file.py loads it",
    "task rated-snippets": "needs that archive: parsed; tests/data/test_snippets.py reads one made there",
}
ELSEWHERE = {"make": "installs or takes minutes", "pip": "installs", "python": "measures for minutes, or needs a GPU"}


def shown(page: Path) -> list[str]:
    """The commands of a page in order, lines that go on joined."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = (line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


WITH_COMMANDS = [page for page in PAGES if shown(page)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with all that pages name: models, data, recipes, and runs that have ended."""
    place = tmp_path_factory.mktemp("workplace")
    for model in ("path/to/model", "DATA/models/stories260k"):
        tiny_runs.save_model(place / model)
    tiny_runs.save_encoder(place / "DATA/models/minilm-l6")
    (place / "path/to/base").symlink_to(starter_folder())
    for task in ("path/to/sst2", "DATA/tasks/sst2"):
        write_sst2(place / task)
    for task in ("path/to/data", "DATA/tasks/code_alpaca"):
        write_instructions(place / task)
    table = tiny_runs.save_task(place / "rows.csv", 160)
    recipe = tiny_runs.values(Path("path/to/model"), table, partition={"num_clients": 8})
    (place / "my-recipe.toml").write_text(tiny_runs.toml(recipe))
    write_own_table(place)
    write_gguf(place)
    run_once(place)
    return place


def write_own_table(place: Path) -> None:
    """Labelled reviews, new ones without a label, and the file of a node."""
    words = ("dull", "negative"), ("good", "positive")
    rows = "".join(f"a film that is {words[i % 2][0]} {i},{words[i % 2][1]}\n" for i in range(60))
    (place / "reviews.csv").write_text(f"text,stars\n{rows}")
    (place / "new.csv").write_text("text\na good film\na dull one\n")
    shutil.copy(place / "reviews.csv", place / "mine.csv")


def write_gguf(place: Path) -> None:
    """A GGUF file, and the folder that it stands for where a page says that it is now."""
    made = tiny_gguf.module()
    tiny_gguf.save(place / "path/to/model.gguf", made)
    tiny_gguf.save_folder(place / "where/the/base/is/now", place / "path/to/model.gguf", made)


def write_sst2(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = "".join(f"a film that is {'good' if i % 2 else 'dull'} {i}\t{i % 2}\n" for i in range(200))
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}")


def write_instructions(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(200)]
    (folder / "train.json").write_text(json.dumps(rows))


def run_once(place: Path) -> None:
    """The runs that pages speak of, all of the recipe quickstart; and what a server's owner gives a node's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        seedtune(patch, "run", "quickstart", *SMALL["run"], "--out", "runs/quickstart")
        seedtune(patch, "deploy", "keys", "given", "--host", "fed.example.org")
        seedtune(patch, "deploy", "node-key", "site-0.key")
    for name in ("runs/demo", "runs/mine", "runs/other"):
        shutil.copytree(place / "runs/quickstart", place / name)
    shutil.copy(place / "given/ca.crt", place / "ca.crt")
    (place / "clients.txt").touch()


def seedtune(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    patch.setattr(sys, "argv", ["seedtune", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, f"{shlex.join(arguments)} ended with {stop.code}"


@pytest.mark.long
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_commands_of_a_page_run_in_order(page, workplace, tmp_path_factory, monkeypatch, capsys):
    short = tmp_path_factory.mktemp("page")  # a node's socket takes paths of at most 100 bytes
    place = shutil.copytree(workplace, short / "place", symlinks=True)
    monkeypatch.chdir(place)
    (place / "docs").mkdir()
    for line in shown(page):
        if (program := shlex.split(line)[0]) != "seedtune":
            check_elsewhere(program, shlex.split(line)[1:])
            continue
        arguments = [
            word.replace("cuda:1", "cpu").replace("cuda", "cpu") for word in shlex.split(line, comments=True)[1:]
        ]
        text = " ".join(arguments)
        if any(text.startswith(start) for start in NOT_RUN) and not text.startswith("study --list"):
            check_parses(arguments)
            continue
        if arguments[0] == "resume":  # as if it had been stopped: the page's run before it has ended
            (place / arguments[1] / "summary.json").unlink()
        if text.startswith("deploy node ") and (place / "keys").is_dir():  # what the page copies between machines
            shutil.copy(place / "keys/ca.crt", place / "ca.crt")
        seedtune(monkeypatch, *arguments, *smaller(text))
        assert "error" not in capsys.readouterr().err, line
    AFTERWARDS.get(page.stem, lambda place: None)(place)


def check_predictions(place: Path) -> None:
    """Of the page on data of one's own: the recipe that was drafted, and a prediction for each new row."""
    for file in ("predicted.csv", "predicted.jsonl"):
        lines = (place / file).read_text().splitlines()
        assert sum("negative" in line or "positive" in line for line in lines) >= 2
    recipe = (place / "reviews.toml").read_text()
    assert all(line in recipe for line in ('template = "{text}\\nStars:"', 'label_column = "stars"'))


AFTERWARDS = {"your-data": check_predictions}
"""What a page's commands must have left behind."""


def smaller(text: str) -> tuple[str, ...]:
    names = [name for name in SMALL if text == name or text.startswith(f"{name} ")]
    assert names, f"'seedtune {text}' has no rule: say in SMALL what makes it small, or in NOT_RUN why it is not run"
    options = SMALL[names[0]]
    return (*options, *(part for word, instead in INSTEAD.items() if word in text for part in instead))


def check_parses(arguments: list[str]) -> None:
    name, *rest = arguments
    typer.main.get_command(cli.app).commands[name].make_context(name, list(rest))
    if name == "study":
        catalogue.study_of(rest[0])
    if name == "run":
        assert rest[0] in presets.names("recipes")


def check_elsewhere(program: str, arguments: list[str]) -> None:
    """What is not run exists: a target, an extra, a module, a folder."""
    assert program in ELSEWHERE, f"{program!r} has no rule: say in ELSEWHERE why it is not run"
    if program == "make":
        assert all(re.search(rf"^{target}:", MAKEFILE, re.M) for target in arguments)
    elif program == "pip" and "--no-deps" in arguments:
        pins = [word for word in arguments if "==" in word and not word.startswith("-")]
        assert arguments[0] in ("install", "download") and pins and all(f"{pin} --hash=" in PINNED for pin in pins)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert arguments[0] == "install" and set(re.findall(r"\w+", arguments[1])) <= set(extras)
    elif arguments[:2] == ["-m", "pytest"]:
        assert (ROOT / arguments[2]).exists()
    else:
        assert (ROOT / f"{arguments[1].replace('.', '/')}.py").exists()


@pytest.mark.parametrize("line", ["frobnicate", "run"])
def test_a_command_without_a_rule_fails(line):
    if line == "run":
        assert smaller("run x") and smaller("study --list") == ()
        return
    with pytest.raises(AssertionError, match="has no rule"):
        smaller(line)
    with pytest.raises(AssertionError, match="has no rule"):
        check_elsewhere(line, [])
