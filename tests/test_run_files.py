"""Every file of a run folder is refused in one line that names it, whatever it holds; no error of Python comes out."""

import json

import pytest
import whole_files

from seedtune.errors import RunStoreError
from seedtune.run_files import FORMAT, parse_manifest, parse_rows, parse_summary
from seedtune.run_store import is_run, metrics_of, recipe_of, snapshot_of, summary_of

MANIFEST = {"num_rounds": 2, "trajectory_bytes": 10, "metrics_bytes": 20, "metrics_digest": "00", "format": FORMAT}
NOT_CONTINUED = ": the run cannot be continued"


def refused(parse, folder, data) -> str:
    with pytest.raises(RunStoreError) as error:
        parse(folder, data if isinstance(data, bytes) else json.dumps(data).encode())
    told = str(error.value)
    assert told.startswith(f"run {folder}: ") and told.isprintable() and len(told) <= 2000
    return told.removeprefix(f"run {folder}: ")


@pytest.mark.parametrize("name", ["num_rounds", "trajectory_bytes", "metrics_bytes"])
@pytest.mark.parametrize("value, reason", [
    (-1, "input should be greater than or equal to 0"), ("12", "input should be a valid integer"),
    (1.5, "input should be a valid integer"), (None, "input should be a valid integer"),
    (True, "input should be a valid integer"), ([1], "input should be a valid integer"),
    (2**70, "input should be less than "),
])  # fmt: skip
def test_sizes_in_a_manifest_are_counts(tmp_path, name, value, reason):
    told = refused(parse_manifest, tmp_path, MANIFEST | {name: value})
    assert told.startswith(f"manifest.json is damaged ({name}: {reason}") and told.endswith(NOT_CONTINUED)


@pytest.mark.parametrize(
    "value, reason", [(3, "input should be a valid string"), ("xy", "string should match pattern")]
)
def test_the_digest_in_a_manifest_is_hexadecimal(tmp_path, value, reason):
    told = refused(parse_manifest, tmp_path, MANIFEST | {"metrics_digest": value})
    assert told.startswith(f"manifest.json is damaged (metrics_digest: {reason}") and told.endswith(NOT_CONTINUED)


def test_a_manifest_of_other_keys_or_of_another_format_is_refused(tmp_path):
    assert "(size: extra inputs are not permitted)" in refused(parse_manifest, tmp_path, MANIFEST | {"size": 3})
    assert "(metrics_bytes: is missing)" in refused(
        parse_manifest, tmp_path, {k: v for k, v in MANIFEST.items() if k != "metrics_bytes"}
    )
    assert refused(parse_manifest, tmp_path, MANIFEST | {"format": "\x1b[31m"}) == (
        "manifest.json has format '\\x1b[31m', which is not ours, 2"
    )


ROW_FAULTS = [
    ({"rounds": 1}, "elapsed_seconds: is missing"),
    (whole_files.row(1, train_loss="high"), "train_loss: input should be a valid number"),
    (whole_files.row(1, losses=[1, 2]), "losses: input should be a valid dictionary"),
    (whole_files.row(1, losses={"zwei": 1.0}), "losses.zwei.[key]: string should match pattern"),
    (whole_files.row(1, failed={"2": 3}), "failed.2: input should be a valid string"),
    (whole_files.row(1, bytes_up=True), "bytes_up: input should be a valid integer"),
    (whole_files.row(1, surge=["x"]), "surge: input should be a valid string"),
    (whole_files.row(1, loss=1.0), "accuracy: is missing"),
    (whole_files.row(1, elapsed_seconds=10**400), "elapsed_seconds: input should be a valid number"),
    (whole_files.row(7), "it says that it is after 7 rounds, and its place is after 1"),
    ([1, 2], "it is no JSON object but a list"),
]


@pytest.mark.parametrize("row, reason", ROW_FAULTS)
def test_a_row_of_other_keys_or_types_is_named_by_its_line(tmp_path, row, reason):
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in (whole_files.first_row(), row))
    assert refused(parse_rows, tmp_path, lines).startswith(f"metrics.jsonl line 2 is damaged ({reason}")


