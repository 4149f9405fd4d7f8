"""What a node has spent of its owner's privacy: every release of every run, kept on disk and added up.

    ledger.json    by run: which data, the run's plan (`privacy.plan`), how many rounds each client was charged for

A release is charged before it is computed, and the charge is on the disk when `charge` returns; nothing but its owner
takes one back. Runs on the same data add up. Which data it is, is the digest of the owner's own files (`--data`); all
runs whose data the recipe names are one account, since the server chooses these.

Within a run a release counts once for each client, and the client with most of them counts for all: which client has
which example is the server's to say. Over runs, releases compose by Renyi divergences (`accounting.composed`).

    account "example"    of runs that protect examples; and of those that protect clients, at half their noise
                         multiplier, since one example may turn a client's clipped vector round
    account "client"     of runs that protect clients; others promise a client nothing, and are not in it
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..privacy.accounting import composed
from ..privacy.plan import Plan
from .node_state import write

LEDGER, FORMAT = "ledger.json", 1
RECIPES = "of recipes"
"""The account of all runs whose data the recipe names."""


@dataclass(frozen=True)
class Entry:
    """One run on one data set. charged: by client, releases."""

    data: str
    run: str
    plan: Plan
    charged: Mapping[int, int] = field(default_factory=dict)

    @property
    def num_releases(self) -> int:
        """Those of the client with most of them."""
        return max(self.charged.values(), default=0)

    def charged_for(self, client: int, round_: int) -> "Entry":
        """With one release more. A secret cohort counts with every round, also those that did not ask the client."""
        before = self.charged.get(client, 0)
        now = max(before + 1, round_ + 1) if self.plan.hides_cohort else before + 1
        return replace(self, charged={**self.charged, client: now})


@dataclass(frozen=True)
class NodeLedger:
    """The ledger in `path`, read anew for each use. delta: at which epsilon is told, the owner's."""

    path: Path
    delta: float

    def entries(self) -> tuple[Entry, ...]:
        """
        Raises:
            DataError: a ledger that cannot be read: nothing private is answered without it.
        """
        try:
            plain = json.loads(self.path.read_bytes())
            if plain["format"] != FORMAT:
                raise ValueError(plain["format"])
            return tuple(_entry(row) for row in plain["entries"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise DataError(
                f"{self.path}: the ledger of what was spent cannot be read, and no private run is answered without it: "
                "put it back from a copy; moving it away begins a new account"
            ) from None

    def charge(self, data: str, run: str, plan: Plan, client: int, round_: int, most: float) -> None:
        """Write down one release of a client, on the disk when this returns.

        Args:
            most: epsilon that the data's account must not exceed with it; 0: no limit.

        Raises:
            ConfigError: it would. DataError: as `entries`.
        """
        before = self.entries()
        mine = next((e for e in before if _is_of(e, data, run, plan)), Entry(data, run, plan))
        after = (*(e for e in before if not _is_of(e, data, run, plan)), mine.charged_for(client, round_))
        if most and not (spent := self._epsilon(after, data, plan.unit)) <= most:
            raise ConfigError(
                f"with client {client}'s answer for round {round_} this node would have spent epsilon {spent:.4g} of "
                f"its data, and its owner allows {most:g} (--max-epsilon): nothing more is answered"
            )
        rows = [{"data": e.data, "run": e.run, "plan": asdict(e.plan), "charged": {str(c): n for c, n in
                e.charged.items()}} for e in after]  # fmt: skip
        write(self.path, json.dumps({"format": FORMAT, "entries": rows}).encode(), is_synced=True)

    def epsilon(self, data: str, unit: str, planned: Entry | None = None) -> float:
        """Return what the account of some data has spent, at the owner's delta.

        planned: a run to its end, in place of what it has spent so far.
        """
        entries = self.entries()
        if planned:
            so_far = next((e for e in entries if _is_of(e, planned.data, planned.run, planned.plan)), planned)
            most = so_far if so_far.num_releases > planned.num_releases else planned
            entries = (*(e for e in entries if e is not so_far), most)
        return self._epsilon(entries, data, unit)

    def _epsilon(self, entries: tuple[Entry, ...], data: str, unit: str) -> float:
        return composed(_events(entries, data, unit), self.delta)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What the ledger says, by data and unit: epsilon, runs and releases."""
        entries = self.entries()
        for data in sorted({e.data for e in entries}):
            for unit in ("example", "client"):
                own = [e for e in entries if e.data == data and (unit == "example" or e.plan.unit == unit)]
                if own:
                    spent = self._epsilon(entries, data, unit)
                    releases = sum(e.num_releases for e in own)
                    yield {"data": data, "unit": unit, "epsilon": spent, "delta": self.delta,
                           "runs": len({e.run for e in own}), "releases": releases}  # fmt: skip


def data_digest(path: Path | None) -> str:
    """Return the account of the data in a file, or in a folder's files; `RECIPES` where there is none.

    Cost: one read.
    """
    if path is None:
        return RECIPES
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    total = sha256()
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(2**20):
                total.update(block)
    return total.hexdigest()


def _events(entries: tuple[Entry, ...], data: str, unit: str) -> Iterator[tuple[Plan, int]]:
    """The plans of an account and how often each was run."""
    for entry in entries:
        plan = entry.plan
        if entry.data == data and unit == "example" and plan.unit == "client":
            yield replace(plan, noise_multiplier=plan.noise_multiplier / 2), entry.num_releases
        elif entry.data == data and plan.unit == unit:
            yield plan, entry.num_releases


def _is_of(entry: Entry, data: str, run: str, plan: Plan) -> bool:
    return (entry.data, entry.run, entry.plan) == (data, run, plan)


def _entry(row: Mapping[str, Any]) -> Entry:
    charged = {int(client): int(count) for client, count in row["charged"].items()}
    return Entry(str(row["data"]), str(row["run"]), Plan(**row["plan"]), charged)
