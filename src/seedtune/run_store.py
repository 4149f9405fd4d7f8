"""A run's folder: it can be killed at any moment and goes on from its last whole round.

    recipe.json            every setting, resolved
    trajectory.seedtune    what the weights went through (`zo.trajectory`, `zo.trajectory_file`)
    metrics.jsonl          one line a round, and one before the first
    snapshots/             weights after a round, where clients upload weights
    id                     16 bytes as hex, drawn where the run's messages travel between machines
    manifest.json          how much of the files above counts, and a digest of the lines of metrics.jsonl that do;
                           written last, replaced in one rename
    summary.json           the results, when the run has ended
    probes/                what probes of the run found, a file each; no part of the run
    secret                 of a private run: gives its noise and its secret samples; never to be passed on

Guarantees: after a crash at any moment the folder holds a whole number of rounds, those of the manifest; what came
after is cut off when the run is opened again. One process at a time may hold a folder. A run that never begins, since
its model or its task cannot be used, leaves the disk as it was, an earlier run in the folder included. It trains
nothing.
"""

import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from .config import Recipe
from .errors import RunStoreError
from .foreign_text import describe
from .privacy.secrets import SECRET, keep_secret
from .recipe_text import build_json
from .run_files import (
    MANIFEST,
    METRICS,
    SUMMARY,
    Manifest,
    check_count,
    parse_any_summary,
    parse_lines,
    parse_manifest,
    parse_rows,
    parse_summary,
    read_bytes,
)
from .run_folder import LOCK, PROBE, check_room, claimed, replace_text, sync, writing
from .space import DIGEST_BYTES, Weights
from .zo.trajectory import Header, RoundRecord, Trajectory
from .zo.trajectory_file import header_frame, parse, round_frame

TRAJECTORY, RECIPE, ID = "trajectory.seedtune", "recipe.json", "id"
SNAPSHOTS, FINDINGS = "snapshots", "probes"
_FILES = (RECIPE, MANIFEST, SUMMARY, TRAJECTORY, METRICS, ID, SECRET)
ID_BYTES = 16


