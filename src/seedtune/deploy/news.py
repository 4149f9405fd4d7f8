"""What supervisors tell of a run, read from the files that the run itself writes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Metrics:
    """Reads a run's metrics.jsonl as it grows; `rounds`: of the last whole line read."""

    path: Path
    rounds: int = 0
    read: int = 0

    def news(self) -> list[str]:
        """A line for each round that has ended since the last call."""
        return [_told(row) for row in self._rows() if row["rounds"]]

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                self.read = min(self.read, file.seek(0, 2))  # a resumed run cuts off what was not committed
                file.seek(self.read)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            row = json.loads(line)
            if row["rounds"] > self.rounds:
                self.rounds = row["rounds"]
                yield row


def _told(row: dict[str, Any]) -> str:
    loss = "not finite" if row["train_loss"] is None else f"{row['train_loss']:.3f}"
    text = f"round {row['rounds']}  train loss {loss}  {row['replied']} of {row['cohort']} clients"
    if failed := row["failed"]:
        client = min(failed, key=int)
        others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        text += f"  left out: client {client} ({failed[client]}){others}"
    return text


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
        return f"{text}: refused, since {status['refused']}"
    if status.get("finished"):
        return f"{text}: ended after {status.get('round')} rounds, {digest}"
    if status.get("round") is None:
        return f"{text}: takes part"
    return f"{text}: in round {status['round'] + 1}, which begins at {digest}"
