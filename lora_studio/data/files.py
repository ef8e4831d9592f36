"""Files into records. It knows kinds of files, not what a row means."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lora_studio.data import tables
from lora_studio.data.decoding import decode
from lora_studio.data.examples import Record
from lora_studio.errors import DatasetError

DOCUMENTS = (".txt", ".md")
TABLES: dict[str, Callable[..., list[tables.Row]]] = {
    ".csv": tables.read_csv,
    ".tsv": partial(tables.read_csv, delimiter="\t"),
    ".json": tables.read_json,
    ".jsonl": tables.read_json_lines,
}
PARQUET = ".parquet"
KNOWN = (*DOCUMENTS, *TABLES, PARQUET)


def read(paths: Sequence[Path]) -> list[Record]:
    """Return every row of every table and every document, in order.

    Args:
        paths: Files; their extensions say how they are read (`KNOWN`).

    Raises:
        DatasetError: If there are no files, or one cannot be read; it names the file and the row.
    """
    if not paths:
        raise DatasetError("data.no_files")
    return [record for path, name in _named(paths) for record in _records(path, name)]


def fingerprint(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' contents in their order, names left out.

    Raises:
        DatasetError: If a file is missing or cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(_bytes(path, path.name)).digest())
    return total.hexdigest()


def _named(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Name each file, with its folder where two share a name, or else by its path."""
    names = [path.name for path in paths]
    longer = [f"{path.parent.name}/{path.name}" for path in paths]
    seen, seen_longer = Counter(names), Counter(longer)
    return [
        (path, name if seen[name] == 1 else long if seen_longer[long] == 1 else str(path))
        for path, name, long in zip(paths, names, longer, strict=True)
    ]


def _records(path: Path, name: str) -> list[Record]:
    kind = path.suffix.lower()
    if kind not in KNOWN:
        raise DatasetError("data.unknown_kind", file=name, known=", ".join(KNOWN))
    raw = _bytes(path, name)
    if not raw:
        raise DatasetError("data.empty_file", file=name)
    if kind == PARQUET:
        rows = tables.read_parquet(path, file=name)
    elif kind in DOCUMENTS:
        return [Record(name, 1, decode(raw, file=name))]
    else:
        rows = TABLES[kind](decode(raw, file=name), file=name)
    return [Record(name, number, row) for number, row in rows]


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError("data.missing_file", file=str(path)) from error
    except IsADirectoryError as error:
        raise DatasetError("data.is_folder", file=name) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError("data.unreadable", file=name, reason=reason) from error
