"""Parquet and Arrow files into records, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lora_studio.data.examples import Record
from lora_studio.data.reading.delimited import check_columns
from lora_studio.data.reading.rows import tidy
from lora_studio.errors import DatasetError

BATCH_ROWS = 1024


def read_parquet(raw: Any, *, file: str) -> Iterator[Record]:
    """Yield the rows of a Parquet file.

    Args:
        raw: The open file, binary and seekable.
        file: Its name, for the errors.

    Raises:
        DatasetError: If it is not one, or has no rows.
    """
    return _records(raw, _parquet_batches, file=file, key="data.broken_parquet")


def read_arrow(raw: Any, *, file: str) -> Iterator[Record]:
    """Yield the rows of an Arrow file or stream; Feather files are Arrow files.

    Args:
        raw: The open file, binary and seekable.
        file: Its name, for the errors.

    Raises:
        DatasetError: If it is not one, or has no rows.
    """
    return _records(raw, _arrow_batches, file=file, key="data.broken_arrow")


def _records(
    raw: Any, batches: Callable[[Any, str], Iterator[Any]], *, file: str, key: str
) -> Iterator[Record]:
    import pyarrow as pa

    number = 0
    # Beside Arrow's own: dates outside Python's range, time zones nobody knows, text that is none.
    broken = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError)
    source = batches(raw, file)
    while True:
        try:
            batch = next(source, None)
            rows = None if batch is None else [tidy(row) for row in batch.to_pylist()]
        except (*broken, MemoryError, RecursionError, NotImplementedError) as error:
            raise DatasetError(key, file=file) from error
        if rows is None:
            break
        for row, oddities in rows:
            number += 1
            yield Record(file, number, row, oddities)
    if not number:
        raise DatasetError("data.header_only", file=file)


def _parquet_batches(raw: Any, file: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(raw) as table:
        check_columns(table.schema_arrow.names, file=file)
        yield from table.iter_batches(batch_size=BATCH_ROWS)


def _arrow_batches(raw: Any, file: str) -> Iterator[Any]:
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(raw)
    except pa.ArrowInvalid:  # `datasets` writes streams, which have no index at their end
        raw.seek(0)
        table = pa.ipc.open_stream(raw)
        batches = iter(table)
    else:
        batches = (table.get_batch(at) for at in range(table.num_record_batches))
    check_columns(table.schema.names, file=file)
    for batch in batches:
        # Arrow reads where a file's offsets point, unless they are looked at before.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)
