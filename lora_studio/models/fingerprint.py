"""What tells the weights of one base model from those of another with the same shapes.

Hashing all of a large model takes as long as reading it. So of each weight its beginning, middle
and end are hashed: whoever trains a model further changes weights everywhere. Neither torch nor
transformers is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

BLOCK_BYTES = 4096
"""Read at each place of a weight; three such blocks of each, whole where it is smaller."""
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


def weights_fingerprint(folder: Path) -> str:
    """Return a name for a model's weights that every copy of them has, however it is split.

    The tokenizer and the configuration are no part of it.

    Args:
        folder: A model folder with its weights in safetensors.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        OSError: If a file is missing or cannot be read.
        ValueError: If one is no safetensors file, or their index is no JSON.
    """
    weights = sorted(line for file in weight_files(folder) for line in _described(file))
    return hashlib.sha256("\n".join(weights).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads: those of the index, else the one, else all."""
    index = folder / INDEX
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({folder / name for name in names})
    whole = folder / WHOLE
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def _described(file: Path) -> Iterator[str]:
    """Yield a line for each weight of a safetensors file: its name, number format, shape, hash.

    The file's layout: https://huggingface.co/docs/safetensors (format).
    """
    with file.open("rb") as content:
        header = _header(content, file)
        start = content.tell()
        for name, entry in header.items():
            begin, end = (start + at for at in entry["data_offsets"])
            yield f"{name} {entry['dtype']} {entry['shape']} {_sampled(content, begin, end)}"


def _header(content: BinaryIO, file: Path) -> dict[str, Any]:
    length = int.from_bytes(content.read(8), "little")
    try:
        header: dict[str, Any] = json.loads(content.read(min(length, file.stat().st_size)))
    except ValueError as error:
        raise ValueError(f"{file.name} is no safetensors file") from error
    header.pop("__metadata__", None)
    return header


def _sampled(content: BinaryIO, begin: int, end: int) -> str:
    digest = hashlib.sha256()
    if end - begin <= 3 * BLOCK_BYTES:
        content.seek(begin)
        digest.update(content.read(end - begin))
        return digest.hexdigest()
    for place in (begin, (begin + end - BLOCK_BYTES) // 2, end - BLOCK_BYTES):
        content.seek(place)
        digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()
