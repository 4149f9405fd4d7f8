"""What supervisors tell of a run, read from what the run's own processes write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..foreign_text import MOST_MESSAGE, parse_json, sanitize


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
        return [sanitize(line, MOST_MESSAGE) for line in whole.decode(errors="replace").split("\n")[:-1]]


@dataclass
class Standing:
    """Reads where a node's worker stands (`engines.node_state`), and says so when that has changed."""

    path: Path
    seen: str = ""

    def news(self) -> str | None:
        try:
            status = parse_json(self.path.read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(status, dict):
            return None
        told = _stands(status)
        if told == self.seen:
            return None
        self.seen = told
        return told


def _stands(status: dict[str, Any]) -> str:
    run, digest, refused = (sanitize(status.get(name)) for name in ("run", "digest", "refused"))
    text, round_ = f"run {run}", status.get("round")
    if status.get("refused"):
        asked = sanitize(status.get("asked", status.get("run")))
        return f"run {asked}: refused, since {refused}"
    if type(round_) is not int:
        return f"{text}: takes part"
    if status.get("finished"):
        return f"{text}: ended after {round_} rounds, state digest {digest}"
    return f"{text}: in round {round_ + 1}, which begins at state digest {digest}"
