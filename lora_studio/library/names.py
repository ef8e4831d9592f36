"""From an adapter's name to its folder and its base. Only folders and small files are read.

A name is a run's id (its newest adapter), `RUN@STEP` (the adapter of a checkpoint), or the id of a
folder in `home/adapters/`, which came from elsewhere or was made of another. It is compared with
the names that exist and never joined to a path.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lora_studio.adapters.configuration import WEIGHTS, weights_of
from lora_studio.adapters.lineage import Lineage
from lora_studio.errors import AdapterError, ModelError, RunError
from lora_studio.files import write_whole
from lora_studio.hardware import Hardware, default_precision, resolve_precision
from lora_studio.recipe import Recipe
from lora_studio.recipes.sharing import read_beside
from lora_studio.runs.events import new_lines, parsed
from lora_studio.runs.folder import RunFolder, listed, newest_first
from lora_studio.settings import Settings
from lora_studio.wording import ASSETS

RECORDED = ASSETS / "recorded"
"""The run that is shipped with the program and shown on a Space."""
AT = "@"
PEFT, ORIGIN = "adapter", "origin.json"
STARTED = b'"event": "started"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An adapter that is there, and what it needs to answer."""

    name: str
    """What it goes by everywhere."""
    folder: Path
    """PEFT's files."""
    source: str
    """Its base: `starter`, a Hub id or a folder, as a recipe says it."""
    precision: str
    """What the base was held in while it was trained, or `auto` where that is not known."""
    run: RunFolder | None
    """The run it is of; None for one from elsewhere."""
    fingerprint: str | None
    """Of the base's weights, as `models.fingerprint` makes it; None where it is not known."""
    labels: tuple[str, ...]
    """The classes it sorts texts into, in their order; none if it writes."""
    seed: int
    """What the untrained head of a classifier is drawn from."""
    trained_on: str | None = None
    """As in `Origin`."""

    @property
    def home(self) -> Path:
        """The folder that keeps what is known of it: its run's, or its own."""
        return self.folder.parent if self.run is None else self.run.path

    @property
    def step(self) -> str:
        """Of the run's checkpoint that it is; empty for any other."""
        return "" if self.run is None else self.name.partition(AT)[2]

    def weights(self) -> str:
        """Return what tells its weights from others; see `adapters.configuration.weights_of`.

        Raises:
            AdapterError: If they are not there.
        """
        try:
            return weights_of(self.folder)
        except OSError as error:
            raise AdapterError("library.no_weights", name=self.name) from error

    @property
    def lineage(self) -> Lineage:
        """What is known of its base, as it travels with it."""
        return Lineage(base_fingerprint=self.fingerprint, trained_on=self.trained_on)

    def precision_on(self, hardware: Hardware) -> str:
        """Return what its base is held in on a machine: what it was held in while it was trained.

        One from elsewhere was trained on another machine: what that can do and this one cannot is
        what this one does by itself.

        Raises:
            ModelError: If it is of a run here, and the machine cannot use that run's format.
        """
        try:
            return resolve_precision(self.precision, hardware)
        except ModelError:
            if self.run is not None:
                raise
            return default_precision(hardware)

    def read_recipe(self) -> Recipe | None:
        """Return what it, or what it was made of, was trained with; None where none is known."""
        return self.run.read_recipe() if self.run is not None else read_beside(self.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an adapter that no run made has come from: `origin.json`, written once."""

    kind: str
    """`folder`, `zip`, `hub` or `shrunk`."""
    of: str
    """The folder's, file's or repository's name, or the adapter that it was made of."""
    source: str
    """Its base, as in `Named`."""
    precision: str = "auto"
    fingerprint: str | None = None
    trained_on: str | None = None
    """The base that it says it was trained on, where that has another name and the weights are
    not known to be the same."""
    labels: tuple[str, ...] = ()
    seed: int = 42
    created: float = 0.0
    """When, in seconds since 1970."""
    rank: int | None = None
    """Of one made smaller, its new rank,"""
    error: float | None = None
    """and ‖ΔW - ΔW'‖ / ‖ΔW‖."""


def resolve(name: str, settings: Settings) -> Named:
    """Return the adapter that a name stands for.

    Raises:
        RunError: If there is a run of that name, but it has no such adapter.
        AdapterError: If there is nothing of that name, or its origin cannot be read.
    """
    run_id, at, step = name.rpartition(AT) if AT in name else (name, "", "")
    for run in run_folders(settings):
        if run.id == run_id:
            return _of_run(run, name, step if at else None)
    for folder in adapter_folders(settings):
        if folder.name == name:
            return _from_elsewhere(folder)
    raise AdapterError("library.unknown", name=name)


def run_folders(settings: Settings) -> list[RunFolder]:
    """Return the folders of all runs, newest first; on a Space the recorded one stands last."""
    return listed(settings.runs) + (listed(RECORDED) if settings.space_id else [])


def adapter_folders(settings: Settings) -> list[Path]:
    """Return the folders of all adapters that no run made, newest first."""
    found = newest_first(settings.adapters.glob(f"*/{ORIGIN}"))
    return [file.parent for file in found if not file.parent.name.startswith(".")]


def adapter_names(run: RunFolder) -> list[str]:
    """Return the names of a run's adapters: the run's id, then its checkpoints, newest first."""
    if run.newest_adapter() is None:
        return []
    return [run.id, *(f"{run.id}{AT}{step}" for step in reversed(run.checkpoint_steps()))]


def read_origin(folder: Path) -> Origin:
    """Return where an adapter of `home/adapters` has come from.

    Raises:
        AdapterError: If its file is gone or says something else.
    """
    try:
        said: dict[str, Any] = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        known = {entry.name for entry in fields(Origin)}
        about = {name: value for name, value in said.items() if name in known}
        return Origin(**about | {"labels": tuple(about.get("labels", ()))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise AdapterError("library.broken_origin", name=folder.name) from error


def write_origin(folder: Path, origin: Origin) -> None:
    """Write it beside an adapter's files."""
    write_whole(folder / ORIGIN, json.dumps(asdict(origin), ensure_ascii=False, indent=1))


def free_folder(parent: Path, stem: str, letter: str = "a") -> Path:
    """Make a folder that is nobody's yet and return it.

    Its name ends with a letter and a number, that of a new run with a number alone: so no two
    have one name. Adapters have `a`, runs that were put back beside another have `b`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / f"{stem}-{letter}{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError  # pragma: no cover - the count has no end


def _of_run(run: RunFolder, name: str, step: str | None) -> Named:
    if step is None:
        folder = run.newest_adapter()
    else:
        known = {str(one): run.checkpoint(one) for one in run.checkpoint_steps()}
        folder = known.get(step)
        if folder is None:
            raise RunError("library.no_checkpoint", run=run.id, step=step, known=list(known))
    if folder is None:
        raise RunError("library.no_adapter", run=run.id)
    recipe, started = run.read_recipe(), _started(run)
    return Named(
        name=name,
        folder=folder,
        source=recipe.model.source,
        precision=started.get("precision", recipe.precision),
        run=run,
        fingerprint=started.get("base_fingerprint"),
        labels=tuple(started.get("labels") or ()),
        seed=recipe.seed,
    )


def _started(run: RunFolder) -> dict[str, Any]:
    """Return the event that says what a run was started with; it stands near the beginning."""
    for lines, _ in new_lines(run.events, 0):
        for line in lines:
            if STARTED in line:
                return parsed(line) or {}
    return {}


def _from_elsewhere(folder: Path) -> Named:
    origin = read_origin(folder)
    if not (folder / PEFT / WEIGHTS).is_file():
        raise AdapterError("library.no_weights", name=folder.name)
    return Named(
        name=folder.name,
        folder=folder / PEFT,
        source=origin.source,
        precision=origin.precision,
        run=None,
        fingerprint=origin.fingerprint,
        labels=origin.labels,
        seed=origin.seed,
        trained_on=origin.trained_on,
    )
