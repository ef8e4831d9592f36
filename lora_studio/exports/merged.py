"""A base with an adapter in it: a model folder that needs neither PEFT nor this program.

What was written is loaded again and compared with base and adapter; an export that does not say
the same is an error, and nothing of it stays.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_studio.chat.base import LoadedBase
from lora_studio.data.templates import end_ids
from lora_studio.errors import StudioError
from lora_studio.exports.difference import (
    LONGEST,
    TEXTS,
    Difference,
    compare,
    logits_of,
    share_moved,
)
from lora_studio.exports.foreseen import BESIDE, SHARD_BYTES
from lora_studio.exports.merging import merge
from lora_studio.exports.whole import GB
from lora_studio.files import size_of
from lora_studio.hardware import free_memory
from lora_studio.models.fingerprint import weight_files
from lora_studio.models.hub import OnProgress
from lora_studio.models.loading import (
    DTYPES,
    load_classifier,
    load_model,
    load_tokenizer,
    reading,
)

STORED = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
"""Number formats of safetensors that a base is merged in."""
TOLERANCE = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.06}
"""Largest `Difference.relative` of a right merge. All of it is the rounding of W + ΔW."""
LOOK_EVERY_S = 0.2
ADAPTER = "adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What is to be merged."""

    adapter: Path
    """A PEFT folder."""
    base: Path
    """The folder of its base, not quantised."""
    stored: str
    """What the base's weights are in, as `stored_dtype` says."""
    labels: Sequence[str] = ()
    """Names of classes, of an adapter that sorts texts into them."""
    seed: int = 42
    """What the classifier's untrained head is drawn from."""


def merged_bytes(asked: Merge, dtype: str) -> int:
    """Return how large the merged model is on disk when its weights are in this format."""
    stored = sum(file.stat().st_size for file in weight_files(asked.base))
    return stored * DTYPES[dtype].itemsize // DTYPES[asked.stored].itemsize


def write_merged(asked: Merge, folder: Path, dtype: str, progress: OnProgress) -> dict[str, Any]:
    """Fill a folder with base and adapter as one model, and compare it with them.

    Args:
        asked: What is merged.
        folder: Empty; what a failure leaves in it is the caller's to remove.
        dtype: What the weights are written in.
        progress: Told the stage, what is done, and of how much; what it raises ends the work.

    Returns:
        `check` (a `Difference` from base and adapter, with `kept`, the share of the adapter's
        change that is in it) and `change` (that of the bare base from base and adapter), plain
        values.

    Raises:
        StudioError: If adapter or base cannot be used, memory is too small, or what was written
            does not say what base and adapter say.
    """
    _require_memory(asked.base)
    progress("load", 0, 0)
    loaded, rows = _loaded(asked)
    progress("verify", 0, 3)
    with loaded.answering_as([None] * len(rows)):
        bare = logits_of(loaded.model, rows)
    progress("verify", 1, 3)
    with loaded.answering_as([ADAPTER] * len(rows)):
        wanted = logits_of(loaded.model, rows)
    with reading(asked.base):
        model = merge(loaded, ADAPTER, DTYPES[dtype], lambda done, of: progress("merge", done, of))
    tokenizer = tokenizer_of(asked)
    _save(model, tokenizer, folder, progress)
    _copy_beside(asked.base, folder)
    del loaded, model
    gc.collect()
    again = _load(folder, dtype, asked, tokenizer.pad_token_id)
    progress("verify", 2, 3)
    found = logits_of(again, rows)
    difference, change = compare(wanted, found), compare(wanted, bare)
    _require_same(difference, dtype)
    kept = {"kept": share_moved(bare, wanted, found)}
    return {"check": difference.to_dict() | kept, "change": change.to_dict()}


def stored_dtype(folder: Path) -> str:
    """Return the number format of most of a model's weights: `bf16`, `fp16` or `fp32`.

    Raises:
        StudioError: If a file cannot be read, or they are in none of these.
    """
    counts: Counter[str] = Counter()
    with reading(folder):
        for file in weight_files(folder):
            with safe_open(file, framework="pt", device="cpu") as weights:
                for key in weights.keys():  # noqa: SIM118 - not a dict
                    part = weights.get_slice(key)
                    counts[part.get_dtype()] += torch.Size(part.get_shape()).numel()
    most = counts.most_common(1)[0][0] if counts else "?"
    if most not in STORED:
        raise StudioError("shipping.number_format", folder=folder.name, dtype=most)
    return STORED[most]


