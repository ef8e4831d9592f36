"""Programs that draw curves of their own: which there are, and what they are told beforehand.

No torch and no tracker is imported here: the page asks whether they are installed.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.recipe import TrackerName
from lora_studio.settings import Settings

PROJECT = "lora-studio"
"""What a tracker files the runs under; a run has its own id as its name."""


@dataclass(frozen=True, slots=True)
class Tracker:
    """A program that takes the numbers of a training."""

    title: str
    """What it calls itself."""
    packages: tuple[str, ...]
    """Packages of which one must be installed; the first is the one to install."""


TRACKERS: dict[TrackerName, Tracker] = {
    "tensorboard": Tracker("TensorBoard", ("tensorboard", "tensorboardX")),
    "trackio": Tracker("Trackio", ("trackio",)),
    "wandb": Tracker("Weights & Biases", ("wandb",)),
}


def problems(chosen: Iterable[TrackerName]) -> list[StudioError]:
    """Return which of the chosen trackers cannot be used, as they are not installed."""
    trackers = [TRACKERS[name] for name in dict.fromkeys(chosen)]
    return [
        StudioError(
            "training.no_tracker",
            name="training.report_to",
            tracker=tracker.title,
            package=tracker.packages[0],
        )
        for tracker in trackers
        if not any(map(find_spec, tracker.packages))
    ]


def prepare(run: Path, settings: Settings, environ: MutableMapping[str, str] = os.environ) -> None:
    """Say where a run's trackers write to; what the environment says already stays.

    TensorBoard and W&B write into the run folder, so that they go with it; Trackio keeps all runs
    in a place of its own, which its dashboard reads. W&B stays on this machine unless it may use
    the network and has a key: else it would ask for one and end the run.

    Args:
        run: The run folder.
        settings: Whether the network may be used.
        environ: What is changed.
    """
    folder = run / "tracking"
    folder.mkdir(exist_ok=True)
    environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder))
    environ.setdefault("WANDB_DIR", str(folder))
    environ.setdefault("WANDB_PROJECT", PROJECT)
    if settings.offline or not _has_wandb_key(environ):
        environ.setdefault("WANDB_MODE", "offline")


def _has_wandb_key(environ: MutableMapping[str, str]) -> bool:
    """Say whether `wandb login` was made here: its key is a variable or a line in `.netrc`."""
    if environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)
