"""Uploaded and pasted text, kept in the home folder so that a reload or a restart finds it.

The page only ever holds names of what lies here; a name is compared with the names that exist
and never joined to a path.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from lora_studio.runs.housekeeping import keep_newest
from lora_studio.settings import Settings

PREFIX_CHARS = 12


class Shelf:
    """One person's uploads: a folder per content, holding the file under its own name.

    Args:
        folder: Where they lie.
        most: How many contents are kept; a new one takes the place of the oldest. None keeps all.
    """

    def __init__(self, folder: Path, *, most: int | None = None) -> None:
        self._folder = folder
        self._most = most

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the shelf of the person whose settings these are."""
        return cls(settings.uploads, most=settings.most_uploads)

    def keep(self, file: Path) -> str:
        """Copy a file in, unless it is there already, and return its name on the shelf."""
        with file.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()[:PREFIX_CHARS]
        place = self._folder / digest
        target = place / file.name
        if not target.exists():
            place.mkdir(parents=True, exist_ok=True)
            partial = place / f".{file.name}.partial"
            shutil.copyfile(file, partial)
            partial.replace(target)
            if self._most:
                keep_newest(self._folder, self._most)
        return f"{digest}/{file.name}"

    def keep_text(self, text: str, name: str) -> str:
        """Keep pasted text as a file and return its name on the shelf."""
        self._folder.mkdir(parents=True, exist_ok=True)
        loose = self._folder / name
        loose.write_text(text, encoding="utf-8")
        try:
            return self.keep(loose)
        finally:
            loose.unlink()

    def paths(self, names: Iterable[str]) -> list[str]:
        """Return the paths of those names that are on the shelf."""
        known = self._known()
        return [str(known[name]) for name in names if name in known]

    def names(self, paths: Sequence[str]) -> tuple[list[str], list[str]]:
        """Sort a recipe's paths into names on the shelf and file names that are not here."""
        known = {str(path): name for name, path in self._known().items()}
        here = [known[path] for path in paths if path in known]
        return here, [Path(path).name for path in paths if path not in known]

    def _known(self) -> dict[str, Path]:
        return {
            f"{path.parent.name}/{path.name}": path.resolve()
            for path in self._folder.glob("*/*")
            if path.is_file() and not path.name.endswith(".partial")
        }
