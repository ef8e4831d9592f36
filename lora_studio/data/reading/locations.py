"""Where the files are: paths and folders into single files, each with a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.data.reading.streams import MOST_ENTRIES, printable, unreadable
from lora_studio.errors import DatasetError

TEXTS = (".txt", ".md", ".rst")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
COLUMNAR = (".parquet", ".arrow", ".feather")
SPREADSHEETS = (".xlsx",)
DOCUMENTS = (".html", ".htm", ".pdf", ".docx", ".pptx", ".epub")
GZIP = ".gz"
ZIP = ".zip"
SINGLE = (*TEXTS, *TABLES, *COLUMNAR, *SPREADSHEETS, *DOCUMENTS)
KNOWN = (*SINGLE, *(kind + GZIP for kind in SINGLE), ZIP)
"""All endings of files that can be read."""
# Programs that pack for macOS add a folder of what Finder knows.
HIDDEN = (".", "__MACOSX")


@dataclass(frozen=True, slots=True)
class Location:
    """One file of the disk."""

    path: Path
    name: str
    """As the person knows it."""


def locate(paths: Sequence[Path]) -> list[Location]:
    """Return the files, those of folders sorted by their place in it.

    A name is the file's own; with its folder where two share it, or else its whole path.

    Args:
        paths: Files, and folders, whose unknown and hidden files are left out.

    Raises:
        DatasetError: If there are no paths, or a folder has no file that can be read.
    """
    if not paths:
        raise DatasetError("data.no_files")
    found = [item for path in paths for item in _within(path)]
    names = [short for _, short, _ in found]
    longer = [long for _, _, long in found]
    seen, seen_longer = Counter(names), Counter(longer)
    return [
        Location(path, name if seen[name] == 1 else long if seen_longer[long] == 1 else full)
        for path, name, long in found
        for full in (printable(str(path)),)
    ]


def kind_of(name: str) -> tuple[str, bool]:
    """Return a file's ending without `.gz`, and whether it had that."""
    lower = name.lower()
    is_packed = lower.endswith(GZIP)
    return os.path.splitext(lower.removesuffix(GZIP))[1], is_packed  # noqa: PTH122


def is_known(name: str) -> bool:
    """Tell whether a file's ending is one of `KNOWN`."""
    kind, is_packed = kind_of(name)
    return kind in SINGLE or (kind == ZIP and not is_packed)


def is_hidden(name: str) -> bool:
    """Tell whether a file, or a folder it lies in, is not meant to be seen."""
    return any(part.startswith(HIDDEN) for part in name.split("/"))


def known_kinds() -> str:
    """Return the endings for a sentence; every one of them may also be `.gz`."""
    return ", ".join((*SINGLE, GZIP, ZIP))


def _within(path: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield each file with its short and its longer name."""
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise unreadable(error, file=printable(str(path))) from error
    if not is_folder:
        yield path, printable(path.name), printable(f"{path.parent.name}/{path.name}")
        return
    home = path.resolve()
    for inside in _walked(path):
        short = printable(f"{home.name}/{inside}")
        yield path / inside, short, printable(f"{home.parent.name}/{home.name}/{inside}")


def _walked(folder: Path) -> list[str]:
    """Return the known files of a folder by their paths in it, sorted."""
    found: list[str] = []
    name = printable(str(folder))

    def refuse(error: OSError) -> None:
        raise unreadable(error, file=name) from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [inside for inside in folders if not is_hidden(inside)]
        inner = Path(place).relative_to(folder)
        found += [
            (inner / file).as_posix()
            for file in files
            if is_known(file) and not is_hidden(file) and (Path(place) / file).is_file()
        ]
        if len(found) > MOST_ENTRIES:
            raise DatasetError("data.too_many_files", file=name, limit=MOST_ENTRIES)
    if not found:
        raise DatasetError("data.nothing_known", file=name, known=known_kinds())
    return sorted(found)
