"""Where things live and what is allowed: read once at start from environment and command line.

A `Settings` is passed to whoever needs it; nothing here is a module constant, so that a test or
a second studio in one process can have its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

STARTER = "starter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One studio's surroundings."""

    home: Path
    """Runs, models and uploads live under it (`LORA_STUDIO_HOME`, default `~/lora-studio`)."""
    host: str = "127.0.0.1"
    """Address to listen on; anything beyond loopback needs `auth`."""
    port: int = 7860
    """TCP port to listen on."""
    auth: tuple[str, str] | None = field(default=None, repr=False)
    """User and password (`LORA_STUDIO_AUTH=user:password`)."""
    max_upload_mb: int = 200
    """Largest file the page takes, in megabytes (`LORA_STUDIO_MAX_UPLOAD_MB`)."""
    model_folders: tuple[Path, ...] = ()
    """Folders whose subfolders the page offers as local models, beside `home/models`."""
    offline: bool = False
    """Never ask the Hub (`HF_HUB_OFFLINE`)."""
    hub_token: str | None = field(default=None, repr=False)
    """Token for gated repositories (`HF_TOKEN`); never written to disk or log."""
    space_id: str | None = None
    """Set when running as a Hugging Face Space (`SPACE_ID`)."""
    max_training_s: int | None = None
    """Longest training in seconds; None is no limit. A Space allows four minutes."""
    visitor: str | None = None
    """On a Space, whose studio this is; their runs and uploads lie apart."""
    stop_runs_on_exit: bool = False
    """Whether closing the app also stops what trains (`LORA_STUDIO_STOP_RUNS_ON_EXIT`)."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Read the environment; `overrides` (from the command line) win where not None."""
        env = os.environ if environ is None else environ
        user, _, password = env.get("LORA_STUDIO_AUTH", "").partition(":")
        space = env.get("SPACE_ID") or None
        settings = cls(
            home=Path(env.get("LORA_STUDIO_HOME") or Path.home() / "lora-studio").expanduser(),
            host="0.0.0.0" if space else "127.0.0.1",  # noqa: S104 - a Space is reached through its proxy
            port=int(env.get("GRADIO_SERVER_PORT") or 7860),
            auth=(user, password) if password else None,
            max_upload_mb=int(env.get("LORA_STUDIO_MAX_UPLOAD_MB") or (20 if space else 200)),
            offline=_is_on(env.get("HF_HUB_OFFLINE")),
            hub_token=env.get("HF_TOKEN") or None,
            space_id=space,
            max_training_s=240 if space else None,
            stop_runs_on_exit=_is_on(env.get("LORA_STUDIO_STOP_RUNS_ON_EXIT")),
        )
        given = {name: value for name, value in overrides.items() if value is not None}
        return replace(settings, **given)

    def for_visitor(self, visitor: str) -> Self:
        """Return the settings of one visitor: the same machine, their own runs and uploads."""
        return replace(self, visitor=visitor)

    @property
    def private(self) -> Path:
        """What belongs to one person: the home folder itself, or a visitor's part of it."""
        return self.home / "visitors" / self.visitor if self.visitor else self.home

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.private / "runs"

    @property
    def models(self) -> Path:
        """The folder of local models and of the converted starter model."""
        return self.home / "models"

    @property
    def uploads(self) -> Path:
        """The folder of uploaded and pasted text."""
        return self.private / "uploads"

    @property
    def cache(self) -> Path:
        """What can be made again: inspections, previews, zips."""
        return self.home / "cache"


def _is_on(value: str | None) -> bool:
    return (value or "").strip().lower() in {"1", "true", "yes", "on"}
