"""A run's folder: it can be killed at any moment and goes on from its last whole round.

    recipe.json            every setting, resolved
    trajectory.seedtune    what the weights went through (`zo.trajectory`)
    metrics.jsonl          one line a round, and one before the first
    snapshots/             weights after a round, where the protocol sends weights
    manifest.json          how much of the files above counts; written last, replaced in one rename
    summary.json           the results, when the run has ended

Guarantees: after a crash at any moment the folder holds a whole number of rounds, those of the manifest; what came
after is cut off when the run is opened again. One process at a time may hold a folder. It trains nothing.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from .config import Recipe, build
from .errors import RunStoreError
from .space import DIGEST_BYTES, Weights
from .zo.trajectory import Header, RoundRecord, Trajectory, header_frame, parse, round_frame

TRAJECTORY, METRICS, MANIFEST, SUMMARY, RECIPE = (
    "trajectory.seedtune", "metrics.jsonl", "manifest.json", "summary.json", "recipe.json",
)  # fmt: skip
FORMAT = 1
_MARGIN_BYTES = 2**20


@dataclass(frozen=True)
class Manifest:
    """How many bytes of each file count; `num_rounds` of them are in both."""

    num_rounds: int
    trajectory_bytes: int
    metrics_bytes: int
    format: int = FORMAT


class RunStore:
    """An open run folder. Make one with `create` or `open_run`, which hold the folder's lock."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, header: Header, first_row: Mapping[str, Any]) -> None:
        """Starts trajectory and metrics anew, with the row that says how the model stood before the first round."""
        (self.folder / TRAJECTORY).write_bytes(b"")
        (self.folder / METRICS).write_bytes(b"")
        sizes = self._append(TRAJECTORY, header_frame(header)), self._append(METRICS, _line(first_row))
        self._commit(Manifest(0, *sizes))

    def append(self, record: RoundRecord, row: Mapping[str, Any]) -> None:
        """Adds one round. When it returns, the round survives a crash."""
        written = _last_bytes(self.folder / TRAJECTORY, DIGEST_BYTES)
        sizes = self._append(TRAJECTORY, round_frame(written, record)), self._append(METRICS, _line(row))
        self._commit(Manifest(record.round + 1, *sizes))

    def keep_snapshot(self, round_: int, weights: Weights, only_last: bool) -> None:
        """Keeps the weights after a round; called before the round is appended, so the last whole round has them."""
        folder = self.folder / "snapshots"
        folder.mkdir(exist_ok=True)
        path = _snapshot_path(self.folder, round_)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path.with_suffix(".part"))
        _sync(path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        if only_last:
            for old in sorted(folder.glob("round-*.safetensors")):
                if old < _snapshot_path(self.folder, round_ - 1):
                    old.unlink()

    def finish(self, summary: Mapping[str, Any]) -> None:
        _replace(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def manifest(self) -> Manifest | None:
        """None where the run was stopped before its first commit."""
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        try:
            fields = json.loads(path.read_text())
            if fields["format"] != FORMAT:
                raise RunStoreError(f"run {self.folder}: format {fields['format']} is not ours, {FORMAT}")
            return Manifest(**fields)
        except (ValueError, KeyError, TypeError):
            raise RunStoreError(f"run {self.folder}: {MANIFEST} is damaged: the run cannot be continued") from None

    def recover(self) -> Manifest | None:
        """Cuts off what was written after the last whole round; None where there is none yet.

        Raises:
            RunStoreError: a file is shorter than the manifest says.
        """
        manifest = self.manifest()
        if manifest:
            for name, size in ((TRAJECTORY, manifest.trajectory_bytes), (METRICS, manifest.metrics_bytes)):
                _cut(self.folder / name, size)
        return manifest

    def _append(self, name: str, data: bytes) -> int:
        with open(self.folder / name, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def _commit(self, manifest: Manifest) -> None:
        _replace(self.folder / MANIFEST, json.dumps(asdict(manifest)) + "\n")


@contextmanager
def create(folder: Path, recipe: Recipe, replace: bool = False, needed_bytes: int = 0) -> Iterator[RunStore]:
    """A new run in `folder`, locked while the context lasts.

    Raises:
        RunStoreError: the folder holds something already (and `replace` is not given, or it is not a run), is in use,
            cannot be written, or its disk has less than `needed_bytes` free.
    """
    occupied = folder.exists() and any(name.name != "lock" for name in folder.iterdir()) if folder.is_dir() else False
    if folder.exists() and not folder.is_dir():
        raise RunStoreError(f"run folder {folder}: is a file; choose another with --out")
    if occupied and not (folder / RECIPE).exists():
        raise RunStoreError(f"run folder {folder}: holds other files than a run's; choose an empty one with --out")
    if occupied and not replace:
        raise RunStoreError(
            f"run folder {folder}: holds a run already; continue it with 'seedtune resume {folder}', choose another "
            f"with --out, or add --replace"
        )
    with _locked(folder, create_folder=True):
        if occupied:
            _clear(folder)
        _check_room(folder, needed_bytes)
        _replace(folder / RECIPE, recipe.model_dump_json(indent=2) + "\n")
        yield RunStore(folder)


@contextmanager
def open_run(folder: Path) -> Iterator[RunStore]:
    """An existing run, to be continued; locked while the context lasts.

    Raises:
        RunStoreError: no run there, or in use.
    """
    _check_run(folder)
    with _locked(folder):
        yield RunStore(folder)


def recipe_of(folder: Path) -> Recipe:
    """The resolved recipe of a run.

    Raises:
        RunStoreError: no run there. ConfigError: a recipe that this version does not take.
    """
    _check_run(folder)
    try:
        values = json.loads((folder / RECIPE).read_text())
    except (OSError, ValueError):
        raise RunStoreError(f"run {folder}: {RECIPE} is damaged") from None
    return build(values, f"run {folder}: {RECIPE}")


def trajectory_of(folder: Path) -> Trajectory:
    """The trajectory of a run, whole rounds only, without touching the folder."""
    manifest = RunStore(folder).manifest()
    if manifest is None:
        raise RunStoreError(f"run {folder}: was stopped before its first commit: it holds no trajectory yet")
    data = (folder / TRAJECTORY).read_bytes()
    return parse(data[: manifest.trajectory_bytes], str(folder / TRAJECTORY))


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that count: before the first round, then one a round."""
    manifest = RunStore(folder).manifest()
    size = manifest.metrics_bytes if manifest else 0
    text = (folder / METRICS).read_bytes()[:size].decode() if size else ""
    return [json.loads(line) for line in text.splitlines()]


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The results of a run, None while it has not ended."""
    path = folder / SUMMARY
    return json.loads(path.read_text()) if path.exists() else None


def snapshot_of(folder: Path, round_: int) -> Weights:
    """The weights after round `round_` of a run of the weights protocol.

    Raises:
        RunStoreError: they were not kept.
    """
    path = _snapshot_path(folder, round_)
    if not path.exists():
        raise RunStoreError(
            f"run {folder}: the weights after round {round_} were not kept; set run.keep_snapshots = 'all' to keep them"
        )
    return load_file(path)


def drop_snapshots_after(folder: Path, num_rounds: int) -> None:
    """Removes snapshots of rounds that never became whole."""
    for path in (folder / "snapshots").glob("round-*.safetensors"):
        if path >= _snapshot_path(folder, num_rounds):
            path.unlink()


def _snapshot_path(folder: Path, round_: int) -> Path:
    return folder / "snapshots" / f"round-{max(round_, 0):08d}.safetensors"


def _check_run(folder: Path) -> None:
    if not (folder / RECIPE).exists():
        raise RunStoreError(f"run folder {folder}: holds no run (no {RECIPE}); 'seedtune run' makes one")


@contextmanager
def _locked(folder: Path, create_folder: bool = False) -> Iterator[None]:
    try:
        if create_folder:
            folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        with lock:
            yield
    except Timeout:
        raise RunStoreError(
            f"run folder {folder}: is in use by another process; wait for it, or choose another folder"
        ) from None
    except PermissionError as error:
        raise RunStoreError(f"run folder {folder}: cannot be written: {error.strerror}") from None


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Writes for real, since quotas and read-only mounts do not show otherwise."""
    free, needed = shutil.disk_usage(folder).free, needed_bytes + _MARGIN_BYTES
    if free < needed:
        raise RunStoreError(
            f"run folder {folder}: its disk has {free / 2**20:.0f} MiB free, this run may need {needed / 2**20:.0f}; "
            f"make room or choose another with --out"
        )
    probe = folder / "probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunStoreError(f"run folder {folder}: cannot be written: {error.strerror}") from None
    finally:
        probe.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    for name in (MANIFEST, SUMMARY, TRAJECTORY, METRICS, RECIPE):  # the manifest first: no half-run is ever whole
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "snapshots", ignore_errors=True)


def _cut(path: Path, size: int) -> None:
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise RunStoreError(
            f"run {path.parent}: {path.name} has {found} bytes where {MANIFEST} counts {size}: it was cut off or "
            f"replaced, and the run cannot be continued"
        )
    os.truncate(path, size)


def _last_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(-count, os.SEEK_END)
        return file.read(count)


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    _sync(part)
    part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
