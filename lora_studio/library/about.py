"""What a person says of a run or an adapter: name, note, tags, star. A small file beside it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.files import reason_of, write_whole

ABOUT = "about.json"
NAME_CHARACTERS = 80
NOTE_CHARACTERS = 4000
TAG_CHARACTERS = 30
MOST_TAGS = 20
LARGEST_BYTES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """One person's words."""

    name: str = ""
    """What it is shown as; empty shows its id."""
    note: str = ""
    tags: tuple[str, ...] = ()
    """In the order of the alphabet."""
    star: bool = False


def read_about(folder: Path) -> About:
    """Return what is said of it; a file that is broken or of another kind says nothing."""
    file = folder / ABOUT
    try:
        if file.stat().st_size > LARGEST_BYTES:
            return About()
        said = json.loads(file.read_text(encoding="utf-8"))
        return changed(About(), {key: said[key] for key in asdict(About()) if key in said})
    except (OSError, ValueError, TypeError, StudioError):
        return About()


def write_about(folder: Path, about: About) -> None:
    """Write it beside what it is of; nothing said leaves no file.

    Raises:
        StudioError: If the disk does not take it.
    """
    try:
        if about == About():
            (folder / ABOUT).unlink(missing_ok=True)
        else:
            write_whole(folder / ABOUT, json.dumps(asdict(about), ensure_ascii=False, indent=1))
    except OSError as error:
        raise StudioError(
            "library.not_written", name=folder.name, reason=reason_of(error)
        ) from error


def changed(about: About, words: dict[str, Any]) -> About:
    """Return what is said with some of it said anew.

    Args:
        about: Before.
        words: Any of `name`, `note`, `tags`, `star`.

    Raises:
        StudioError: If something is of another kind, too long, or too much.
    """
    for what, value in words.items():
        if what not in CHECKS:
            raise StudioError("library.bad_words", what=what)
        about = replace(about, **{what: CHECKS[what](value)})
    return about


def _name(value: Any) -> str:
    name = " ".join(_plain(value, "name").split())
    if len(name) > NAME_CHARACTERS:
        raise StudioError("library.long_name", most=NAME_CHARACTERS)
    return name


def _note(value: Any) -> str:
    note = _plain(value, "note").strip()
    if len(note) > NOTE_CHARACTERS:
        raise StudioError("library.long_note", most=NOTE_CHARACTERS, found=len(note))
    return note


def _tags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise StudioError("library.bad_words", what="tags")
    tags = {" ".join(_plain(tag, "tags").replace(",", " ").split()) for tag in value} - {""}
    for tag in tags:
        if len(tag) > TAG_CHARACTERS:
            raise StudioError("library.long_tag", tag=tag[:TAG_CHARACTERS], most=TAG_CHARACTERS)
    if len(tags) > MOST_TAGS:
        raise StudioError("library.many_tags", most=MOST_TAGS)
    return tuple(sorted(tags, key=str.casefold))


def _star(value: Any) -> bool:
    if not isinstance(value, bool):
        raise StudioError("library.bad_words", what="star")
    return value


def _plain(value: Any, what: str) -> str:
    """Return text in one form, without characters that show nothing."""
    if not isinstance(value, str):
        raise StudioError("library.bad_words", what=what)
    text = unicodedata.normalize("NFC", value)
    return "".join(
        character
        for character in text
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    )


CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "note": _note,
    "tags": _tags,
    "star": _star,
}
