"""An export is there whole or not at all: written aside, renamed, removed on any failure.

.NAME.lock              there while NAME is being exported, and locked
.NAME.exporting-XXXX/   what is being written, and the earlier export while the two change places

What a process that was killed left is known by its lock, which is free.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from lora_studio.errors import StudioError
from lora_studio.files import is_disk_full, reason_of

GB = 1e9
SPARE_BYTES = 200_000_000
"""What is left free on a disk beside an export."""
EXPORTING = "exporting-"
TIDIED_WITHIN_S = 1.0
"""So long whoever removes what others left may have a target: that is no export."""
ASIDE = re.compile(rf"\.(.+)\.{EXPORTING}[^.]+")
EARLIER = ".earlier"


@contextmanager
def written_whole(target: Path, *, needed: int, replaces: bool = False) -> Iterator[Path]:
    """Give a path for a folder or a file, which becomes `target` when the block ends well.

    Args:
        target: The export.
        needed: Bytes that will be written; more than are free is refused before anything is.
        replaces: Whether an earlier export of that name goes when this one is whole.

    Raises:
        StudioError: If it is being exported already, there is something, the disk is too small,
            or it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, within_s=TIDIED_WITHIN_S):
            _clear(target)
            _refuse_there(target, replaces=replaces)
            require_space(target.parent, needed)
            aside = Path(mkdtemp(prefix=f".{target.name}.{EXPORTING}", dir=target.parent))
            try:
                yield aside / target.name
                _refuse_there(target, replaces=replaces)
                _put(aside, target)
            finally:
                _drop(aside, target)
    except (OSError, SafetensorError) as error:
        raise unwritten(error, target) from error


def clear(target: Path) -> None:
    """Remove what an export that was killed has left beside its target."""
    with suppress(OSError, StudioError), _alone(target):
        _clear(target)


def sweep(folder: Path) -> None:
    """Remove what exports that were killed have left in a folder; those going on stay."""
    found = [ASIDE.fullmatch(one.name) for one in folder.iterdir()] if folder.is_dir() else []
    for name in {one[1] for one in found if one}:
        clear(folder / name)


def require_space(folder: Path, needed: int) -> None:
    """Refuse what does not fit on the disk of a folder.

    Raises:
        StudioError: With what it takes and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise StudioError(
            "shipping.no_space", needed=f"{needed / GB:.1f}", free=f"{free / GB:.1f}",
            folder=str(folder),
        )  # fmt: skip


def unwritten(error: OSError | SafetensorError, target: Path) -> StudioError:
    """Return the sentence for what a disk said while an export was written."""
    if is_disk_full(error):
        return StudioError("shipping.disk_full", path=str(target))
    return StudioError("shipping.not_written", path=str(target), reason=reason_of(error))


@contextmanager
def _alone(target: Path, *, within_s: float = 0) -> Iterator[None]:
    """Keep a target to oneself.

    Args:
        target: The export.
        within_s: Seconds that whoever has it is given.

    Raises:
        StudioError: If another has it all that time.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=within_s)
    except Timeout as error:
        raise StudioError("shipping.being_exported", path=str(target)) from error
    try:
        yield
    finally:
        with suppress(OSError):  # who has opened it meanwhile sees that it is gone
            Path(lock.lock_file).unlink()
        lock.release()


def _refuse_there(target: Path, *, replaces: bool) -> None:
    if target.exists() and not replaces:
        raise StudioError("shipping.exists", path=str(target))


def _clear(target: Path) -> None:
    """Remove what was left beside a target that nobody else has."""
    for aside in target.parent.iterdir():
        match = ASIDE.fullmatch(aside.name)
        if match is not None and match[1] == target.name:
            _drop(aside, target)


def _drop(aside: Path, target: Path) -> None:
    """Remove what was written aside; a target that was moved there comes back.

    It may have ended between the two renames of `_put`.
    """
    if (aside / EARLIER).exists() and not target.exists():
        (aside / EARLIER).rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, target: Path) -> None:
    """Put what was written in the place of an earlier export, which stays until then."""
    if target.exists():
        target.rename(aside / EARLIER)
    (aside / target.name).rename(target)
