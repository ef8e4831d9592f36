"""Text of a CSV or JSON file, or a Parquet file, into numbered rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_studio.errors import DatasetError

Row = tuple[int, dict[str, Any]]
"""A row's number as the person sees it, and its cells by column."""

DELIMITERS = ",;\t"
# Python's csv stops at 131,072 characters in a cell; a chapter of a book is longer.
LONGEST_CELL = 2**31 - 1


def read_csv(text: str, *, file: str, delimiter: str | None = None) -> list[Row]:
    """Return the rows under the header; blank rows are left out but counted in the numbers.

    Args:
        text: The file's text.
        file: Its name, for the errors.
        delimiter: What stands between cells; None finds out from the header.

    Raises:
        DatasetError: For an open quote, a row of another width than the header, a column name
            that stands twice, or no row at all.
    """
    csv.field_size_limit(LONGEST_CELL)
    lines = _csv_lines(text, file=file, delimiter=delimiter or _delimiter(text))
    filled = ((number, cells) for number, cells in lines if any(map(str.strip, cells)))
    _, header = next(filled)
    columns = [cell.strip() or f"column {at}" for at, cell in enumerate(header, start=1)]
    _check_columns(columns, file=file)
    rows = []
    for number, cells in filled:
        if len(cells) < len(columns) or any(map(str.strip, cells[len(columns) :])):
            raise DatasetError(
                "data.ragged_row", file=file, row=number, expected=len(columns), found=len(cells)
            )
        rows.append((number, dict(zip(columns, cells, strict=False))))
    return _some(rows, file=file)


def read_json(text: str, *, file: str) -> list[Row]:
    """Return the objects of a list, of the one list inside an object, or of JSON lines.

    Raises:
        DatasetError: For broken JSON, naming its line, or where no rows are found.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return read_json_lines(text, file=file)
        raise DatasetError("data.broken_json", file=file, line=error.lineno) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all reason
        raise DatasetError("data.broken_json", file=file, line=1) from error
    rows = _rows_within(content) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DatasetError("data.no_rows", file=file)
    return _some([(at, _object(row, file, at)) for at, row in enumerate(rows, 1)], file=file)


def read_json_lines(text: str, *, file: str) -> list[Row]:
    """Return one object per line; blank lines are left out.

    Raises:
        DatasetError: For a line that is not a JSON object, naming it.
    """
    if text.lstrip().startswith("["):
        return read_json(text, file=file)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError("data.broken_json", file=file, line=number) from error
        rows.append((number, _object(row, file, number)))
    return rows


def read_parquet(path: Path, *, file: str) -> list[Row]:
    """Return the rows of a Parquet file.

    Raises:
        DatasetError: If it is not one, or has no rows.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        _check_columns(table.column_names, file=file)
        return _some(list(enumerate(table.to_pylist(), start=1)), file=file)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError("data.broken_parquet", file=file) from error


def _csv_lines(text: str, *, file: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with its number in a spreadsheet."""
    number = 0
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    try:
        for number, cells in enumerate(reader, start=1):
            yield number, cells
    except csv.Error as error:
        raise DatasetError("data.broken_csv", file=file, row=number + 1) from error


def _delimiter(text: str) -> str:
    """Return the delimiter that cuts the header into the most columns; a comma in doubt."""
    header = text.lstrip("\n").splitlines()[:1]

    def columns(delimiter: str) -> int:
        return len(next(csv.reader(header, delimiter=delimiter), []))

    return max(DELIMITERS, key=columns)


def _check_columns(columns: Sequence[str], *, file: str) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise DatasetError("data.duplicate_column", file=file, column=name)


def _rows_within(content: dict[str, Any]) -> list[Any] | None:
    """Return the one list of objects inside; an object that is itself a conversation is one row."""
    lists = [
        value
        for value in content.values()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if len(lists) != 1:
        return [content] if not lists else None
    turn = lists[0][0]
    is_conversation = {"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()
    return [content] if is_conversation else lists[0]


def _object(row: Any, file: str, number: int) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise DatasetError("data.row_not_object", file=file, row=number)


def _some(rows: list[Row], *, file: str) -> list[Row]:
    if rows:
        return rows
    raise DatasetError("data.header_only", file=file)