LINE_FAULTS = [
    (b"[" * 100_000, "nested too deeply"),
    (b'{"rounds": ' + b"9" * 5000 + b"}", "an integer in it has too many digits"),
    (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    (b'{"rounds": NaN}', "rounds: input should be a valid integer"),
    (b'{"half', "not JSON: Unterminated string starting at: line 1 column 2 (char 1)"),
    (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
]


@pytest.mark.parametrize("line, reason", LINE_FAULTS)
def test_a_line_that_is_no_json_is_named(tmp_path, line, reason):
    lines = json.dumps(whole_files.first_row()).encode() + b"\n" + line + b"\n"
    assert refused(parse_rows, tmp_path, lines) == f"metrics.jsonl line 2 is damaged ({reason}){NOT_CONTINUED}"


def test_rows_that_are_whole_are_read_with_keys_that_are_not_known(tmp_path):
    rows = [whole_files.first_row(), whole_files.row(1, **whole_files.SCORES), whole_files.row(2, later="seedtune")]
    assert parse_rows(tmp_path, b"".join(json.dumps(row).encode() + b"\n" for row in rows)) == rows


@pytest.mark.parametrize("summary, reason", [
    ([], "it is no JSON object but a list"), ({}, "method: is missing"),
    (whole_files.summary(loss="low"), "loss: input should be a valid number"),
    (whole_files.summary(stopped_by="rain"), "stopped_by: input should be 'patience', 'surge', 'privacy' or"),
    (whole_files.summary(replay={"num_directions": 1}), "replay.num_values: is missing"),
    (whole_files.summary(surges={"2": None}), "surges.2: input should be a valid string"),
])  # fmt: skip
def test_a_summary_of_other_keys_or_types_is_refused(tmp_path, summary, reason):
    told = refused(parse_summary, tmp_path, summary)
    assert told.startswith(f"summary.json is damaged ({reason}")
    assert told.endswith(f"): delete it and 'seedtune resume {tmp_path}'")


def test_a_folder_where_a_file_belongs_is_named(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(RunStoreError) as error:
        summary_of(tmp_path)
    assert str(error.value) == f"run {tmp_path}: summary.json cannot be read: Is a directory: take a fresh copy"
    (tmp_path / "recipe.json").mkdir()
    with pytest.raises(RunStoreError, match="holds no run"):
        recipe_of(tmp_path)


def test_a_folder_whose_name_is_none_is_said(tmp_path):
    with pytest.raises(RunStoreError, match="cannot be read: File name too long"):
        is_run(tmp_path / ("x" * 5000))


def test_a_flipped_header_of_a_snapshot_is_named(tmp_path):
    (tmp_path / "snapshots").mkdir()
    path = tmp_path / "snapshots" / "round-00000001.safetensors"
    for header in (b'{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b'{"w":3}', b"[" * 50_000, b"\xff"):
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(RunStoreError, match=r"snapshot round-00000001.safetensors is damaged \(.*: take a fresh"):
            snapshot_of(tmp_path, 1)


def test_a_run_that_has_ended_without_a_manifest_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    assert metrics_of(tmp_path) == []
    (tmp_path / "summary.json").write_text(json.dumps(whole_files.summary()))
    with pytest.raises(RunStoreError) as error:
        metrics_of(tmp_path)
    assert str(error.value) == f"run {tmp_path}: has ended, and its manifest.json is missing: take a fresh copy"


def test_a_manifest_that_counts_other_rounds_than_the_files_hold_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    lines = "".join(json.dumps(row) + "\n" for row in (whole_files.first_row(), whole_files.row(1)))
    (tmp_path / "metrics.jsonl").write_text(lines)
    counts = {"metrics_bytes": len(lines), "metrics_digest": whole_files.chain(lines.encode())}
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | counts))
    with pytest.raises(RunStoreError) as error:
        metrics_of(tmp_path)
    assert str(error.value) == (
        f"run {tmp_path}: metrics.jsonl holds 1 rounds where manifest.json says 2: one of them was replaced, and the "
        "run cannot be continued"
    )
