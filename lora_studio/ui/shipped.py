"""What became of an adapter taken elsewhere, as HTML: an export, a repository, things to copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.exports.remarks import Remark, on_export, on_place, on_push
from lora_studio.exports.snippets import Snippet
from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice
from lora_studio.wording import say


def exported(found: Mapping[str, Any], voice: Voice) -> str:
    """Return where an export is, and what was measured of it."""
    place = voice("ship_place", size=numbers.size(found["bytes"]))
    items = _items(on_export(found), voice)
    path = f'<pre class="ls-raw">{escape(found["path"])}</pre>'
    said = f'<p role="status">{escape(place)}</p>'
    return f'<div class="ls-measured">{said}{path}<ul>{items}</ul></div>'


def published(found: Mapping[str, Any], voice: Voice) -> str:
    """Return what is on the Hub now, or what would be."""
    notes = _items(on_push(found), voice)
    seen = voice("push_private" if found["private"] else "push_seen")
    if found["address"] is not None:
        address = escape(found["address"], quote=True)
        sentence = escape(voice("push_done", seen=seen))
        return (
            f'<div class="ls-measured"><p role="status">{sentence} '
            f'<a href="{address}" target="_blank" rel="noreferrer">{address}</a></p>'
            f"<ul>{notes}</ul></div>"
        )
    rows = "".join(
        f"<tr><td>{escape(file['name'])}</td><td>{_about(file)}</td></tr>"
        for file in found["files"]
    )
    would = voice("push_would", where=found["repository"], seen=seen)
    key, values = on_place(found)
    there = say(key, voice.language, **values)
    card = (
        f'<details class="ls-changed"><summary>{escape(voice("push_card"))}</summary>'
        f'<pre class="ls-raw">{escape(found["card"])}</pre></details>'
    )
    return (
        f'<div class="ls-measured"><p role="status">{escape(f"{would} {there}")}</p>'
        f'<table class="ls-wins"><tbody>{rows}</tbody></table><ul>{notes}</ul>{card}</div>'
    )


def _items(remarks: Iterable[Remark], voice: Voice) -> str:
    said = (say(key, voice.language, **values) for key, values in remarks)
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in said)


def _about(file: Mapping[str, Any]) -> str:
    """Return a file's size; one that is not made yet is known about."""
    return f"{'≈ ' if file['is_foreseen'] else ''}{numbers.size(file['bytes'])}"


def snippet(one: Snippet, voice: Voice) -> str:
    """Return something to copy under its title."""
    title = escape(voice(f"snippet_{one.name}"))
    return f'<p class="ls-quiet">{title}</p><pre class="ls-raw">{escape(one.text)}</pre>'


def failed(error: StudioError, voice: Voice) -> str:
    """Return why there is nothing; that somebody stopped it is no problem."""
    kind = "warn" if error.key == "shipping.stopped" else "bad"
    return render.note(error.say(voice.language), kind)
