"""An adapter folder as one file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_studio.adapters.configuration import CONFIG, WEIGHTS
from lora_studio.adapters.lineage import NAME, Lineage
from lora_studio.recipe import Recipe
from lora_studio.recipes import sharing

Progress = Callable[[int, int], None]

BLOCK_BYTES = 1 << 20

OWN = (
    CONFIG,
    WEIGHTS,
    "config.json",
    "README.md",
    "recipe.yaml",
    "*.jinja",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
"""What is of use to whoever has the adapter. Beside it may lie what a training goes on from, and
notes of this program's own."""


def adapter_files(adapter: Path) -> list[Path]:
    """Return the files of an adapter folder that are the adapter's, by name."""
    return [
        file
        for file in sorted(adapter.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in OWN)
    ]


def zip_adapter(
    adapter: Path,
    target: Path,
    progress: Progress = lambda *_: None,
    *,
    lineage: Lineage | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """Write a PEFT folder's files into the zip `target` and return it.

    Of its recipe goes what others may have. The file is there whole or as it was. Safetensors
    hardly shrink, so they are stored as they are.

    Args:
        adapter: The folder.
        target: The file; folders above it are made.
        progress: Told the bytes that are in, and of how many; what it raises ends the work.
        lineage: What is known of its base; nothing known is not written.
        recipe: What it was trained with, where that is known; what lies in the folder stays here.

    Raises:
        OSError: If the disk does not take it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
        files = _for_others(adapter, Path(aside), recipe)
        if lineage is not None and lineage != Lineage():
            files.append(Path(aside) / NAME)
            files[-1].write_text(lineage.to_json(), encoding="utf-8")
        total, done = sum(file.stat().st_size for file in files), 0
        partial = Path(aside) / target.name
        with zipfile.ZipFile(partial, "w") as archive:
            for file in files:
                is_packed = file.suffix == ".safetensors"
                entry = zipfile.ZipInfo.from_file(file, file.name)
                entry.compress_type = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
                with file.open("rb") as source, archive.open(entry, "w") as packed:
                    while block := source.read(BLOCK_BYTES):
                        packed.write(block)
                        done += len(block)
                        progress(done, total)
        partial.replace(target)
    return target


def _for_others(adapter: Path, aside: Path, recipe: Recipe | None) -> list[Path]:
    """Return the files of an adapter, with a recipe written anew in another folder."""
    files = [file for file in adapter_files(adapter) if file.name != sharing.NAME]
    if recipe is not None:
        written = aside / sharing.NAME
        written.write_text(sharing.shareable(recipe).to_yaml(), encoding="utf-8")
        files.append(written)
    return files
