"""Text of one file."""

import gzip
import json
import sys

import pytest

from input_pipeline.batches import DataError, MissingLibrary
from input_pipeline.reading import read_column, read_utf8

ROWS = ["one, two", 'a "quote"', "naïve\nlines", "", "NA", "12", " space "]


def write(path, column="text"):
    if path.suffix == ".jsonl":
        rows = [json.dumps({"id": i, column: row}) for i, row in enumerate(ROWS)]
        path.write_text("\n".join(rows) + "\n\n")
    else:
        divider = "\t" if path.suffix == ".tsv" else ","
        quoted = ['"' + row.replace('"', '""') + '"' for row in ROWS]
        lines = [divider.join([str(i), row]) for i, row in enumerate(quoted)]
        path.write_text("\n".join([divider.join(["id", column]), *lines]) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_column_is_read_as_it_was_written(suffix, tmp_path):
    path = write(tmp_path / f"table{suffix}")
    assert read_column(path, "text") == "\n".join(ROWS)
    with pytest.raises(DataError, match=r'has no column "body": choose one of id, text'):
        read_column(path, "body")


def test_dates_and_numbers_in_text_stay_text(tmp_path):
    """Columns of such names would become dates."""
    path = tmp_path / "table.jsonl"
    path.write_text('{"date": "2020-01-02"}\n{"date": "0012"}\n')
    assert read_column(path, "date") == "2020-01-02\n0012"


@pytest.mark.parametrize("name", ["2020", "1.0", "1700000000", ""])
def test_names_of_columns_stay_text_too(name, tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text(json.dumps({name: "a", "other": "b"}))
    assert read_column(path, name) == "a"


@pytest.mark.parametrize(
    "name, contents, message",
    [
        ("a.jsonl", '{"text": "a"}\n{"text": null}', r'in column "text" of row 2 \((nan|None)\)'),
        ("a.jsonl", '{"text": "a"}\n{"other": "b"}', r'in column "text" of row 2 \(nan\)'),
        ("a.jsonl", '{"text": 5}', r'in column "text" of row 1 \(5\): leave the row out'),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": "b"',
            r"a\.jsonl is no table \(line 3: Expecting ','",
        ),
        ("a.jsonl", '{"text": "a"}\nnull', r"a\.jsonl is no table \(line 2 is no object\): mend"),
        ("a.csv", "text,b\n1,2,3,4\n1,2,3,4,5,6", r"a\.csv is no table \("),
        ("a.csv", "text\nwell,well\nso,so", r"a\.csv has more fields in a row than columns: quote"),
        ("a.csv", "", r"a\.csv is no table \(No columns"),
        ("a.txt", "text", r"a\.txt is no table: name a file \.csv, \.tsv, \.jsonl, or no column"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(name, contents, message, tmp_path):
    path = tmp_path / name
    path.write_text(contents)
    with pytest.raises(DataError, match=message) as error:
        read_column(path, "text")
    assert "\n" not in str(error.value)


def test_utf_8(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffnaïve\r\n".encode())
    assert read_utf8(path) == "naïve\r\n"
    path.write_bytes(b"text,id\n" + 1000 * b"a" + b"\xff")
    for read in (read_utf8, lambda path: read_column(path.rename(tmp_path / "a.csv"), "text")):
        with pytest.raises(DataError, match=r"is not UTF-8 at byte 1,008 \(0xff\)"):
            read(path)


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ("é".encode("utf-16"), "0 (0xff): convert it by iconv -f utf-16 -t utf-8"),
        (b"\xfe\xff\0a", "0 (0xfe): convert it by iconv -f utf-16 -t utf-8"),
        (gzip.compress(b"a"), "1 (0x8b): unpack it by gunzip"),
        (b"\xe9a", "0 (0xe9): convert it, for example by iconv -f latin1 -t utf-8"),
    ],
)
def test_what_says_what_it_is(data, remedy, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read_utf8(path)
    assert str(error.value) == f"{path} is not UTF-8 at byte {remedy}"


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingLibrary, match="pip install pandas"):
        read_column(write(tmp_path / "table.csv"), "text")
