"""Text of one file: plain, or a column of a table."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any

from input_pipeline.batches import DataError, MissingLibrary
from input_pipeline.retrying import read_bytes

TABLES = (".csv", ".tsv", ".jsonl")
OTHERS = {
    b"\xff\xfe": "convert it by iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "convert it by iconv -f utf-16 -t utf-8",
    b"\x1f\x8b": "unpack it by gunzip",
}
"""Beginnings of files that say what they are -> what to do."""


def read_utf8(path: pathlib.Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
      DataError: if it cannot be read, or is not UTF-8.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from None
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        known = [remedy for start, remedy in OTHERS.items() if data.startswith(start)]
        remedy = known[0] if known else "convert it, for example by iconv -f latin1 -t utf-8"
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start:,} (0x{data[error.start]:02x}): {remedy}"
        ) from None


def read_column(path: pathlib.Path, column: str) -> str:
    """The rows of a column of a table, a new line between two.

    Args:
      path: of a table with a header, divided by commas (`.csv`) or tabs (`.tsv`), or of a JSON object a line (`.jsonl`).
      column: its name.

    Raises:
      DataError: if it cannot be read, is no such table, has no such column, or a row has no text there.
      MissingLibrary: if pandas is not installed.
    """
    if path.suffix not in TABLES:
        raise DataError(f"{path} is no table: name a file {', '.join(TABLES)}, or no column")
    text, pandas = read_utf8(path), _pandas()
    try:
        if path.suffix == ".jsonl":
            table = pandas.read_json(
                io.StringIO(text), lines=True, dtype=False, convert_axes=False, convert_dates=False
            )
        else:
            divider = "\t" if path.suffix == ".tsv" else ","
            table = pandas.read_csv(
                io.StringIO(text), sep=divider, dtype=str, keep_default_na=False
            )
    except (TypeError, ValueError) as error:  # Of which pandas' own are.
        said = _first_broken_line(text) if path.suffix == ".jsonl" else None
        said = said or " ".join(str(error).split())
        raise DataError(f"{path} is no table ({said}): mend it") from None
    if not isinstance(table.index, pandas.RangeIndex):  # It takes what is too much for one.
        raise DataError(f"{path} has more fields in a row than columns: quote texts with commas")
    if column not in table.columns:
        known = ", ".join(map(str, table.columns))
        raise DataError(f'{path} has no column "{column}": choose one of {known}')
    rows = table[column].tolist()
    for number, row in enumerate(rows):
        if not isinstance(row, str):
            raise DataError(
                f'{path} has no text in column "{column}" of row {number + 1} ({row!r}): leave the row out'
            )
    return "\n".join(rows)


def _first_broken_line(text: str) -> str | None:
    """Which line is no JSON object, since pandas does not say; None if each is one, or empty."""
    for number, line in enumerate(text.split("\n")):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number + 1} is no object"
        except ValueError as error:
            return f"line {number + 1}: {error}"
    return None


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise MissingLibrary(
            "columns of tables need the library pandas, which is not installed: pip install pandas"
        ) from None
    return pandas
