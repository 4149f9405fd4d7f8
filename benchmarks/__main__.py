"""All benchmarks for a CPU, one after another: `results/bench.json` and a table of the figures that have a bar.

Each also writes `results/NAME.json`. On two cores of a server processor it takes less than 15 minutes.
"""

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks._bars import BARS, measured
from benchmarks._report import machine, report

NAMES = ("noise", "step", "batched", "split", "memory", "replay", "scale", "wire", "first_run")


def main() -> None:
    folder, found, seconds = Path(__file__).parent / "results", {}, {}
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        print(f"benchmarks.{name}", flush=True)
        path, started = folder / f"{name}.json", perf_counter()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--json", str(path), *sys.argv[1:]], check=True)
        found[name], seconds[name] = json.loads(path.read_text()), round(perf_counter() - started, 1)
    bars = rows(found)
    report({"figures that have a bar": bars}, None)
    content = {"machine": machine(), "seconds": seconds, "bars": bars, **found}
    (folder / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"{sum(seconds.values()):.0f} s; all figures: {folder / 'bench.json'}")


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a bar: what was measured, the bar, the aim, and whether the median keeps the bar; "" where not measured."""
    table = []
    for bar in BARS:
        value, text = measured(bar, found)
        kept = "" if value is None else "yes" if value <= bar.most else "no"
        table.append({"figure": bar.figure, "measured": text, "bar": bar.most, "aim": bar.aim, "kept": kept})
    return table


if __name__ == "__main__":
    main()
