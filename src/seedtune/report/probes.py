"""What probes found, as a page shows it: of each kind of probe its findings side by side.

Findings are files in a run's folder, or named by the reader, and others may have written them: what is missing, of
another type, or too much is "not known" or left out, never an error. Nothing is measured here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .. import run_store
from ..errors import ConfigError
from ..run_files import parse_object
from .reading import Run, known, mapping, text

KINDS = {
    "effective-rank": "How many directions the loss is curved in: traces, eigenvalues and ranks of its Hessian.",
    "perturbation-scale": "How wrong the projected gradient is, by perturbation scale and dtype.",
    "heterogeneity": "What clients' signals and gradients say of how unlike the clients are.",
    "rate-bound": "Which learning rates FedMeZO's theory allows, for curvature and noise as measured.",
}
MOST_BYTES, MOST_FILES, MOST_ENTRIES = 200_000, 20, 100
"""Of one file; files of one run; of anything within a file, such as rows of a table."""
NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Measured:
    """A number, and the bounds of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both, in order; None where they are not. A bootstrap's need not hold the value."""
        if self.low is None or self.high is None or self.low > self.high:
            return None
        return self.low, self.high

    @property
    def shown(self) -> str:
        return f"{self.value:.4g}"

    @property
    def interval(self) -> str:
        return f"{self.bounds[0]:.4g} to {self.bounds[1]:.4g}" if self.bounds else ""


Cell = Measured | str


@dataclass(frozen=True)
class Finding:
    """One file. look: the number of its line, colour and mark. at: whose weights were probed, and which; `is_stray`:
    whether these are none of the run's."""

    label: str
    look: int
    probe: str
    at: str
    is_stray: bool
    about: str
    values: Mapping[str, Cell]
    tables: Mapping[str, Sequence[Mapping[str, Cell]]]
    cost: str
    notes: Sequence[str]


def findings(runs: Sequence[Run], files: Sequence[Path] = ()) -> tuple[list[Finding], list[str]]:
    """(what probes of the runs found, then what the files hold; which of the runs' files hold no finding).

    Raises:
        ConfigError: one of `files` holds none.
    """
    found, damaged = [], []
    for place, run in enumerate(runs):
        for path in islice(run_store.findings_of(run.folder), MOST_FILES):
            if (values := _read(path)) is None:
                damaged.append(f"{run.label}: {run_store.FINDINGS}/{text(path.name)} holds no finding of a probe")
            else:
                found.append(_finding(values, path, place, run))
    for place, path in enumerate(files, start=len(runs)):
        if (values := _read(path)) is None:
            raise ConfigError(f"--probe {path}: holds no finding; 'seedtune probe ... --out FILE' writes one")
        found.append(_finding(values, path, place, None))
    return found, damaged


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        found = parse_object(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found.get("values"), dict) else None


def _finding(found: Mapping[str, Any], path: Path, look: int, run: Run | None) -> Finding:
    probe = text(found.get("probe")) or text(path.stem)
    label = text(path.name) if run is None else run.label
    if run is not None and path.stem != probe:
        label = f"{label}, {text(path.stem)}"
    at, is_stray = _weights(mapping(found.get("about")), run)
    return Finding(
        label, look, probe, at, is_stray, _about(mapping(found.get("about"))), _cells(found.get("values")),
        {text(name): rows for name, each in _entries(found.get("tables")) if (rows := _rows(each))},
        _cost(found.get("cost")), [note for note in map(text, _members(found.get("notes"))) if note],
    )  # fmt: skip


def _weights(about: Mapping[str, Any], run: Run | None) -> tuple[str, bool]:
    """(which weights were probed, as far as it is known; whether they are none that the run has had)."""
    digest = text(about.get("state_digest"))
    if run is None or not digest:
        return "", False
    for i in reversed(range(len(run.rows))):
        if text(run.rows[i].get("state_digest")) == digest:
            last = ", the last whole one" if i == run.num_rounds else ""
            return (f"weights after round {i}{last}" if i else "weights before the first round"), False
    return "weights that this run does not have after any of its rounds", True


def _about(about: Mapping[str, Any]) -> str:
    """What was asked, on one line."""
    parts = []
    for name, value in _entries(about):
        if name == "state_digest":
            continue
        shown = Path(value).name if name == "model" and isinstance(value, str) else value
        parts.append(f"{text(name).replace('_', ' ')} {text(shown) or _number(shown) or NOT_KNOWN}")
    return ", ".join(parts)


def _number(value: Any) -> str:
    """
    >>> _number(3803392), _number(0.5), _number(True)
    ('3803392', '0.5', '')
    """
    found = known(value)
    return "" if found is None else f"{found:.0f}" if found.is_integer() and abs(found) < 1e15 else f"{found:.4g}"


def _cost(cost: Any) -> str:
    parts = ((text(name).replace("_", " "), known(value)) for name, value in _entries(cost))
    return ", ".join(f"{value:g} {name}" for name, value in parts if value)


def _rows(rows: Any) -> list[Mapping[str, Cell]]:
    return [_cells(row) for row in _members(rows) if isinstance(row, dict) and row]


def _cells(values: Any) -> dict[str, Cell]:
    return {text(name): cell(value) for name, value in _entries(values)}


def cell(value: Any) -> Cell:
    """
    >>> cell([2.0, 1.5, None]), cell("1e-3 to 1e-2"), cell(None), cell([1, 2]), cell({"a": 1})
    (Measured(value=2.0, low=1.5, high=None), '1e-3 to 1e-2', 'none', 'not known', 'not known')
    """
    if value is None:
        return "none"
    if isinstance(value, str):
        return text(value)
    middle, *bounds = value if isinstance(value, list) and len(value) == 3 else [value]
    number = known(middle)
    return NOT_KNOWN if number is None else Measured(number, *map(known, bounds))


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    return islice(mapping(value).items(), MOST_ENTRIES)


def _members(value: Any) -> list[Any]:
    return value[:MOST_ENTRIES] if isinstance(value, list) else []
