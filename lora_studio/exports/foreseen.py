"""What a merged model will consist of, before it is made."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

SHARD_BYTES = 2_000_000_000
"""No file of a merged model's weights is larger."""
INDEX, INDEX_BYTES = "model.safetensors.index.json", 30_000
"""Which weight is in which file, and about its size."""
SETTINGS = ("config.json", "generation_config.json")
TOKENIZER = ("tokenizer*", "*.jinja", "special_tokens_map.json", "vocab.json", "merges.txt")
BESIDE = ("tokenizer.model", "LICENSE", "LICENSE.txt", "NOTICE")


def merged_files(base: Path, adapter: Path, weights: int) -> dict[str, int]:
    """Return the names of a merged model's files and about how large each will be, in bytes.

    Args:
        base: Where the configuration of the base is; its weights need not be.
        adapter: The adapter's folder; a tokenizer there goes before the base's.
        weights: Size of the base's weights, which a merge does not change.
    """
    has_tokenizer = (adapter / "tokenizer_config.json").is_file()
    sizes = _sizes(base, (*SETTINGS, *BESIDE))
    sizes |= _sizes(adapter if has_tokenizer else base, TOKENIZER)
    if weights <= SHARD_BYTES:
        return sizes | {"model.safetensors": weights}
    return sizes | {"model-*.safetensors": weights, INDEX: INDEX_BYTES}


def _sizes(folder: Path, patterns: Iterable[str]) -> dict[str, int]:
    return {
        file.name: file.stat().st_size
        for file in folder.iterdir()
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in patterns)
    }
