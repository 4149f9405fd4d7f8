"""Tables as people have them: quoted as pandas quotes, parted by other marks, with header lines that mislead."""

import csv

import pandas
import pytest

from seedtune.data.files import read_rows
from seedtune.errors import DataError

CELLS = ['a "quoted" word', "two\nlines", "tab\there", '"all of it"', "plain", 'ends with "', "a, b; c|d", " blanks "]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ","), ("b.csv", ";"), ("c.csv", "|")])
def test_what_pandas_writes_is_read_as_pandas_reads_it(tmp_path, name, separator, quoting):
    frame = pandas.DataFrame({"text": CELLS, "label": range(len(CELLS))})
    frame.to_csv(tmp_path / name, sep=separator, index=False, quoting=quoting)
    again = pandas.read_csv(tmp_path / name, sep=separator, dtype=str)
    assert read_rows(tmp_path / name) == again.to_dict("records")


def test_excels_byte_order_mark_and_line_ends_are_taken_off(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext;label\r\nfine, really;1\r\n")
    assert read_rows(tmp_path / "a.csv") == [{"text": "fine, really", "label": "1"}]


@pytest.mark.parametrize(
    "line",
    ['"quoted" start\t1', '"never closed\t0', 'last " one\t0', '"one line\t1\nand another"\t0'],
)
def test_quotation_marks_of_glue_are_text(tmp_path, line):
    """The last of them could be one cell of two lines, but each of its lines is a row by itself."""
    (tmp_path / "a.tsv").write_text(f"sentence\tlabel\n{line}\n")
    rows = [dict(zip(("sentence", "label"), each.split("\t"), strict=True)) for each in line.split("\n")]
    assert read_rows(tmp_path / "a.tsv") == rows


def test_a_cell_may_be_as_long_as_it_likes(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"text,label\n{'x' * 200_000},1\n")
    assert len(read_rows(tmp_path / "a.csv")[0]["text"]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_column_that_is_there_twice_is_named(tmp_path, name):
    (tmp_path / name).write_text("label,text,label\n1,x,0\n".replace(",", "\t" if name == "a.tsv" else ","))
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name}: its first line names the column 'label' twice: rename or remove one of them"
    )


def test_pandas_index_column_without_a_name_is_no_fault(tmp_path):
    (tmp_path / "a.csv").write_text(",text,\n0,x,1\n")
    assert read_rows(tmp_path / "a.csv")[0]["text"] == "x"


def test_a_single_column_stays_one(tmp_path):
    (tmp_path / "a.csv").write_text("text\nso; it goes\n")
    assert read_rows(tmp_path / "a.csv") == [{"text": "so; it goes"}]
