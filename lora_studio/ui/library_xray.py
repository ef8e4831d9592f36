"""The x-ray of an adapter: where it changed the model, how much, in how many directions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from lora_studio.library.shrunk import predicted_bytes, predicted_errors, squares
from lora_studio.ui import numbers
from lora_studio.ui.language import Voice
from lora_studio.ui.view import view

SPECTRUM = 64
"""So many directions are drawn; those beyond are lost in the picture."""
# Filled in by the browser.
BRACES = {name: f"{{{name}}}" for name in ("rank", "error", "size", "module", "share", "directions",
                                           "of", "layer")}  # fmt: skip


def xray_view() -> gr.HTML:
    """Build the picture; its value is what `value_of` returns. Its `apply` asks to shrink."""
    return view("library_xray")


def value_of(name: str, shown: str, weights_bytes: int, found: Mapping[str, Any],
             voice: Voice) -> str:  # fmt: skip
    """Return an x-ray as the browser draws it, as JSON.

    Args:
        name: The adapter's name.
        shown: What it is shown as.
        weights_bytes: Size of its weights' file.
        found: The plain values of `lora_studio.adapters.xray.Xray`.
        voice: The language.
    """
    modules = found["modules"]
    places = [place(module["name"]) for module in modules]
    highest, errors = found["rank"], predicted_errors(modules)
    seen = {
        "id": name,
        "effective": found["effective_rank"],
        "parts": list(dict.fromkeys(part for part, _ in places)),
        "layers": sorted({layer for _, layer in places if layer is not None}),
        "modules": [
            {
                "name": module["name"],
                "part": part,
                "layer": layer,
                "share": module["relative_norm"],
                "effective": module["effective_rank"],
                "rank": module["rank"],
                "values": _shares([module])[:SPECTRUM],
            }
            for module, (part, layer) in zip(modules, places, strict=True)
        ],
        "whole": _shares(modules)[:SPECTRUM],
        "ranks": [
            {
                "rank": rank,
                "error": numbers.percent(errors[min(rank, len(errors) - 1)]),
                "size": numbers.size(predicted_bytes(modules, rank, weights_bytes)),
            }
            for rank in range(1, highest)
        ],
        "words": _words(shown, found, voice),
    }
    return json.dumps(seen, ensure_ascii=False)


def place(name: str) -> tuple[str, int | None]:
    """Return a module's part of a block, and its block's number, None where it is in none.

    >>> place("model.layers.3.self_attn.q_proj")
    ('q_proj', 3)
    """
    number = re.search(r"\.(\d+)\.", name)
    return name.rpartition(".")[2], int(number[1]) if number else None


def _shares(modules: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return what each direction, the largest first, has of the change's square; they sum to 1."""
    found = squares(modules)
    whole = sum(found)
    return [round(square / whole, 5) if whole else 0.0 for square in found]


def _words(shown: str, found: Mapping[str, Any], voice: Voice) -> dict[str, str]:
    asked, lives, beside = found["rank"], found["effective_rank"], found["beside"]
    said = voice("xray_said" if lives else "xray_none", rank=asked, effective=lives)
    return {
        "title": voice("xray_title", name=shown),
        "said": f"{said} {voice('xray_beside', count=beside)}" if beside else said,
        "heat": voice("xray_heat"),
        "heat_why": voice("xray_heat_why"),
        "spectrum": voice("xray_spectrum"),
        "spectrum_why": voice("xray_spectrum_why"),
        "every": voice("xray_every"),
        "pick": voice("xray_pick"),
        "cell": voice("xray_cell", **BRACES),
        "unknown": voice("xray_unknown"),
        "layer": voice("xray_layer"),
        "outside": voice("xray_outside"),
        "heard": voice("xray_heard", **BRACES),
        "shrink": voice("xray_shrink"),
        "shrink_why": voice("xray_shrink_why"),
        "to_rank": voice("xray_to_rank"),
        "loses": voice("xray_loses", **BRACES),
        "make": voice("xray_make"),
    }
