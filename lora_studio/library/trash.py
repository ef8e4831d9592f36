"""What was deleted, and how it comes back.

trash/<when>-<id>/
  deleted.json    what it was and when it was deleted
  folder/         the run's or the adapter's own folder

A folder is moved and never copied, so nothing is there twice or half.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.files import reason_of, size_of, write_whole
from lora_studio.library.names import free_folder
from lora_studio.settings import Settings

NOTE, FOLDER = "deleted.json", "folder"
KEPT_S = 30 * 24 * 3600.0
"""So long what was deleted can be put back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """Something in the trash."""

    key: str
    """What it goes by there."""
    kind: str
    """`run` or `adapter`."""
    id: str
    """What it went by before."""
    name: str
    """What it was shown as."""
    deleted_at: float
    """Seconds since 1970."""
    bytes: int


class Trash:
    """What one person deleted.

    Args:
        settings: Where it lies, and where it came from.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.trash
        self._homes = {"run": settings.runs, "adapter": settings.adapters}
        self._most = settings.most_runs
        """On a Space that is shown to everybody, so many stay."""

    def put(self, folder: Path, *, kind: str, name: str) -> str:
        """Move a run's or an adapter's folder here; return what it goes by.

        Raises:
            StudioError: If somebody else was quicker, or the disk does not take the note.
        """
        now = time.time()
        when = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        place = self._folder / f"{when}.{int(now % 1 * 1000):03d}-{folder.name}"
        note = {"kind": kind, "id": folder.name, "name": name, "deleted_at": now}
        try:
            place.mkdir(parents=True)
            write_whole(place / NOTE, json.dumps(note, ensure_ascii=False))
            folder.rename(place / FOLDER)
        except FileNotFoundError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise StudioError("library.gone", name=folder.name) from error
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise StudioError(
                "library.not_deleted", name=folder.name, reason=reason_of(error)
            ) from error
        self._make_room()
        return place.name

    def put_back(self, key: str) -> str:
        """Move something back to where it was; return its id, a new one where that is taken.

        Raises:
            StudioError: If it is not here any more.
        """
        found = self._find(key)
        home = self._homes[found.kind]
        home.mkdir(parents=True, exist_ok=True)
        target = home / found.id
        if target.exists():
            target = free_folder(home, found.id, "b" if found.kind == "run" else "a")
            target.rmdir()
        try:
            (self._folder / key / FOLDER).rename(target)
        except FileNotFoundError as error:
            raise StudioError("library.not_in_trash", name=found.name) from error
        except OSError as error:
            raise StudioError(
                "library.not_restored", name=found.name, reason=reason_of(error)
            ) from error
        shutil.rmtree(self._folder / key, ignore_errors=True)
        return target.name

    def listed(self) -> list[Deleted]:
        """Return what can be put back, the latest first; what lies here too long goes."""
        found = [one for one in map(_read, self._places()) if one is not None]
        old = [one for one in found if time.time() - one.deleted_at > KEPT_S]
        self._drop(one.key for one in old)
        kept = [one for one in found if one not in old]
        return sorted(kept, key=lambda one: -one.deleted_at)

    def empty(self) -> int:
        """Delete all of it for good, what is half gone too; return the bytes that are free now."""
        before = size_of(self._folder)
        self._drop(place.name for place in self._folder.glob("*"))
        return before - size_of(self._folder)

    def _make_room(self) -> None:
        if self._most is not None:
            self._drop(one.key for one in self.listed()[self._most :])

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            shutil.rmtree(self._folder / key, ignore_errors=True)

    def _find(self, key: str) -> Deleted:
        for place in self._places():
            if place.name == key and (found := _read(place)) is not None:
                return found
        raise StudioError("library.not_in_trash", name=key)

    def _places(self) -> list[Path]:
        return [file.parent for file in self._folder.glob(f"*/{NOTE}")]


def _read(place: Path) -> Deleted | None:
    """Return what lies in a folder of the trash, None for what is half put or half gone."""
    try:
        said = json.loads((place / NOTE).read_text(encoding="utf-8"))
        found = Deleted(
            key=place.name,
            kind=str(said["kind"]),
            id=str(said["id"]),
            name=str(said["name"]),
            deleted_at=float(said["deleted_at"]),
            bytes=size_of(place / FOLDER),
        )
    except (OSError, ValueError, TypeError, LookupError):
        return None
    is_whole = found.kind in ("run", "adapter") and (place / FOLDER).is_dir()
    return found if is_whole and Path(found.id).name == found.id else None
