"""Chosen runs side by side: their curves over each other, what differs, what they answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.library.together import Difference
from lora_studio.recipes.command import in_one_line
from lora_studio.studio import Studio
from lora_studio.ui import milestones
from lora_studio.ui.language import Voice
from lora_studio.ui.library_table import Answer, endpoint, ids_of
from lora_studio.ui.view import view
from lora_studio.ui.visitors import Door

MOST_CHARS = 200
"""Of a setting's value in a cell."""
WORDS = (
    "beside", "curves", "differs", "setting", "answers", "none_differs", "held_out", "step",
    "curve_loss",
)  # fmt: skip
# Filled in by the browser.
BRACES = {name: f"{{{name}}}" for name in ("name", "loss", "held_out")}


def together_view(door: Door) -> gr.HTML:
    """Build the panel; its value is the ids of the runs it shows, as JSON."""
    return view("library_together", functions=[endpoint(door, "beside", beside)])


def beside(studio: Studio, query: Mapping[str, Any], voice: Voice) -> Answer:
    """Return what is seen of several runs at once; adapters from elsewhere have no history."""
    chosen = studio.library.chosen(ids_of(query))
    runs = [entry for entry in chosen if entry.kind != "adapter"]
    if len(runs) < 2:
        raise StudioError("library.too_few_together")
    ids = [entry.id for entry in runs]
    curves = studio.library.curves(ids)
    return {
        "names": [entry.name for entry in runs],
        "curves": [{"train": one.train, "held_out": one.held_out} for one in curves],
        "differences": [_difference(one) for one in studio.library.differences(ids)],
        "answers": [
            {"prompt": one.prompt, "said": [_said(answer, voice) for answer in one.said]}
            for one in studio.library.answers(ids)
        ],
        "left_out": voice("library_left_out") if len(runs) < len(chosen) else "",
        "words": {word: voice(f"library_{word}") for word in WORDS}
        | {"curve_of": voice("library_curve_of", **BRACES)},
    }


def chosen_value(ids: list[str]) -> str:
    """Return the panel's value for chosen entries; one alone is not compared."""
    return json.dumps(ids) if len(ids) > 1 else ""


def _difference(found: Difference) -> Answer:
    return {"name": found.name, "values": [_shown(found.name, one) for one in found.values]}


def _shown(setting: str, value: Any) -> str:
    """Return a setting's value in a cell; of files the names, not where they lie."""
    if setting == "data.files":
        return ", ".join(Path(file).name for file in value)[:MOST_CHARS]
    return "–" if value in (None, "", ()) else in_one_line(value)[:MOST_CHARS]


def _said(answer: tuple[int, str] | None, voice: Voice) -> Answer | None:
    if answer is None:
        return None
    step, text = answer
    return {"when": milestones.when(step, voice), "text": text}