class RunStore:
    """An open run folder. Make one with `create` or `open_run`, which hold the folder's lock."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, recipe: Recipe, header: Header, first_row: Mapping[str, Any], secret: bytes = b"") -> None:
        """Starts the run, in place of one that was here, with the row that says how the model stood before round 0.

        `secret`: of a private run.
        """
        with self._writing():
            _clear(self.folder)
            if secret:
                keep_secret(self.folder, secret)
            replace_text(self.folder / RECIPE, recipe.model_dump_json(indent=2) + "\n")
            line = _line(first_row)
            sizes = self._append(TRAJECTORY, header_frame(header)), self._append(METRICS, line)
            self._commit(Manifest(0, *sizes, _chained("", line)))

    def reserve(self, recipe: Recipe) -> None:
        """Keeps the folder for a run that another process begins, by resuming it."""
        with self._writing():
            replace_text(self.folder / RECIPE, recipe.model_dump_json(indent=2) + "\n")

    def append(self, record: RoundRecord, row: Mapping[str, Any]) -> None:
        """Adds one round. When it returns, the round survives a crash."""
        with self._writing():
            written, before, line = _last_bytes(self.folder / TRAJECTORY, DIGEST_BYTES), self.manifest(), _line(row)
            sizes = self._append(TRAJECTORY, round_frame(written, record)), self._append(METRICS, line)
            digest = _chained(before.metrics_digest if before else "", line)
            self._commit(Manifest(record.round + 1, *sizes, digest))

    def keep_snapshot(self, round_: int, weights: Weights, others: Collection[int] | None) -> None:
        """Keeps the weights after a round; called before the round is appended, so the last whole round has them.

        Of earlier rounds the one before it and `others` stay, or all where that is None.
        """
        path = _snapshot_path(self.folder, round_)
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
            sync(path)
            sync(path.parent)
            if others is not None:
                needed = {_snapshot_path(self.folder, other) for other in (round_ - 1, round_, *others)}
                for old in set(path.parent.glob("round-*.safetensors")) - needed:
                    old.unlink()

    def finish(self, summary: Mapping[str, Any]) -> None:
        with self._writing():
            replace_text(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def run_id(self) -> bytes:
        """By which nodes know this run from any other, also once it is resumed; drawn when it is first asked for."""
        path = self.folder / ID
        if not path.exists():
            with self._writing():
                replace_text(path, secrets.token_hex(ID_BYTES) + "\n")
        try:
            id_ = bytes.fromhex((read_bytes(self.folder, ID) or b"").decode().strip())
        except ValueError:
            id_ = b""
        if len(id_) != ID_BYTES:
            raise RunStoreError(f"run {self.folder}: {ID} is damaged: delete it, and nodes start from the base again")
        return id_

    def manifest(self) -> Manifest | None:
        """None where the run was stopped before its first commit."""
        data = read_bytes(self.folder, MANIFEST)
        if data is None and (self.folder / SUMMARY).exists():
            raise RunStoreError(f"run {self.folder}: has ended, and its {MANIFEST} is missing: take a fresh copy")
        return None if data is None else parse_manifest(self.folder, data)

    def recover(self) -> Manifest | None:
        """Cuts off what was written after the last whole round; None where there is none yet.

        Raises:
            RunStoreError: a file is shorter than the manifest says.
        """
        manifest = self.manifest()
        if manifest:
            for name, size in ((TRAJECTORY, manifest.trajectory_bytes), (METRICS, manifest.metrics_bytes)):
                with self._writing():
                    _cut(self.folder / name, size)
        return manifest

    def _writing(self) -> AbstractContextManager[None]:
        return writing(
            self.folder, f"make room, then 'seedtune resume {self.folder}' goes on after the last whole round"
        )

    def _append(self, name: str, data: bytes) -> int:
        with open(self.folder / name, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def _commit(self, manifest: Manifest) -> None:
        replace_text(self.folder / MANIFEST, json.dumps(asdict(manifest)) + "\n")


@contextmanager
def create(folder: Path, replace: bool = False, needed_bytes: int = 0) -> Iterator[RunStore]:
    """A folder for a new run, checked and locked while the context lasts; `begin` starts the run in it.

    Where the context ends before `begin`, what was made here is removed, and what was there is still there.

    Raises:
        RunStoreError: the folder holds something already (and `replace` is not given, or it is not a run), is in use,
            cannot be written, or its disk has less than `needed_bytes` free.
    """
    _check_free(folder, replace)
    with claimed(folder, lambda: is_run(folder)):
        _check_free(folder, replace)
        check_room(folder, needed_bytes)
        yield RunStore(folder)


@contextmanager
def open_run(folder: Path) -> Iterator[RunStore]:
    """An existing run, to be continued; locked while the context lasts.

    Raises:
        RunStoreError: no run there, or in use.
    """
    _check_run(folder)
    with claimed(folder, lambda: True):
        yield RunStore(folder)


def is_run(folder: Path) -> bool:
    """Whether a run has begun in this folder.

    Raises:
        RunStoreError: it cannot be looked into, or its name is none.
    """
    try:
        return (folder / RECIPE).is_file()
    except OSError as error:
        raise RunStoreError(f"run folder {folder}: cannot be read: {error.strerror}") from None


def recipe_of(folder: Path) -> Recipe:
    """The resolved recipe of a run.

    Raises:
        RunStoreError: no run there. ConfigError: a recipe that this version does not take.
    """
    _check_run(folder)
    data = read_bytes(folder, RECIPE) or b""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RunStoreError(f"run {folder}: {RECIPE} is damaged (not UTF-8 at byte {error.start})") from None
    return build_json(text, f"run {folder}: {RECIPE}")


def trajectory_of(folder: Path) -> Trajectory:
    """The trajectory of a run, whole rounds only, without touching the folder.

    Raises:
        RunStoreError: no run there, or stopped before its first commit. TrajectoryError: a damaged file.
    """
    data, manifest = _counted(folder, TRAJECTORY)
    if manifest is None:
        raise RunStoreError(
            f"run {folder}: was stopped before its first round: it holds no trajectory yet; start it again with "
            f"'seedtune resume {folder}'"
        )
    trajectory = parse(data, str(folder / TRAJECTORY))
    check_count(folder, TRAJECTORY, len(trajectory.records), manifest)
    return trajectory


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that count: before the first round, then one a round.

    Raises:
        RunStoreError: no run there, or a line that is not the row of its round (`run_files`).
    """
    data, manifest = _counted(folder, METRICS)
    rows = parse_rows(folder, data)
    if manifest:
        check_count(folder, METRICS, len(rows) - 1, manifest)
    return rows


def any_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that count, as JSON objects whose keys and types are not checked.

    Raises:
        RunStoreError: no run there, or a line that is no object.
    """
    return parse_lines(folder, _counted(folder, METRICS)[0])


def _counted(folder: Path, name: str) -> tuple[bytes, Manifest | None]:
    """The bytes of a file that the manifest counts; nothing and None where there is no manifest yet."""
    _check_run(folder)
    manifest = RunStore(folder).manifest()
    if manifest is None:
        return b"", None
    size = {TRAJECTORY: manifest.trajectory_bytes, METRICS: manifest.metrics_bytes}[name]
    data = read_bytes(folder, name) or b""
    _check_length(folder / name, len(data), size)
    if name == METRICS:
        _check_lines(folder, data[:size], manifest.metrics_digest)
    return data[:size], manifest


def _check_lines(folder: Path, data: bytes, expected: str) -> None:
    digest = ""
    for line in data.splitlines(keepends=True):
        digest = _chained(digest, line)
    if digest != expected:
        raise RunStoreError(
            f"run {folder}: {METRICS} is damaged or was altered since it was written, and rates follow from it: put it "
            "back as it was, or start another run"
        )


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The results of a run, None while it has not ended."""
    data = read_bytes(folder, SUMMARY)
    return None if data is None else parse_summary(folder, data)


