"""Rows of a spreadsheet, sheet after sheet."""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from typing import Any, BinaryIO

from lora_studio.data.examples import Record
from lora_studio.data.reading.delimited import check_columns
from lora_studio.data.reading.packages import MOST_UNPACKED_BYTES, check_package, translated
from lora_studio.data.reading.rows import Position, tidy
from lora_studio.errors import DatasetError

SIGNIFICANT_DIGITS = 15
"""What spreadsheet programs show of a number, and no more."""
LARGEST_EXACT = 10**SIGNIFICANT_DIGITS
ROWS_AT_ONCE = 100
LOOKED_BEYOND = 16
"""So many columns to the right of the header are looked at for cells that have no name."""


def read_xlsx(raw: BinaryIO, *, file: str, position: Position) -> Iterator[Record]:
    """Yield the rows under the header of every sheet; blank rows are left out but counted.

    The header is the first row that is not blank; a sheet without rows below is left out. Numbers
    that are whole become int, dates and times ISO text, empty cells None. Formulas give the value
    that was computed when the file was saved.

    Args:
        raw: The file.
        file: Its name; where several sheets have rows, a row's file is "book.xlsx/Sheet".
        position: Told how far it was read, by the sizes that the file states of its sheets.

    Raises:
        DatasetError: If it is broken, locked or too large, has no rows, a column name twice, a
            cell under no name, or a formula that was never computed.
    """
    check_package(raw, file=file, most_markup=MOST_UNPACKED_BYTES)
    with ExitStack() as until:
        with _quietly(file):
            book = until.enter_context(closing(_book(raw, values=True)))
            rows = {sheet.title: sheet.max_row or 0 for sheet in book.worksheets}
        filled = [title for title in rows if _has_rows(book, title, file)]
        if not filled:
            raise DatasetError("data.header_only", file=file)
        position.begin(sum(rows[title] for title in filled))
        for title in filled:
            name = f"{file}/{title}" if len(filled) > 1 else file
            before = position.done
            for record in _records(book, _Formulas(raw, title, name), title, name):
                position.done = before + record.number
                yield record


class _Formulas:
    """Finds formulas, reading a sheet once more, but only where a cell is empty.

    A computed formula that gives nothing is saved as an empty text, and never comes here.
    """

    def __init__(self, raw: BinaryIO, title: str, file: str) -> None:
        self._raw = raw
        self._title = title
        self._file = file
        self._rows: Iterator[Sequence[Any]] | None = None
        self._next = 1

    def check(self, number: int, cells: Sequence[Any]) -> None:
        """Refuse a row with a formula that has no value; row numbers must rise from call to call.

        Raises:
            DatasetError: Naming its cell.
        """
        empty = [cell.column for cell in cells if _is_empty_but_there(cell)]
        if not empty:
            return
        with _quietly(self._file):
            if self._rows is None:
                book = _book(self._raw, values=False)
                self._rows = iter(_sheet(book, self._title).iter_rows())
            row = next(islice(self._rows, number - self._next, None), ())
        self._next = number + 1
        for cell in row:
            if cell.data_type == "f" and cell.column in empty:
                raise DatasetError(
                    "data.formula_not_computed", file=self._file, cell=cell.coordinate
                )


def _records(book: Any, formulas: _Formulas, title: str, file: str) -> Iterator[Record]:
    rows = _rows(book, title, file)
    header_row, header = next((number, cells) for number, cells in rows if _is_filled(cells))
    columns = _columns(header, file=file)
    for number, cells in _rows(book, title, file, last_column=len(columns) + LOOKED_BEYOND):
        if number <= header_row:
            continue
        formulas.check(number, cells)
        values = [_value(cell) for cell in cells]
        for cell, value in zip(cells[len(columns) :], values[len(columns) :], strict=True):
            if value is not None:
                raise DatasetError(
                    "data.unnamed_cell", file=file, cell=cell.coordinate, row=header_row
                )
        if any(value is not None for value in values):
            padded = values + [None] * (len(columns) - len(values))
            yield Record(file, number, *tidy(dict(zip(columns, padded, strict=False))))


def _has_rows(book: Any, title: str, file: str) -> bool:
    filled = (number for number, cells in _rows(book, title, file) if _is_filled(cells))
    return len(list(islice(filled, 2))) == 2  # the header and one more


def _columns(header: Sequence[Any], *, file: str) -> list[str]:
    values = [_value(cell) for cell in header]
    while values and values[-1] is None:
        values.pop()
    names = ("" if value is None else str(value).strip() for value in values)
    columns = [name or f"column {at}" for at, name in enumerate(names, start=1)]
    check_columns(columns, file=file)
    return columns


def _book(raw: BinaryIO, *, values: bool) -> Any:
    import openpyxl

    return openpyxl.load_workbook(raw, read_only=True, data_only=values, keep_links=False)


def _sheet(book: Any, title: str) -> Any:
    """Return a sheet that is read as far as it goes, whatever the file says of its size."""
    sheet = book[title]
    sheet.reset_dimensions()
    return sheet


def _rows(
    book: Any, title: str, file: str, *, last_column: int | None = None
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield each row's number and cells."""
    with _quietly(file):
        rows = enumerate(_sheet(book, title).iter_rows(max_col=last_column), start=1)
    while True:
        with _quietly(file):
            block = list(islice(rows, ROWS_AT_ONCE))
        if not block:
            return
        yield from block


@contextmanager
def _quietly(file: str) -> Iterator[None]:
    """Drop the library's warnings, of styles and charts that it leaves out, and translate errors.

    Never held over a yield to the caller, whose warnings are its own.
    """
    with warnings.catch_warnings(), translated(file):
        warnings.simplefilter("ignore")
        yield


def _is_empty_but_there(cell: Any) -> bool:
    """Tell whether a cell is in the file without a value: with a style only, or a formula."""
    return cell.value is None and cell.data_type == "n" and hasattr(cell, "coordinate")


def _is_filled(cells: Sequence[Any]) -> bool:
    return any(_value(cell) is not None for cell in cells)


def _value(cell: Any) -> Any:
    """Return what a person sees in a cell; None for nothing and for errors such as #N/A."""
    value = cell.value
    if value is None or cell.data_type == "e":
        return None
    if isinstance(value, str):
        from openpyxl.utils.escape import unescape

        text = unescape(value) if "_x" in value else value
        return text.replace("\r\n", "\n").replace("\r", "\n") if text.strip() else None
    if isinstance(value, float):
        shown = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        return int(shown) if shown.is_integer() and abs(shown) < LARGEST_EXACT else shown
    if isinstance(value, dt.datetime):
        is_day = value.time() == dt.time()
        return value.date().isoformat() if is_day else value.isoformat(sep=" ")
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    return value if isinstance(value, (bool, int)) else str(value)
