"""Every sentence a person sees, in English and Korean, from one table: `assets/strings.toml`.

It knows nothing of the rest of the program: a key and its values go in, a sentence comes out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = {"en": "English", "ko": "한국어"}
ASSETS = Path(__file__).resolve().parent.parent / "assets"


@cache
def table() -> dict[str, dict[str, str]]:
    """Read the table once: `{"room.key": {"en": …, "ko": …}}`."""
    with (ASSETS / "strings.toml").open("rb") as file:
        sections = tomllib.load(file)
    return {
        f"{room}.{key}": sentences
        for room, entries in sections.items()
        for key, sentences in entries.items()
    }


def say(key: str, language: str = "en", **values: Any) -> str:
    """Return the sentence behind a key, its `{names}` filled in.

    Args:
        key: Room and name, as in `data.empty_file`.
        language: `en` or `ko`; anything else is answered in English.
        values: What stands in the sentence's braces; a list stands there with commas.

    Raises:
        KeyError: If the table has no such key, or the sentence needs a value that is missing.
    """
    sentences = table()[key]
    shown = {
        name: _joined(value) if isinstance(value, list | tuple) else value
        for name, value in values.items()
    }
    return sentences.get(language, sentences["en"]).format(**shown)


def _joined(names: Sequence[Any]) -> str:
    """Return names with commas between them; in quotation marks those with a comma within."""
    return ", ".join(f"“{name}”" if "," in str(name) else str(name) for name in names) or "–"
