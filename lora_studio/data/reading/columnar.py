"""Parquet and Arrow files into records, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_studio.data.examples import Record
from lora_studio.data.reading import class_names
from lora_studio.data.reading.delimited import check_columns
from lora_studio.data.reading.rows import Position, tidy
from lora_studio.errors import DatasetError

BATCH_ROWS = 1024


def read_columnar(raw: Any, kind: str, *, file: str, position: Position) -> Iterator[Record]:
    """Yield the rows of a Parquet file, or of an Arrow file or stream; Feather files are such.

    Args:
        raw: The open file, binary and seekable.
        kind: `.parquet`, or any other of `locations.COLUMNAR`.
        file: Its name, for the errors.
        position: Told how far it was read.

    Raises:
        DatasetError: If it is of another kind, or has no rows.
    """
    import pyarrow as pa

    is_parquet = kind == ".parquet"
    source = (_parquet_batches if is_parquet else _arrow_batches)(raw, file, position)
    number = 0
    # Beside Arrow's own: dates outside Python's range, time zones nobody knows, text that is none.
    broken = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError)
    while True:
        try:
            batch = next(source, None)
            rows = None if batch is None else _rows(batch)
        except (*broken, MemoryError, RecursionError, NotImplementedError) as error:
            key = "data.broken_parquet" if is_parquet else "data.broken_arrow"
            raise DatasetError(key, file=file) from error
        if rows is None:
            break
        for row, oddities in rows:
            number += 1
            yield Record(file, number, row, oddities)
    if not number:
        raise DatasetError("data.header_only", file=file)


def _rows(batch: Any) -> list[tuple[Any, tuple[str, ...]]]:
    names = class_names.of_schema(batch.schema.metadata)
    rows = batch.to_pylist()
    return [tidy(class_names.named(row, names) if names else row) for row in rows]


def _parquet_batches(raw: Any, file: str, position: Position) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(raw) as table:
        check_columns(table.schema_arrow.names, file=file)
        position.begin(table.metadata.num_rows)
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            yield batch
            position.done += batch.num_rows


def _arrow_batches(raw: Any, file: str, position: Position) -> Iterator[Any]:
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(raw)
    except pa.ArrowInvalid:  # `datasets` writes streams, which have no index at their end
        position.begin(raw.seek(0, 2))
        raw.seek(0)
        table = pa.ipc.open_stream(raw)
        batches = iter(table)
        is_stream = True
    else:
        batches = (table.get_batch(at) for at in range(table.num_record_batches))
        position.begin(table.num_record_batches)
        is_stream = False
    check_columns(table.schema.names, file=file)
    for number, batch in enumerate(batches, start=1):
        # Arrow reads where a file's offsets point, unless they are looked at before.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)
        position.done = raw.tell() if is_stream else number