def any_summary(folder: Path) -> dict[str, Any] | None:
    """The results of a run as a JSON object whose keys and types are not checked, None while it has not ended."""
    data = read_bytes(folder, SUMMARY)
    return None if data is None else parse_any_summary(folder, data)


def snapshot_of(folder: Path, round_: int) -> Weights:
    """The weights after round `round_` of a run whose clients upload weights.

    Raises:
        RunStoreError: they were not kept, or the file is damaged.
    """
    path = _snapshot_path(folder, round_)
    if not path.exists():
        raise RunStoreError(
            f"run {folder}: the weights after round {round_} were not kept; set run.keep_snapshots = 'all' to keep them"
        )
    try:
        return load_file(path)
    except Exception as error:  # whatever a header that was altered makes of safetensors, not only its own errors
        raise RunStoreError(
            f"run {folder}: snapshot {path.name} is damaged ({describe(error)}): take a fresh copy"
        ) from None


def keep_finding(folder: Path, name: str, text: str) -> Path:
    """Keeps what a probe of a run found, in place of an earlier finding of this name; where it is now.

    The run's lock is not asked for: a run that goes on does not look at it.

    Raises:
        RunStoreError: no run there, or its folder cannot be written.
    """
    _check_run(folder)
    path = folder / FINDINGS / f"{name}.json"
    with writing(folder, "write what was found elsewhere with --out"):
        path.parent.mkdir(exist_ok=True)
        replace_text(path, text)
    return path


def findings_of(folder: Path) -> list[Path]:
    """The files of what probes of a run found, by name."""
    return sorted(path for path in (folder / FINDINGS).glob("*.json") if path.is_file())


def log_bytes(recipe: Recipe) -> int:
    """About how many bytes trajectory and metrics of a whole run take: some kilobytes, unless rounds are many."""
    federation = recipe.federation
    num_clients = recipe.partition.num_clients
    asked, evaluations = federation.cohort_size or num_clients, 1 + federation.num_rounds // recipe.run.eval_every
    scalars = federation.local_steps * recipe.num_scalars if federation.upload == "scalars" else 0
    heldout = evaluations * num_clients * 100 if recipe.partition.heldout_fraction else 0
    return (1 + federation.num_rounds) * (1000 + asked * (80 + 4 * scalars)) + heldout


def _snapshot_path(folder: Path, round_: int) -> Path:
    return folder / SNAPSHOTS / f"round-{max(round_, 0):08d}.safetensors"


def _check_run(folder: Path) -> None:
    if not is_run(folder):
        raise RunStoreError(f"run folder {folder}: holds no run (no {RECIPE}); 'seedtune run' makes one")


def _check_free(folder: Path, replace: bool) -> None:
    """Only an empty folder can hold a new run, or, with `replace`, one that holds an earlier run."""
    if folder.exists() and not folder.is_dir():
        raise RunStoreError(f"run folder {folder}: is a file; choose another with --out")
    left_over = {LOCK, PROBE, *(Path(name).with_suffix(".part").name for name in _FILES)}
    held = {path.name for path in folder.iterdir()} - left_over if folder.is_dir() else set()
    foreign = held - {*_FILES, SNAPSHOTS, FINDINGS}
    if foreign and not is_run(folder):
        raise RunStoreError(
            f"run folder {folder}: holds other files than a run's, such as {min(foreign)}; choose an empty one with "
            f"--out"
        )
    if held and not replace:
        raise RunStoreError(
            f"run folder {folder}: holds a run already; continue it with 'seedtune resume {folder}', choose another "
            f"with --out, or add --replace"
        )


def _clear(folder: Path) -> None:
    for name in _FILES:  # the recipe first: what is half cleared is no run, and nothing continues it by mistake
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)
    for path in findings_of(folder):
        path.unlink()


def _cut(path: Path, size: int) -> None:
    _check_length(path, path.stat().st_size if path.exists() else 0, size)
    os.truncate(path, size)


def _check_length(path: Path, found: int, counted: int) -> None:
    if found < counted:
        raise RunStoreError(
            f"run {path.parent}: {path.name} has {found} bytes where {MANIFEST} counts {counted}: it was cut off or "
            f"replaced, and the run cannot be continued"
        )


def _last_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(-count, os.SEEK_END)
        return file.read(count)


def _chained(digest: str, line: bytes) -> str:
    """Return the hex digest of a line and of those before it, whose digest is given."""
    return blake2b(digest.encode() + line, digest_size=DIGEST_BYTES).hexdigest()


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()
