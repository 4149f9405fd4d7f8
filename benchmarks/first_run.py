"""How soon a command answers and the first run's first round is done, over what Python's libraries take anyway.

Every call is a new process, files cached. "Imports" is `import torch, transformers`; "by hand" is what nobody can
do without: those imports, the starter loaded by transformers, and one forward pass. The first round is done when its
line stands in metrics.jsonl: model and task loaded, examples encoded and dealt, the start evaluated on all test
examples, eight clients asked.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any

from benchmarks._report import arguments, in_turns, ratio, report, spread
from seedtune.models.source import find

SEEDTUNE = "from seedtune.cli import main; main()"
BY_HAND = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({folder!r}, local_files_only=True)
with torch.no_grad():
    model(torch.arange(48)[None])
"""
COMMANDS = {
    "--version": ["--version"],
    "recipes": ["recipes"],
    "refused: a mistyped setting": ["run", "quickstart", "--set", "local.learning_rat=1"],
}


def python(code: str, *arguments: str, fails: bool = False) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if bool(done.returncode) != fails:
        raise RuntimeError(f"{arguments or code} ended with {done.returncode}: {done.stderr}")


def first_round() -> None:
    """Start the first run and end it once its first round is recorded."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SEEDTUNE, "run", "quickstart", "--out", f"{folder}/run"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not _has_a_round(Path(folder) / "run" / "metrics.jsonl"):
                if process.poll() is not None:
                    raise RuntimeError(f"the run ended before its first round: {process.stderr.read()}")
                sleep(0.01)
            process.kill()


def _has_a_round(metrics: Path) -> bool:
    """The first line is the start's, before any round."""
    return metrics.exists() and metrics.read_text().count("\n") >= 2


def figures(quick: bool) -> list[dict[str, Any]]:
    calls: dict[str, Callable[[], None]] = {
        "python": partial(python, "pass"),
        "imports": partial(python, "import torch, transformers"),
        "by hand": partial(python, BY_HAND.format(folder=str(find("starter").location))),
        **{name: partial(python, SEEDTUNE, *command, fails="refused" in name) for name, command in COMMANDS.items()},
        "quickstart, first round": first_round,
    }
    times = in_turns(calls, num_turns=1 if quick else 3, seconds=0)
    return [
        {
            "command": name, "seconds": spread(times[name]), "over python": ratio(times[name], times["python"]),
            "over imports": ratio(times[name], times["imports"]), "over by hand": ratio(times[name], times["by hand"]),
        }
        for name in calls
    ]  # fmt: skip


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    report({"first run": figures(options.quick)}, options.json)


if __name__ == "__main__":
    main()
