"""How much room what is kept takes, and how much is left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from lora_studio.files import size_of
from lora_studio.library.names import run_folders
from lora_studio.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUse:
    """Bytes by what they are for, largest first, and what is free beside them."""

    parts: tuple[tuple[str, int], ...]
    """`adapters`, `checkpoints`, `runs` (the rest of them), `uploads`, `exports`, `prepared`,
    `models`, `trash`, each with its bytes; what is empty is left out."""
    free: int
    """Bytes that are left on the disk of the home folder."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(size for _, size in self.parts)


def disk_use(settings: Settings) -> DiskUse:
    """Add up what one person's studio keeps; the models' part is everybody's on this machine.

    A visitor of a Space is told of their own things alone.
    """
    runs = run_folders(settings)
    own = [run for run in runs if run.path.parent == settings.runs]
    checkpoints = sum(size_of(run.checkpoints) for run in own)
    adapters = sum(size_of(run.adapter) for run in own)
    parts = {
        "adapters": adapters + size_of(settings.adapters),
        "checkpoints": checkpoints,
        "runs": size_of(settings.runs) - checkpoints - adapters,
        "uploads": size_of(settings.uploads),
        "exports": size_of(settings.exports),
        "trash": size_of(settings.trash),
    }
    if settings.visitor is None:
        parts["prepared"] = size_of(settings.prepared)
        hub = Path(constants.HF_HUB_CACHE)
        parts["models"] = size_of(settings.models) + size_of(hub)
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return DiskUse(
        parts=tuple((name, size) for name, size in ordered if size),
        free=shutil.disk_usage(settings.home).free,
    )
