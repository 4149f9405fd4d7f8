import json
from pathlib import Path

import pytest

from seedtune.data.files import check_texts, read_rows, split_files
from seedtune.errors import DataError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


ROWS = [{"text": 'say "no"\n\nthen go', "label": "1"}, {"text": "a, b", "label": "0"}]


def as_csv(path):
    return write(path, 'text,label\n"say ""no""\n\nthen go",1\n"a, b",0\n')


def as_json(path):
    return write(path, json.dumps(ROWS))


def as_wrapped_json(path):
    return write(path, json.dumps({"version": 1, "data": ROWS}))


def as_jsonl(path):
    return write(path, "\n".join(json.dumps(row | {"label": int(row["label"])}) for row in ROWS) + "\n\n")


def as_parquet(path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [row["text"] for row in ROWS], "label": [int(row["label"]) for row in ROWS]})
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.csv", as_csv),
        ("a.json", as_json),
        ("b.json", as_wrapped_json),
        ("a.jsonl", as_jsonl),
        ("a.parquet", as_parquet),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, make):
    assert read_rows(make(tmp_path / name)) == ROWS


def test_a_tsv_has_no_quoting(tmp_path):
    path = write(tmp_path / "dev.tsv", 'sentence\tlabel\n"quoted" start\t1\n\nlast " one\t0\n')
    assert read_rows(path) == [{"sentence": '"quoted" start', "label": "1"}, {"sentence": 'last " one', "label": "0"}]


def test_a_file_without_names_takes_the_given_ones(tmp_path):
    assert read_rows(write(tmp_path / "a.csv", '"3","x"\n'), ("class", "text")) == [{"class": "3", "text": "x"}]


def test_squads_own_file_gives_a_row_a_question(tmp_path):
    question = {"question": "Who?", "id": "1", "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann B"}]}
    articles = {"data": [{"title": "T", "paragraphs": [{"context": "Ann B came.", "qas": [question]}]}]}
    rows = read_rows(write(tmp_path / "dev.json", json.dumps(articles)))
    assert rows == [{"title": "T", "context": "Ann B came.", "question": "Who?", "answers": {"text": ["Ann", "Ann B"]}}]


BAD = [
    ("a.txt", "x", "cannot read .txt: give .csv, .tsv, .json, .jsonl, .parquet"),
    (
        "a.csv",
        "a,b\n1\n",
        "row 1 has 1 cells, but there are 2 columns (a, b): put cells that contain ',' into quotation marks",
    ),
    ("a.csv", 'a,b\n"1,2\n', "line 2 is not valid csv: unexpected end of data"),
    ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2 is not JSON: Expecting ':' delimiter: line 1 column 5 (char 4)"),
    ("a.jsonl", "[1]\n", "line 1 is a JSON list: each line must be an object"),
    ("a.json", "{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    (
        "a.json",
        '{"rows": []}',
        'must be a JSON list of objects, or an object with such a list under "data" (pandas: '
        "to_json(orient='records'))",
    ),
    (
        "a.json",
        '[{"paragraphs": [{"qas": []}, {"qas": [{}]}]}]',
        "looks like a SQuAD file, but 'context' is missing or of the wrong type",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_bad_contents_are_named(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        read_rows(path)
    assert str(error.value) == f"{path}: {message}"


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file or directory$"):
        read_rows(tmp_path / "none.csv")
    latin = tmp_path / "latin.csv"
    latin.write_bytes(b"a\n\xe9\n")
    with pytest.raises(DataError, match=r"latin\.csv: is not UTF-8 text: byte 2 is 0xe9; save it as UTF-8$"):
        read_rows(latin)
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be read as parquet: .*Parquet magic bytes not found"):
        read_rows(write(tmp_path / "bad.parquet", "not parquet at all"))


def names(splits) -> dict[str, list[str]]:
    return {split: [path.name for path in paths] for split, paths in splits.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ["train.tsv", "dev.tsv", "test.tsv"],
            {"train": ["train.tsv"], "validation": ["dev.tsv"], "test": ["test.tsv"]},
        ),
        (["train_part.tsv", "test.csv"], {"train": ["train_part.tsv"], "test": ["test.csv"]}),
        (["boolq-val.jsonl", "boolq-train.jsonl"], {"train": ["boolq-train.jsonl"], "validation": ["boolq-val.jsonl"]}),
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "README.json"],
            {"train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]},
        ),
        (["b.json", "a.json", "notes.md", "testimony.json"], {"all": ["a.json", "b.json", "testimony.json"]}),
    ],
)
def test_splits_are_told_by_the_names_of_files(tmp_path, files, expected):
    for file in files:
        write(tmp_path / file, "")
    assert names(split_files(tmp_path)) == expected


def test_a_single_file_is_not_split(tmp_path):
    path = write(tmp_path / "train.csv", "")
    assert split_files(path) == {"all": [path]}


def test_folders_that_cannot_be_split_are_named(tmp_path):
    with pytest.raises(DataError) as error:
        split_files(tmp_path / "none")
    assert str(error.value) == f"{tmp_path / 'none'}: no such file or folder; set task.path to the task's data"
    with pytest.raises(DataError) as error:
        split_files(tmp_path)
    assert str(error.value) == f"{tmp_path}: has no file that ends in .csv, .tsv, .json, .jsonl, .parquet"
    write(tmp_path / "train.csv", ""), write(tmp_path / "extra.csv", "")
    with pytest.raises(DataError) as error:
        split_files(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: extra.csv says neither train, validation nor test, as others there do: rename it or take it out"
    )


def test_columns_that_are_not_text_are_named():
    with pytest.raises(DataError, match=r"^row 3: has no column 'c', only a, b$"):
        check_texts({"a": "x", "b": [1]}, ["a", "c"], "row 3")
    with pytest.raises(DataError, match=r"^row 3: column 'b' is \[1\], expected a text or a number$"):
        check_texts({"a": "x", "b": [1]}, ["a", "b"], "row 3")
