"""Where things live and what is allowed: read once at start from environment and command line.

A `Settings` is passed to whoever needs it; nothing here is a module constant, so that a test or
a second studio in one process can have its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from lora_studio.errors import StudioError

STARTER = "starter"
SPACE_TRAINING_S = 240
SPACE_RUNS = 5
SPACE_UPLOADS = 20
OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


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
    original_space: str | None = None
    """The Space that is shown to everybody (`LORA_STUDIO_SHOWCASE`, a public variable of it).

    A duplicate inherits its variables, so it can tell by this one that it is somebody's own.
    """
    signs_in: bool = False
    """Whether visitors of a Space can sign in with their account of the Hub, which then has set
    `OAUTH`: the Space's README says `hf_oauth: true`."""
    max_training_s: int | None = None
    """Longest training in seconds (`LORA_STUDIO_MAX_TRAINING_S`); None is no limit. A Space
    that is shown to everybody allows four minutes."""
    most_runs: int | None = None
    """How many runs are kept; where everybody may train, a visitor's oldest make room."""
    most_uploads: int | None = None
    """How many uploaded files are kept, likewise."""
    visitor: str | None = None
    """On a Space, whose studio this is; their runs and uploads lie apart."""
    stop_runs_on_exit: bool = False
    """Whether closing the app also stops what trains (`LORA_STUDIO_STOP_RUNS_ON_EXIT`)."""
    ready_worker: bool = True
    """Whether an app has a worker wait for the next training (`LORA_STUDIO_READY_WORKER`)."""
    webhook: str | None = field(default=None, repr=False)
    """Address that is told how a run ended (`LORA_STUDIO_WEBHOOK`); a secret, like the token."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Read the environment; `overrides` (from the command line) win where not None.

        Raises:
            StudioError: If a variable that should be a whole number is not one, or an address none.
        """
        env = os.environ if environ is None else environ
        user, _, password = env.get("LORA_STUDIO_AUTH", "").partition(":")
        space = env.get("SPACE_ID") or None
        original = env.get("LORA_STUDIO_SHOWCASE") or None
        is_showcase = space is not None and original in (None, space)
        settings = cls(
            home=Path(env.get("LORA_STUDIO_HOME") or Path.home() / "lora-studio").expanduser(),
            host="0.0.0.0" if space else "127.0.0.1",  # noqa: S104 - a Space is reached through its proxy
            port=_whole(env, "GRADIO_SERVER_PORT", 7860),
            auth=(user, password) if password else None,
            max_upload_mb=_whole(env, "LORA_STUDIO_MAX_UPLOAD_MB", 20 if space else 200),
            offline=_is_on(env.get("HF_HUB_OFFLINE")),
            hub_token=env.get("HF_TOKEN") or None,
            space_id=space,
            original_space=original,
            signs_in=space is not None and all(env.get(name) for name in OAUTH),
            max_training_s=_whole(
                env, "LORA_STUDIO_MAX_TRAINING_S", SPACE_TRAINING_S if is_showcase else 0
            )
            or None,
            most_runs=SPACE_RUNS if is_showcase else None,
            most_uploads=SPACE_UPLOADS if is_showcase else None,
            stop_runs_on_exit=_is_on(env.get("LORA_STUDIO_STOP_RUNS_ON_EXIT")),
            ready_worker=_is_on(env.get("LORA_STUDIO_READY_WORKER") or "1"),
            webhook=_address(env, "LORA_STUDIO_WEBHOOK"),
        )
        given = {name: value for name, value in overrides.items() if value is not None}
        return replace(settings, **given)

    def for_visitor(self, visitor: str) -> Self:
        """Return the settings of one visitor: the same machine, their own runs and uploads."""
        return replace(self, visitor=visitor)

    @property
    def is_showcase(self) -> bool:
        """Whether this is a Space for everybody to try: the starter model only, little time.

        A Space is one until it is known to be a duplicate.
        """
        return self.space_id is not None and self.original_space in (None, self.space_id)

    def token_for(self, token: str | None) -> str | Literal[False] | None:
        """Return the token that goes to the Hub: somebody's own, or else this machine's, if any.

        A Space's own is its owner's: a visitor comes with one, or with False, which is none.
        """
        return token or (False if self.space_id else self.hub_token)

    @property
    def visitors(self) -> Path:
        """The folder of visitors' parts."""
        return self.home / "visitors"

    @property
    def private(self) -> Path:
        """What belongs to one person: the home folder itself, or a visitor's part of it."""
        return self.visitors / self.visitor if self.visitor else self.home

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.private / "runs"

    @property
    def adapters(self) -> Path:
        """The folder of adapters that no run made: from elsewhere, or made smaller."""
        return self.private / "adapters"

    @property
    def exports(self) -> Path:
        """The folder of what was made of adapters for other programs."""
        return self.private / "exports"

    @property
    def trash(self) -> Path:
        """The folder of what was deleted and can still be put back."""
        return self.private / "trash"

    @property
    def models(self) -> Path:
        """The folder of local models and of the converted starter model."""
        return self.home / "models"

    @property
    def uploads(self) -> Path:
        """The folder of uploaded and pasted text."""
        return self.private / "uploads"

    @property
    def recipes(self) -> Path:
        """The folder of recipes saved under a name."""
        return self.private / "recipes"

    @property
    def cache(self) -> Path:
        """What can be made again: inspections, previews, zips."""
        return self.home / "cache"

    @property
    def prepared(self) -> Path:
        """Encoded data: what a preview has made, a training need not make again."""
        return self.cache / "prepared"


def _whole(env: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(env.get(name) or default)
    except ValueError as error:
        raise StudioError("settings.not_whole", name=name, value=env[name]) from error


def _address(env: Mapping[str, str], name: str) -> str | None:
    """Return a web address; one that cannot be used is not repeated, as it may be a secret."""
    value = env.get(name, "").strip()
    try:
        parts = urlsplit(value)
    except ValueError as error:
        raise StudioError("settings.not_an_address", name=name) from error
    if value and not (parts.scheme in ("http", "https") and parts.hostname):
        raise StudioError("settings.not_an_address", name=name)
    return value or None


def _is_on(value: str | None) -> bool:
    return (value or "").strip().lower() in {"1", "true", "yes", "on"}
