"""One entry of the library, opened: what is known of it, what a person says of it, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.library.entries import Entry
from lora_studio.studio import Studio
from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice
from lora_studio.ui.library_table import Answer, endpoint, rank, status
from lora_studio.ui.measured import measured
from lora_studio.ui.view import view
from lora_studio.ui.visitors import Door

WORDS = (
    "name", "name_hint", "note", "note_hint", "tags", "tags_hint", "star", "unstar", "close",
    "compare", "reuse", "download", "xray", "delete", "saved",
)  # fmt: skip


def sheet_view(door: Door) -> gr.HTML:
    """Build the sheet; its value is the id of the entry it shows, empty for none.

    It asks the page to compare (`submit`), to reuse settings (`retry`), to hand out a zip
    (`download`) and to look into the adapter (`expand`).
    """
    functions = [endpoint(door, "described", described), endpoint(door, "say", _say)]
    return view("library_sheet", functions=functions)


def described(studio: Studio, query: Mapping[str, Any], voice: Voice) -> Answer:
    """Return everything about an entry, in words."""
    entry = studio.library.entry(str(query.get("id") or ""))
    facts, problem = entry.facts, entry.problem
    said = problem or entry.doubt
    usable = facts.has_adapter and facts.status not in ("training", "evaluating", "saving")
    return {
        "id": entry.id,
        "name": entry.about.name,
        "title": entry.name,
        "note": entry.about.note,
        "tags": ", ".join(entry.about.tags),
        "star": entry.about.star,
        "facts": _facts(entry, voice),
        "origin": origin(entry, voice),
        "measured": _measured(studio, entry, voice) if usable and problem is None else "",
        "problem": said.say(voice.language) if said else "",
        "fixed": entry.kind == "recorded",
        "can": {
            "compare": usable and problem is None,
            "download": usable,
            "xray": usable and problem is None,
            "reuse": entry.kind != "adapter" and problem is None,
            "delete": entry.kind != "recorded",
        },
        "words": {word: voice(f"library_{word}") for word in WORDS},
    }


def origin(entry: Entry, voice: Voice) -> str:
    """Return where an adapter has come from, in a sentence; empty for a run's."""
    found = entry.origin
    if found is None:
        return ""
    if found.kind == "shrunk":
        error = numbers.percent(found.error or 0.0)
        return voice("library_shrunk_of", of=found.of, rank=found.rank, error=error)
    return voice("library_came_from", of=found.of)


def _measured(studio: Studio, entry: Entry, voice: Voice) -> str:
    """Return what was measured, as HTML; of a run that is shipped with the program nothing is."""
    if entry.kind == "recorded":
        return ""
    try:
        found = studio.measurements.read_all(entry.id)
    except StudioError:
        return ""
    return measured(found, entry.name, voice) or render.quiet(voice("measure_none"))


def _facts(entry: Entry, voice: Voice) -> list[list[str]]:
    facts = entry.facts
    labels = voice("library_classes", count=facts.labels) if facts.labels else ""
    items = [
        (voice("library_id"), entry.id),
        (voice("library_status"), status(entry, voice) or voice("library_status_finished")),
        (voice("library_base"), facts.base),
        (voice("library_data"), facts.data),
        (voice("library_r"), rank(entry)),
        (voice("library_steps"), "" if facts.steps is None else f"{facts.steps:,}"),
        (voice("library_loss"), "" if facts.loss is None else f"{facts.loss:.3f}"),
        (voice("library_sorts"), labels),
        (voice("library_bytes"), numbers.size(facts.bytes)),
        (voice("library_created"), numbers.moment(facts.created)),
    ]
    return [[label, value] for label, value in items if value]


def _say(studio: Studio, query: Mapping[str, Any], voice: Voice) -> Answer:
    """Keep a name, a note, tags or a star."""
    said = query.get("words")
    given = said if isinstance(said, dict) else {}
    words = {key: given[key] for key in ("name", "note", "tags", "star") if key in given}
    if isinstance(words.get("tags"), str):
        words["tags"] = words["tags"].split(",")
    entry_id = str(query.get("id") or "")
    studio.library.say([entry_id], **words)
    return described(studio, {"id": entry_id}, voice) | {"told": voice("library_saved")}
