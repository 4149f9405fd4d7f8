"""The contents of a run folder's files, parsed and checked once, where they enter.

Whoever reads rows, a summary or a manifest past here finds every key that this version writes, with its type; keys that
it does not know are kept. A number that is not finite is null (`metrics`). Where files lie is `run_store`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import RunStoreError
from .foreign_text import parse_json, quote, sanitize

FORMAT = 2
MANIFEST, METRICS, SUMMARY = "manifest.json", "metrics.jsonl", "summary.json"

Count = Annotated[int, Field(ge=0, lt=2**80)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Client = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class _Parsed(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _FirstRow(_Parsed):
    """How the model stood before the first round."""

    rounds: Count
    elapsed_seconds: Seconds
    loss: Real | None
    accuracy: Real | None
    perplexity: Real | None
    forwards: Count = 0
    flops: Count | None = None


class _Row(_Parsed):
    """One round; of a private run what was withheld is null."""

    rounds: Count
    elapsed_seconds: Seconds | None
    train_loss: Real | None
    bytes_up: Count | None
    bytes_down: Count | None
    forwards: Count | None
    flops: Count | None
    seconds: Seconds | None
    replied: Count | None
    cohort: Count | None
    dropped: list[Count]
    failed: dict[Client, str]
    losses: dict[Client, Real | None]
    signals: dict[Client, float]
    scalar_rms: Real | None
    learning_rate: Real
    skipped_steps: Count | None
    state_digest: str
    slopes: dict[Client, list[float]] = {}
    rate_ratio: Real | None = None
    surge: str = ""
    back_to: Count | None = None
    epsilon: Real | None = None


class _EvaluatedRow(_Row):
    loss: Real | None
    accuracy: Real | None
    perplexity: Real | None
    heldout_loss: Real | None = None


class _Replay(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    num_directions: Count
    num_values: Count
    num_rounded: Count
    weight_bytes: Count
    dtype: str


class _Ledger(_Parsed):
    epsilon: Real
    delta: Real
    unit: str
    neighbours: str
    noise: str
    noise_multiplier: Real
    events: Count


class _Summary(_Parsed):
    """`flops` and `replay` are missing where an earlier seedtune did not count them."""

    method: str
    model: str
    task: str
    rounds: Count
    loss: Real | None
    accuracy: Real | None
    perplexity: Real | None
    zero_shot_loss: Real | None
    zero_shot_accuracy: Real | None
    zero_shot_perplexity: Real | None
    backprop_steps: Count
    backprop_loss: Real | None
    backprop_accuracy: Real | None
    backprop_perplexity: Real | None
    best_rounds: Count
    best_loss: Real | None
    best_accuracy: Real | None
    stopped_by: Literal["patience", "surge", "privacy", "divergence"] | None
    surges: dict[str, str]
    bytes_up: Count | None
    bytes_down: Count | None
    bytes_up_per_client_round: Real | None
    bytes_down_per_client_round: Real | None
    forwards: Count | None
    flops: Count | None = None
    skipped_steps: Count | None
    failed_replies: Count | None
    truncated_examples: Count | None
    trajectory_bytes: Count
    peak_memory_bytes: Count
    round_seconds: Seconds | None
    seconds: Seconds | None
    state_digest: str
    replay: _Replay | None = None
    privacy: _Ledger | None


@dataclass(frozen=True)
class Manifest:
    """How many bytes of each file count; `num_rounds` of them are in both.

    metrics_digest: of the lines that count, each chained to those before it, since a resumed run reads signals, slopes
    and losses back from them.
    """

    num_rounds: int
    trajectory_bytes: int
    metrics_bytes: int
    metrics_digest: str
    format: int = FORMAT


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    num_rounds: Annotated[int, Field(ge=0, lt=2**40)]
    trajectory_bytes: Annotated[int, Field(ge=0, lt=2**60)]
    metrics_bytes: Annotated[int, Field(ge=0, lt=2**60)]
    metrics_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,64}$")]
    format: int


def read_bytes(folder: Path, name: str) -> bytes | None:
    """Read a file of a run folder; None where there is none.

    Raises:
        RunStoreError: something is there that cannot be read, such as a folder of this name.
    """
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunStoreError(f"run {folder}: {name} cannot be read: {error.strerror}: take a fresh copy") from None


def parse_manifest(folder: Path, data: bytes) -> Manifest:
    """
    Raises:
        RunStoreError: damaged, or of another format.
    """
    try:
        fields = parse_object(data)
    except ValueError as error:
        raise _damaged(folder, MANIFEST, str(error), "the run cannot be continued") from None
    if "format" in fields and fields["format"] != FORMAT:
        raise RunStoreError(
            f"run {folder}: {MANIFEST} has format {quote(fields['format'])}, which is not ours, {FORMAT}"
        )
    checked = _checked(_Manifest, fields, folder, MANIFEST, "the run cannot be continued")
    return Manifest(**checked.model_dump())


def parse_rows(folder: Path, data: bytes) -> list[dict[str, Any]]:
    """Parse the lines of metrics.jsonl: the row before the first round, then one a round.

    Raises:
        RunStoreError: a line that is not the row of its round; says which.
    """
    rows = parse_lines(folder, data)
    for i, row in enumerate(rows):
        kind = _FirstRow if i == 0 else _EvaluatedRow if "loss" in row else _Row
        place = f"{METRICS} line {i + 1}"
        _checked(kind, row, folder, place, "the run cannot be continued")
        if row["rounds"] != i:
            reason = f"it says that it is after {row['rounds']} rounds, and its place is after {i}"
            raise _damaged(folder, place, reason, "the run cannot be continued")
    return rows


def parse_lines(folder: Path, data: bytes) -> list[dict[str, Any]]:
    """Parse metrics.jsonl as JSON objects, whatever keys they have.

    Raises:
        RunStoreError: a line that is none; says which.
    """
    if not data:
        return []
    return [_parse_line(folder, number, line) for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1)]


def _parse_line(folder: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return parse_object(line)
    except ValueError as error:
        raise _damaged(folder, f"{METRICS} line {number}", str(error), "the run cannot be continued") from None


def parse_summary(folder: Path, data: bytes) -> dict[str, Any]:
    """Parse summary.json; `flops` and `replay` are None where they are missing.

    Raises:
        RunStoreError: damaged.
    """
    values = parse_any_summary(folder, data)
    _checked(_Summary, values, folder, SUMMARY, _resume(folder))
    return values


def parse_any_summary(folder: Path, data: bytes) -> dict[str, Any]:
    """Parse summary.json as a JSON object, whatever keys it has.

    Raises:
        RunStoreError: it is none.
    """
    try:
        return parse_object(data)
    except ValueError as error:
        raise _damaged(folder, SUMMARY, str(error), _resume(folder)) from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: it is none; says why in one line.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"it is no JSON object but a {type(value).__name__}")
    return value


def explain(error: ValidationError) -> str:
    """Return the first thing that pydantic found wrong, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(sanitize(part, 60) for part in first["loc"])
    reason = "is missing" if first["type"] == "missing" else first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {sanitize(reason)}" if where else sanitize(reason)


def _checked(kind: type[BaseModel], values: Mapping[str, Any], folder: Path, place: str, advice: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _damaged(folder, place, explain(error), advice) from None


def _damaged(folder: Path, place: str, reason: str, advice: str) -> RunStoreError:
    return RunStoreError(f"run {folder}: {place} is damaged ({reason}): {advice}")


def _resume(folder: Path) -> str:
    return f"delete it and 'seedtune resume {folder}'"


def check_count(folder: Path, name: str, found: int, manifest: Manifest) -> None:
    """
    Raises:
        RunStoreError: a file holds other rounds than the manifest says.
    """
    if found != manifest.num_rounds:
        raise RunStoreError(
            f"run {folder}: {name} holds {found} rounds where {MANIFEST} says {manifest.num_rounds}: one of them was "
            "replaced, and the run cannot be continued"
        )
