"""All benchmarks, one after another, each into `benchmarks/results/NAME.json`."""

import subprocess
import sys
from pathlib import Path

NAMES = ("noise", "step", "batched", "split", "memory")


def main() -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(folder / f"{name}.json"), *sys.argv[1:]]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
