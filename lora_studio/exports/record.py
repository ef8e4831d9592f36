"""Which adapter an export was made of: a name may stand for other weights tomorrow.

A folder keeps that in `export.json`; a zip has the weights themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from lora_studio.adapters.configuration import WEIGHTS
from lora_studio.exports.orders import Form
from lora_studio.library.names import Named

RECORD = "export.json"
ODD = re.compile(r"[^\w.-]+")
ENDINGS: dict[Form, tuple[str, str]] = {
    "zip": ("adapter", ".zip"),
    "merged": ("merged", ""),
    "gguf": ("gguf", ""),
    "ollama": ("ollama", ""),
}
"""What the names of exports end in, and their suffixes."""


def write_record(folder: Path, adapter: Named) -> None:
    """Note in an export of which weights it is."""
    said = {"adapter": adapter.name, "weights": adapter.weights()}
    (folder / RECORD).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")


def is_of(export: Path, weights: str) -> bool:
    """Say whether an export is there and of these weights (`library.names.Named.weights`)."""
    try:
        if export.is_dir():
            said = json.loads((export / RECORD).read_text(encoding="utf-8"))
            return bool(said["weights"] == weights)
        with zipfile.ZipFile(export) as archive, archive.open(WEIGHTS) as opened:
            content = cast("zipfile.ZipExtFile", opened)
            return hashlib.file_digest(content, "sha256").hexdigest() == weights
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return False


def place_of(folder: Path, adapter: Named, form: Form) -> Path:
    """Return where an adapter's export is in a folder, or is to be: never on one of other weights.

    Those are of an adapter that went by the same name, or of an earlier state of it, and perhaps
    all that is left of that.

    Raises:
        AdapterError: If the adapter's weights cannot be read.
    """
    weights = adapter.weights()
    found = places(folder, adapter.name, form)
    return next(place for place in found if not place.exists() or is_of(place, weights))


def places(folder: Path, name: str, form: Form) -> Iterator[Path]:
    """Yield where exports of an adapter of this name may be; the first is the usual one."""
    ending, suffix = ENDINGS[form]
    stem = f"{ODD.sub('-', name)}-{ending}"
    yield folder / f"{stem}{suffix}"
    for number in itertools.count(2):
        yield folder / f"{stem}-{number}{suffix}"
