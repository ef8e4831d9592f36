"""CSV and TSV into records, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain

from lora_studio.data.examples import Record
from lora_studio.data.reading.rows import Unreadable, tidy
from lora_studio.data.reading.texts import LONGEST_LINE, Text
from lora_studio.errors import DatasetError

DELIMITERS = ",;\t"


class _Feed:
    """Lines for the csv module, which takes all that follows an open quotation mark for one row."""

    def __init__(self, lines: Iterator[str], *, file: str) -> None:
        self.row = 0
        self.pending = 0
        """Characters since the last row."""
        self._lines = lines
        self._file = file

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.pending += len(line)
            if self.pending > LONGEST_LINE:
                raise DatasetError("data.broken_csv", file=self._file, row=self.row + 1)
            yield line + "\n"


def read_delimited(text: Text, *, delimiter: str | None = None) -> Iterator[Record | Unreadable]:
    """Yield the rows under the header; blank rows are left out but counted in the numbers.

    Rows are numbered as in a spreadsheet. One of another width than the header is unreadable,
    where what it has too much of is not empty.

    Args:
        text: The file.
        delimiter: What stands between cells; None finds out from the header.

    Raises:
        DatasetError: For an open quotation mark, a column name that stands twice, or no row.
    """
    file = text.file
    rows = _rows(text, delimiter)
    columns = _header(rows, file=file)
    width = len(columns)
    is_empty = True
    for number, cells in rows:
        if not any(map(str.strip, cells)):
            continue
        is_empty = False
        if len(cells) != width and (len(cells) < width or any(map(str.strip, cells[width:]))):
            yield Unreadable(file, number, _ragged(file, number, expected=width, cells=cells))
            continue
        row = dict(zip(columns, cells, strict=False))
        if text.has_nul:
            yield Record(file, number, *tidy(row))
        else:
            yield Record(file, number, row)
    if is_empty:
        raise DatasetError("data.header_only", file=file)


def check_columns(columns: Sequence[str], *, file: str) -> None:
    """Refuse a column name that stands twice.

    Raises:
        DatasetError: Naming it.
    """
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise DatasetError("data.duplicate_column", file=file, column=name)
        seen.add(name)


def _header(rows: Iterator[tuple[int, list[str]]], *, file: str) -> list[str]:
    """Return the names in the first row that is not blank."""
    header = next((cells for _, cells in rows if any(map(str.strip, cells))), [])
    names = (cell.replace("\0", "").strip() for cell in header)
    columns = [name or f"column {at}" for at, name in enumerate(names, start=1)]
    check_columns(columns, file=file)
    return columns


def _rows(text: Text, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with its number in a spreadsheet."""
    # Python's csv stops at 131,072 characters in a cell; a chapter of a book is longer.
    csv.field_size_limit(LONGEST_LINE)
    lines = text.lines()
    before: list[str] = []
    for line in lines:
        before.append(line)
        if line:
            break
    feed = _Feed(chain(before, lines), file=text.file)
    reader = csv.reader(feed, delimiter=delimiter or _delimiter(before[-1:]), strict=True)
    try:
        for cells in reader:
            feed.row += 1
            feed.pending = 0
            yield feed.row, cells
    except csv.Error as error:
        raise DatasetError("data.broken_csv", file=text.file, row=feed.row + 1) from error


def _delimiter(header: list[str]) -> str:
    """Return the delimiter that cuts the header into the most columns; a comma in doubt."""

    def columns(delimiter: str) -> int:
        return len(next(csv.reader(header, delimiter=delimiter), []))

    return max(DELIMITERS, key=columns)


def _ragged(file: str, number: int, *, expected: int, cells: Sequence[str]) -> DatasetError:
    return DatasetError(
        "data.ragged_row", file=file, row=number, expected=expected, found=len(cells)
    )
