"""One table, two languages: nothing missing, nothing left over, the same values in both."""

from __future__ import annotations

import ast
import re
import string
from functools import cache
from pathlib import Path

import pytest

import lora_studio
from lora_studio.recipe import BOUNDS
from lora_studio.wording import ASSETS, LANGUAGES, say, table

PACKAGE = Path(lora_studio.__file__).parent
SCRIPTS = ("live.js", "head.js", "live.html", "first.js")
# Calls that take a key of the page's section, without its name.
PAGE_CALLS = {"voice", "text"}
# Sections whose keys are put together from the section's name and a name that stands elsewhere.
BY_NAME = {"page", "cli"}
KEY = re.compile(r"[a-z]+\.[a-z0-9_]+")


@cache
def modules() -> dict[Path, ast.Module]:
    return {
        file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))
    }


def placeholders(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def pattern(node: ast.JoinedStr) -> str:
    """Return an f-string as a regular expression, its braces standing for anything."""
    parts = [
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+"
        for part in node.values
    ]
    return "".join(parts)


@cache
def literals() -> tuple[frozenset[str], tuple[re.Pattern[str], ...]]:
    """Return every text in the package, and every f-string that may be a key."""
    texts, patterns = set(), set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                written = "".join(str(p.value) for p in node.values if isinstance(p, ast.Constant))
                whole_section = written[:-1] in BY_NAME
                if re.fullmatch(r"[a-z_.]*[a-z][a-z_.]*", written) and not whole_section:
                    patterns.add(pattern(node))
    return frozenset(texts), tuple(map(re.compile, patterns))


def calls() -> list[tuple[str, str, ast.Call]]:
    """Return (where, key, call) for each call with a key written out."""
    found = []
    for file, tree in modules().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            first = node.args[0]
            if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            where = f"{file.relative_to(PACKAGE)}:{node.lineno}"
            if name in PAGE_CALLS and "ui" in file.parts and isinstance(node.func, ast.Name):
                found.append((where, f"page.{first.value}", node))
            elif (name == "say" or name.endswith("Error")) and KEY.fullmatch(first.value):
                found.append((where, first.value, node))
    return found


@pytest.mark.parametrize("key", table())
def test_a_sentence_is_there_in_both_languages_with_the_same_values(key: str) -> None:
    sentences = table()[key]
    assert set(sentences) == set(LANGUAGES)
    assert all(sentence.strip() for sentence in sentences.values())
    assert placeholders(sentences["en"]) == placeholders(sentences["ko"])


def test_every_key_written_in_the_code_is_in_the_table() -> None:
    missing = [f"{where} {key}" for where, key, _ in calls() if key not in table()]
    assert not missing


def test_every_call_gives_its_sentence_all_the_values() -> None:
    short = []
    for where, key, call in calls():
        given = {keyword.arg for keyword in call.keywords}
        if None not in given and not placeholders(table()[key]["en"]) <= given:
            short.append(f"{where} {key} lacks {placeholders(table()[key]['en']) - given}")
    assert not short


def test_every_key_of_the_table_is_used() -> None:
    texts, patterns = literals()
    scripts = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)

    def is_used(key: str) -> bool:
        room, _, name = key.partition(".")
        if room == "help":
            return name in {path.replace(".", "_") for path in _paths()}
        # A control's label goes by the last part of its setting's name.
        names = {key, name} if room in BY_NAME else {key}
        return (
            not texts.isdisjoint(names)
            or (room == "page" and name in {path.rpartition(".")[2] for path in _paths()})
            or any(found.fullmatch(name) for found in patterns for name in names)
            or (room == "page" and f"words.{name.partition('_')[2]}" in scripts)
        )

    assert [key for key in table() if not is_used(key)] == []


def _paths() -> set[str]:
    """Return the settings that a page's control may explain."""
    from dataclasses import fields

    from lora_studio.recipe import Recipe

    recipe = Recipe()
    sections = {
        f"{entry.name}.{inner.name}"
        for entry in fields(recipe)
        if hasattr(getattr(recipe, entry.name), "__dataclass_fields__")
        for inner in fields(getattr(recipe, entry.name))
    }
    return {entry.name for entry in fields(recipe)} | sections | set(BOUNDS)


def test_an_unknown_language_is_answered_in_english() -> None:
    assert say("run.unknown", "fr", run="a") == say("run.unknown", "en", run="a")


def test_values_are_never_read_as_placeholders() -> None:
    assert "{0}{x}" in say("run.unknown", "ko", run="{0}{x}")
