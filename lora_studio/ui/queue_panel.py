"""The runs that wait for the device: a short list in which they move and which they leave.

The browser asks for it again and again, so that it is the same in every tab and after a restart.
Every function offered to the browser is a public endpoint and checks its argument.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.models.sources import hub_name
from lora_studio.runs.folder import RunFolder
from lora_studio.studio import Studio
from lora_studio.ui.language import Voice
from lora_studio.ui.view import view
from lora_studio.ui.visitors import Door

Answer = dict[str, Any]
Change = Callable[[Studio, str, Voice], str]
"""Does something with a waiting run and says what."""


def queue_view(door: Door) -> gr.HTML:
    """Build the list; its `tick` tells that a start would begin to wait, or no longer would."""
    return view("queue", functions=[_line(door), _move(door), _leave(door)])


def _line(door: Door) -> Callable[..., Answer]:
    def line(_: Any, request: gr.Request) -> Answer:
        return standing(door.enter(request), Voice(request))

    return line


def _move(door: Door) -> Callable[..., Answer]:
    def move(query: Any, request: gr.Request) -> Answer:
        to = query.get("to") if isinstance(query, dict) else None
        place = to if isinstance(to, int) else 0

        def change(studio: Studio, run: str, voice: Voice) -> str:
            studio.line.reorder(run, to=place)
            order = studio.line.waiting()
            return voice("queue_moved", run=run, place=order.index(run) + 1) if run in order else ""

        return _changed(door, query, request, change)

    return move


def _leave(door: Door) -> Callable[..., Answer]:
    def change(studio: Studio, run: str, voice: Voice) -> str:
        studio.line.remove(run)
        return voice("queue_left", run=run)

    def leave(query: Any, request: gr.Request) -> Answer:
        return _changed(door, query, request, change)

    return leave


def _changed(door: Door, query: Any, request: gr.Request, change: Change) -> Answer:
    studio, voice = door.enter(request), Voice(request)
    run = query.get("run") if isinstance(query, dict) else None
    try:
        told = change(studio, str(run), voice)
    except StudioError as error:
        told = error.say(voice.language)
    return standing(studio, voice) | {"told": told}


def standing(studio: Studio, voice: Voice) -> Answer:
    """Return who waits, the next first, and what the list says of it."""
    waiting = studio.line.waiting()
    return {
        "rows": [{"run": run, "about": _about(studio.runs.history(run).folder)} for run in waiting],
        "busy": studio.line.would_wait(),
        "title": voice("queue_title", count=len(waiting)),
        "why": voice("queue_why"),
        "words": {act: voice(f"queue_{act}") for act in ("up", "down", "leave")},
        "told": "",
    }


def _about(folder: RunFolder) -> str:
    return _summary(folder, folder.recipe.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _summary(folder: RunFolder, _written_ns: int) -> str:
    """Return what a run would train on what; a recipe is read once, and again if it changes."""
    try:
        recipe = folder.read_recipe()
    except (StudioError, OSError):
        return ""
    data = [Path(file).name for file in recipe.data.files] or [recipe.data.hub.repo_id]
    base = Path(hub_name(recipe.model.source)).name
    return " · ".join([base, ", ".join(filter(None, data)), f"r {recipe.adapter.r}"])
