"""Recipes saved under a name: one YAML file each, which a person may also put there or take away.

A name is never a path: it is written so that it is a file name everywhere, and looked up among the
files that exist.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from lora_studio.errors import RecipeError, StudioError
from lora_studio.files import reason_of, write_whole
from lora_studio.recipe import Recipe
from lora_studio.recipes.upgrade import read_recipe
from lora_studio.settings import Settings

SUFFIX = ".yaml"
MOST_RECIPES = 200
NAME_CHARACTERS = 80
FILE_BYTES = 200
"""Longest file name in UTF-8; file systems take 255 bytes."""
LARGEST_BYTES = 1_000_000
# What Windows does not take in a name, the percent sign that stands in for it, and a first dot.
_UNSAFE = re.compile(r'[/\\:*?"<>|%\x00-\x1f\x7f]|^\.|[. ]$')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_ESCAPE = re.compile(r"%([0-9A-F]{2})")


@dataclass(frozen=True, slots=True)
class Saved:
    """A recipe of the library."""

    name: str
    """What it was saved as."""
    saved_at: float
    """When, in seconds since 1970."""
    recipe: Recipe | None
    """What it says, None if that cannot be read."""
    problem: StudioError | None = None
    """Why not."""


class Library:
    """One person's saved recipes.

    Args:
        folder: Where they lie; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the library of the person whose settings these are."""
        return cls(settings.recipes)

    def listed(self) -> list[Saved]:
        """Return every recipe, the newest first; one that cannot be read says why."""
        found = [_read(file) for file in self._files().values()]
        return sorted((saved for saved in found if saved), key=lambda saved: -saved.saved_at)

    def load(self, name: str) -> Recipe:
        """Return a saved recipe.

        Raises:
            RecipeError: If there is none of that name, or it cannot be read.
        """
        file = self._find(name)
        saved = _read(file)
        if saved is None:
            raise _unknown(name)
        if saved.recipe is None:
            problem = saved.problem or StudioError("recipes.unreadable", file=file.name)
            raise problem if isinstance(problem, RecipeError) else RecipeError.of([problem])
        return saved.recipe

    def save(self, name: str, recipe: Recipe, *, overwrite: bool = False) -> str:
        """Save a recipe and return the name as it is listed.

        Raises:
            StudioError: If the name cannot be one; `recipes.exists` if it is taken and
                `overwrite` is not said; if there are too many, or the disk does not take it.
        """
        name = checked_name(name)
        text = recipe.to_yaml()
        if len(text.encode()) > LARGEST_BYTES:
            raise StudioError("recipes.too_large", file=name)
        known = self._files()
        # File systems of Windows and macOS take names that differ in case only for the same.
        name = next((other for other in known if other.casefold() == name.casefold()), name)
        if name in known and not overwrite:
            raise StudioError("recipes.exists", name=name)
        if name not in known and len(known) >= MOST_RECIPES:
            raise StudioError("recipes.too_many", most=MOST_RECIPES)
        file = known.get(name, self._folder / file_name(name))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, text)
        except OSError as error:
            raise StudioError("recipes.not_written", name=name, reason=reason_of(error)) from error
        return name

    def delete(self, name: str) -> None:
        """Delete a saved recipe.

        Raises:
            RecipeError: If there is none of that name.
        """
        try:
            self._find(name).unlink()
        except FileNotFoundError as error:
            raise _unknown(name) from error

    def _find(self, name: str) -> Path:
        file = self._files().get(unicodedata.normalize("NFC", name).strip())
        if file is None:
            raise _unknown(name)
        return file

    def _files(self) -> dict[str, Path]:
        return {
            listed_name(file.name): file
            for file in sorted(self._folder.glob(f"*{SUFFIX}"))
            if not file.name.startswith(".") and file.is_file()
        }


def checked_name(name: str) -> str:
    """Return a name in the form it is listed in.

    Raises:
        StudioError: If it is empty, too long, or holds line breaks or other control characters.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise StudioError("recipes.no_name")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise StudioError("recipes.bad_name")
    if len(name) > NAME_CHARACTERS or len(file_name(name).encode()) > FILE_BYTES:
        raise StudioError("recipes.long_name", most=NAME_CHARACTERS)
    return name


def file_name(name: str) -> str:
    """Return a name as a file name; letters of any script stay, `listed_name` leads back."""
    safe = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", name)
    if _RESERVED.fullmatch(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    return f"{safe}{SUFFIX}"


def listed_name(file: str) -> str:
    """Return the name that a file is listed under."""
    name = unicodedata.normalize("NFC", file.removesuffix(SUFFIX))
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name)


def _read(file: Path) -> Saved | None:
    """Return what a file holds, None if it is gone meanwhile."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return None
    recipe, problem = _parsed(file, about.st_mtime_ns, about.st_size)
    return Saved(listed_name(file.name), about.st_mtime, recipe, problem)


@lru_cache(maxsize=2 * MOST_RECIPES)
def _parsed(file: Path, _changed_ns: int, size: int) -> tuple[Recipe | None, StudioError | None]:
    """Read a file once for as long as it stays as it is."""
    if size > LARGEST_BYTES:
        return None, StudioError("recipes.too_large", file=file.name)
    try:
        return read_recipe(file.read_text(encoding="utf-8")), None
    except RecipeError as error:
        return None, error
    except (OSError, UnicodeDecodeError):
        return None, StudioError("recipes.unreadable", file=file.name)


def _unknown(name: str) -> RecipeError:
    return RecipeError.of([StudioError("recipes.unknown", name=name)])
