"""Adapters in the forms that other programs take: zip, merged, GGUF, Ollama.

An export is a folder (a file, for a zip) that is there whole or not at all, with a README that
says what was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_studio.adapters.archive import adapter_files, zip_adapter
from lora_studio.adapters.lineage import other_weights
from lora_studio.errors import AdapterError, StudioError
from lora_studio.exports.gguf import MERGED, gguf_bytes, write_gguf
from lora_studio.exports.merged import (
    Merge,
    merged_bytes,
    stored_dtype,
    tokenizer_of,
    write_merged,
)
from lora_studio.exports.ollama import modelfile
from lora_studio.exports.orders import Order, Shipped
from lora_studio.exports.readme import readme
from lora_studio.exports.record import write_record
from lora_studio.exports.whole import written_whole
from lora_studio.files import size_of
from lora_studio.hardware import QUANTISED
from lora_studio.library.names import Named
from lora_studio.models.fingerprint import weights_fingerprint
from lora_studio.models.hub import OnProgress
from lora_studio.models.loading import reading
from lora_studio.models.sources import hub_name
from lora_studio.settings import Settings

COARSE = 0.5
"""Rounding that moves the logits by so much of what the adapter does is told of."""


def ship(order: Order, base: Path | None, settings: Settings, progress: OnProgress) -> Shipped:
    """Export an adapter.

    Args:
        order: What, as what, and where to.
        base: The folder of its base, in full precision; a zip needs none.
        settings: Where the converter to GGUF is kept.
        progress: Told the stage, what is done, and of how much; what it raises ends the work, and
            nothing of it stays.

    Raises:
        StudioError: If something cannot be read, does not fit, or what was written does not say
            what base and adapter say.
    """
    if order.form == "zip":
        return _zipped(order, progress)
    assert base is not None  # noqa: S101 - who orders these has fetched it
    _refuse(order.adapter, base)
    stored = stored_dtype(base)
    is_merged = order.form == "merged"
    dtype = (order.dtype or stored) if is_merged else MERGED
    asked = Merge(
        adapter=order.adapter.folder,
        base=base,
        stored=stored,
        labels=order.adapter.labels,
        seed=order.adapter.seed,
    )
    needed = merged_bytes(asked, dtype) if is_merged else gguf_bytes(asked, order.quantization)
    with written_whole(order.target, needed=needed, replaces=order.replaces) as partial:
        partial.mkdir()
        if is_merged:
            found = write_merged(asked, partial, dtype, progress)
        else:
            name, quantization = order.target.name, order.quantization
            found = write_gguf(asked, partial, name, quantization, settings, progress)
        if order.form == "ollama":
            beside = partial / "Modelfile"
            beside.write_text(
                modelfile(partial / found["file"], tokenizer_of(asked)), encoding="utf-8"
            )
        shipped = Shipped(
            form=order.form,
            path=str(order.target),
            bytes=size_of(partial),
            dtype=dtype if is_merged else None,
            quantization=None if is_merged else order.quantization,
            notes=[note.to_dict() for note in _notes(order, dtype, found)],
            **found,
        )
        text = readme(order.adapter, shipped.to_dict())
        (partial / "README.md").write_text(text, encoding="utf-8")
        write_record(partial, order.adapter)
    return shipped


def _zipped(order: Order, progress: OnProgress) -> Shipped:
    files = adapter_files(order.adapter.folder)
    needed = sum(file.stat().st_size for file in files)
    with written_whole(order.target, needed=needed, replaces=order.replaces) as partial:
        zip_adapter(
            order.adapter.folder, partial, lambda done, of: progress("zip", done, of),
            lineage=order.adapter.lineage, recipe=order.adapter.read_recipe(),
        )  # fmt: skip
        written = size_of(partial)
    return Shipped(form="zip", path=str(order.target), bytes=written)


def refuse_loftq(adapter: Named) -> None:
    """Refuse to merge an adapter that mends what its base lost in 4 bit.

    Raises:
        AdapterError: If it, or what it was made of, was begun by LoftQ.
    """
    recipe = adapter.read_recipe()
    if recipe is not None and recipe.adapter.init_lora_weights == "loftq":
        raise AdapterError("shipping.loftq")


def _refuse(adapter: Named, base: Path) -> None:
    """Refuse to merge an adapter into a base that it was not made for.

    Raises:
        AdapterError: If it was trained on other weights, or mends those in 4 bit.
    """
    refuse_loftq(adapter)
    if adapter.fingerprint is None:
        return
    with reading(base):
        found = weights_fingerprint(base)
    if found != adapter.fingerprint:
        trained_on = hub_name(adapter.source)
        raise other_weights(
            adapter.name, of=adapter.fingerprint, found=found, trained_on=trained_on
        )


def _notes(order: Order, dtype: str, found: dict[str, Any]) -> list[StudioError]:
    """Return what is to be said of an export: what it was merged in is `dtype`."""
    notes = []
    if order.adapter.precision in QUANTISED:
        notes.append(StudioError("shipping.full_precision", precision=order.adapter.precision))
    check, change = found["check"], found["change"]["relative"]
    if check["relative"] > COARSE * change:
        is_drowned = check["relative"] >= change or check["kept"] < COARSE
        finer = "_bf16" if dtype == "bf16" else ""
        key = "shipping.drowned" if is_drowned else f"shipping.coarse{finer}"
        values = {"rounding": f"{check['relative']:.2g}", "change": f"{change:.2g}"}
        notes.append(StudioError(key, dtype=dtype, **values))
    if "again" not in found:
        return notes
    again = found["again"]
    if again is None:
        notes.append(StudioError("shipping.gguf_unread"))
    elif again["relative"] > COARSE * change:
        values = {"rounding": f"{again['relative']:.2g}", "change": f"{change:.2g}"}
        notes.append(StudioError("shipping.gguf_coarse", quantization=order.quantization, **values))
    return notes