def tokenizer_of(asked: Merge) -> Any:
    """Return the tokenizer that lies beside the adapter, with its chat template, or the base's."""
    is_beside = (asked.adapter / "tokenizer_config.json").is_file()
    return load_tokenizer(asked.adapter if is_beside else asked.base)


def _require_memory(base: Path) -> None:
    """Refuse a base that is larger than the memory that is free.

    Raises:
        StudioError: With both sizes.
    """
    needed, free = sum(file.stat().st_size for file in weight_files(base)), free_memory()
    if needed > free:
        raise StudioError(
            "shipping.no_memory", needed=f"{needed / GB:.1f}", free=f"{free / GB:.1f}"
        )


def _loaded(asked: Merge) -> tuple[LoadedBase, list[list[int]]]:
    """Return the base with the adapter attached, and the rows of tokens to compare."""
    if asked.labels:
        labels = list(asked.labels)
        model = load_classifier(asked.base, asked.stored, "cpu", labels=labels, seed=asked.seed)
    else:
        model = load_model(asked.base, asked.stored, "cpu")
    tokenizer = load_tokenizer(asked.base)
    rows = [tokenizer(text)["input_ids"][:LONGEST] for text in TEXTS]
    loaded = LoadedBase(model.eval(), tokenizer, classifies=bool(asked.labels))
    loaded.attach({ADAPTER: asked.adapter})
    return loaded, rows


def _save(model: Any, tokenizer: Any, folder: Path, progress: OnProgress) -> None:
    """Write model and tokenizer; a cancelled write ends at its next file."""
    total = sum(one.numel() * one.element_size() for one in model.parameters())
    _prepare(model, tokenizer)
    with _written_beside(folder) as write:
        progress("save", 0, total)
        work = write(lambda: model.save_pretrained(folder, max_shard_size=SHARD_BYTES))
        while not work.done():
            progress("save", min(size_of(folder), total), total)
            wait([work], LOOK_EVERY_S)
        work.result()
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json"):
        _forget_code(folder / name)


def _prepare(model: Any, tokenizer: Any) -> None:
    """Have the model's files say where an answer ends, as the page does."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    own = generation.eos_token_id
    known = own if isinstance(own, list) else [] if own is None else [own]
    ends = sorted({*known, *end_ids(tokenizer)})
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends


@contextmanager
def _written_beside(folder: Path) -> Iterator[Callable[..., Any]]:
    """Give what runs a function in another thread, which cannot be ended but for lack of a folder.

    So where the block fails, the folder goes, and the next file is not written.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="save") as thread:
        try:
            yield thread.submit
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _forget_code(file: Path) -> None:
    """Take out of a configuration where a repository's own code was: the model needs none."""
    if file.is_file():
        said = json.loads(file.read_text(encoding="utf-8"))
        if said.pop("auto_map", None) is not None:
            file.write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")


def _copy_beside(base: Path, folder: Path) -> None:
    """Copy what other programs read and transformers does not write."""
    for name in BESIDE:
        if (base / name).is_file() and not (folder / name).exists():
            shutil.copyfile(base / name, folder / name)


def _load(folder: Path, dtype: str, asked: Merge, pad: int | None) -> Any:
    if not asked.labels:
        return load_model(folder, dtype, "cpu").eval()
    from transformers import AutoModelForSequenceClassification

    with reading(folder):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True
        )
    model.config.pad_token_id = pad
    return model.eval()


def _require_same(found: Difference, dtype: str) -> None:
    """Refuse a merged model that says something else than base and adapter.

    Raises:
        StudioError: With what was measured and what is allowed.
    """
    if not found.relative <= TOLERANCE[dtype]:
        raise StudioError(
            "shipping.says_otherwise",
            measured=f"{found.relative:.2g}",
            allowed=f"{TOLERANCE[dtype]:g}",
            dtype=dtype,
        )
