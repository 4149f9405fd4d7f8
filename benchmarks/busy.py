"""How much longer a round takes beside a busy process a core, with threads that wait passively and threads that spin.

The first rounds of the recipe quickstart, on all usable cores: alone, and beside one `while True: pass` a core, in
turns. Spinning is what OpenMP does where nothing is set: 300,000 looks before a thread sleeps (GOMP_SPINCOUNT).
What else runs on the machine slows both sides of a ratio.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._report import arguments, report, spread
from seedtune.cores import usable_cores

BUSY = "while True: pass"
NUM_ROUNDS = 4
SPINNING = {"GOMP_SPINCOUNT": "300000", "OMP_WAIT_POLICY": "ACTIVE"}
WAYS: dict[str, dict[str, str]] = {"passive": {}, "spinning": SPINNING}


@contextmanager
def load(num_processes: int) -> Iterator[None]:
    """So many processes that never wait."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def round_seconds(environment: dict[str, str]) -> float:
    """The median over the rounds after the first of a fresh run in a process of its own."""
    settings = ("baseline.num_steps=0", "task.max_eval=8", "task.max_train=800", "partition.kind=iid")
    flags = [part for text in settings for part in ("--set", text)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "seedtune", "run", "quickstart", "--rounds", str(NUM_ROUNDS), *flags]
        subprocess.run([*run, "--out", f"{folder}/run"], check=True, capture_output=True, env=inherited | environment)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    return median(row["seconds"] for row in rows[2:])


def figures(quick: bool) -> list[dict[str, Any]]:
    others = os.getloadavg()[0]
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(1 if quick else 3):
        for way, environment in WAYS.items():
            alone = round_seconds(environment)
            with load(usable_cores()):
                seconds[way].append((alone, round_seconds(environment)))
    return [
        {
            "threads": way, "cores": usable_cores(), "load before": round(others, 1),
            "round alone, s": spread([alone for alone, _ in pairs]), "busy, s": spread([busy for _, busy in pairs]),
            "times as long": spread([busy / alone for alone, busy in pairs]),
        }
        for way, pairs in seconds.items()
    ]  # fmt: skip


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    report({"beside a busy process a core": figures(options.quick)}, options.json)


if __name__ == "__main__":
    main()
