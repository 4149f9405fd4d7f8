"""What supervisors tell of a run, read from what the run's own processes write."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Told:
    """Reads a log that grows, from byte `read` on."""

    log: Path
    read: int = 0

    def news(self) -> list[str]:
        """Whole lines that came since the last call."""
        try:
            with open(self.log, "rb") as file:
                file.seek(self.read)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode(errors="replace").splitlines()


@dataclass
class Standing:
    """Reads where a node's worker stands (`engines.node_state`), and says so when that has changed."""

    path: Path
    seen: str = ""

    def news(self) -> str | None:
        try:
            told = _stands(json.loads(self.path.read_text()))
        except (OSError, ValueError):
            return None
        if told == self.seen:
            return None
        self.seen = told
        return told


def _stands(status: dict[str, Any]) -> str:
    text, digest = f"run {status.get('run')}", f"state digest {status.get('digest')}"
    if status.get("refused"):
        return f"run {status.get('asked', status.get('run'))}: refused, since {status['refused']}"
    if status.get("finished"):
        return f"{text}: ended after {status.get('round')} rounds, {digest}"
    if status.get("round") is None:
        return f"{text}: takes part"
    return f"{text}: in round {status['round'] + 1}, which begins at {digest}"
