"""The table of the library: what the browser asks for, and what it may change.

Every function offered to the browser is a public endpoint and checks its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.library import entries
from lora_studio.library.entries import COLUMNS, FALLING, Entry
from lora_studio.library.trash import Deleted
from lora_studio.studio import Studio
from lora_studio.ui import numbers
from lora_studio.ui.language import Voice
from lora_studio.ui.view import view
from lora_studio.ui.visitors import Door

Answer = dict[str, Any]
Act = Callable[[Studio, Mapping[str, Any], Voice], Answer]
PAGE_ROWS = 100
MOST_ROWS = 5000
MOST_CHARS = 200
HEADS = ("name", "base", "data", "r", "steps", "loss", "bytes", "created")
"""Columns that have a title, in their order."""
WORDS = (
    "search", "all", "runs", "adapters", "any_tag", "starred", "star", "unstar", "choose", "clear",
    "tag", "tag_ask", "delete", "undo", "more", "trash_why", "put_back", "empty", "empty_sure",
    "empty_not", "nothing", "nothing_why", "to_train", "nothing_found", "show_all", "side_by_side",
)  # fmt: skip


def table_view(door: Door) -> gr.HTML:
    """Build the table; its `select` tells which entry is open and which are chosen."""
    acts: dict[str, Act] = {
        "found": found,
        "star": _star,
        "tag": _tag,
        "remove": _remove,
        "put_back": _put_back,
        "empty": _empty,
        "room": room,
    }
    functions = [endpoint(door, name, act) for name, act in acts.items()]
    return view("library", functions=functions)


def endpoint(door: Door, name: str, act: Act) -> Callable[..., Answer]:
    """Return a server function under a name; what goes wrong is a sentence, `told`."""

    def answer(query: Any, request: gr.Request) -> Answer:
        voice = Voice(request)
        try:
            return act(door.enter(request), query if isinstance(query, dict) else {}, voice)
        except StudioError as error:
            return {"told": error.say(voice.language), "failed": True}

    answer.__name__ = name
    return answer


def found(studio: Studio, query: Mapping[str, Any], voice: Voice) -> Answer:
    """Return the rows that a search finds, and what the table says."""
    by = query.get("by") if query.get("by") in COLUMNS else "created"
    kind = query.get("kind") if query.get("kind") in ("run", "adapter") else None
    every = studio.library.entries()
    known = entries.tags(every)
    tag = query.get("tag") if query.get("tag") in known else None
    matching = entries.matching(
        every,
        str(query.get("words") or "")[:MOST_CHARS],
        kind=kind,
        tag=tag,
        starred=query.get("starred") is True,
    )
    rows = entries.ordered(matching, str(by), falling=query.get("falling") is True)
    limit = query.get("limit")
    shown = rows[: limit if isinstance(limit, int) and 0 < limit <= MOST_ROWS else PAGE_ROWS]
    return {
        "rows": [row(entry, voice) for entry in shown],
        "found": len(rows),
        "total": len(every),
        "tags": known,
        "falling": sorted(FALLING),
        "heads": {name: voice(f"library_{name}") for name in HEADS},
        "count": voice("library_count", found=len(rows), total=len(every)),
        "words": {word: voice(f"library_{word}") for word in WORDS}
        | {"chosen": voice("library_chosen", count="{count}")},
    }


def row(entry: Entry, voice: Voice) -> Answer:
    """Return an entry as the table shows it: everything in words."""
    facts = entry.facts
    return {
        "id": entry.id,
        "name": entry.name,
        "star": entry.about.star,
        "tags": list(entry.about.tags),
        "note": entry.about.note,
        "base": facts.base,
        "data": facts.data,
        "r": rank(entry),
        "steps": "" if facts.steps is None else f"{facts.steps:,}",
        "loss": "" if facts.loss is None else f"{facts.loss:.3f}",
        "bytes": numbers.size(facts.bytes),
        "created": numbers.moment(facts.created),
        "status": status(entry, voice),
        "fixed": entry.kind == "recorded",
    }


def rank(entry: Entry) -> str:
    """Return rank and alpha in one, empty where they are not known."""
    facts = entry.facts
    return "" if facts.r is None else f"{facts.r} / {facts.lora_alpha}"


def status(entry: Entry, voice: Voice) -> str:
    """Return where a run stands, or where an adapter has come from, in a word or two."""
    if entry.problem is not None:
        return voice("library_broken")
    if entry.kind == "recorded":
        return voice("library_recorded")
    if entry.kind == "run":
        known = entry.facts.status
        return "" if known == "finished" else voice(f"library_status_{known}")
    kind = entry.origin.kind if entry.origin else "zip"
    return voice(f"library_from_{kind}")


def ids_of(query: Mapping[str, Any]) -> list[str]:
    """Return the ids that a browser names, each once; what is no text is nobody's."""
    said = query.get("ids")
    texts = [one for one in said if isinstance(one, str)] if isinstance(said, list) else []
    return list(dict.fromkeys(texts))


def _star(studio: Studio, query: Mapping[str, Any], _voice: Voice) -> Answer:
    studio.library.say(ids_of(query), star=query.get("star") is True)
    return {"told": ""}


def _tag(studio: Studio, query: Mapping[str, Any], voice: Voice) -> Answer:
    tag, ids = str(query.get("tag") or ""), ids_of(query)
    studio.library.tag(ids, add=tag.split(","))
    return {"told": voice("library_tagged", count=len(ids), tag=tag)}


def _remove(studio: Studio, query: Mapping[str, Any], voice: Voice) -> Answer:
    names = [entry.name for entry in studio.library.chosen(ids_of(query))]
    keys = studio.library.delete(ids_of(query))
    told = voice("library_deleted", names=", ".join(names[:3]), count=len(names))
    return {"told": told, "keys": keys}


def _put_back(studio: Studio, query: Mapping[str, Any], voice: Voice) -> Answer:
    back = studio.library.put_back(ids_of(query))
    return {"told": voice("library_is_back", names=", ".join(back[:3])), "ids": back}


def _empty(studio: Studio, _query: Mapping[str, Any], voice: Voice) -> Answer:
    return {"told": voice("library_emptied", size=numbers.size(studio.library.empty_trash()))}


def room(studio: Studio, _query: Mapping[str, Any], voice: Voice) -> Answer:
    """Return how the disk is used, and what lies in the trash."""
    use, trash = studio.library.disk(), studio.library.deleted()
    whole = max(use.total, 1)
    return {
        "parts": [
            {
                "name": voice(f"library_disk_{name}"),
                "size": numbers.size(size),
                "share": round(size / whole, 4),
            }
            for name, size in use.parts
        ],
        "said": voice("library_disk", used=numbers.size(use.total), free=numbers.size(use.free)),
        "trash": [_thrown(one, voice) for one in trash],
        "title": voice(
            "library_trash_title",
            count=len(trash),
            size=numbers.size(sum(one.bytes for one in trash)),
        ),
    }


def _thrown(one: Deleted, voice: Voice) -> Answer:
    about = voice(
        "library_thrown", when=numbers.moment(one.deleted_at), size=numbers.size(one.bytes)
    )
    return {"key": one.key, "name": one.name, "about": about}
