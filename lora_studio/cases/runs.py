"""Runs: their folders, and what each has been through."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

from lora_studio.cases.models import model_folder
from lora_studio.errors import RunError
from lora_studio.library.names import RECORDED, run_folders
from lora_studio.recipe import Recipe
from lora_studio.runs import folder as run_folder
from lora_studio.runs import housekeeping
from lora_studio.runs.accelerator import Accelerator
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.settings import Settings


class Runs:
    """The runs of one person, as their folders tell.

    Args:
        settings: Where they are.
        accelerator: Says which one trains.
    """

    def __init__(self, settings: Settings, accelerator: Accelerator) -> None:
        self._settings = settings
        self._accelerator = accelerator
        self._histories: dict[str, tuple[tuple[int, int], History]] = {}
        """With which file its recipe is, and when it was written, in nanoseconds."""

    def history(self, run_id: str) -> History:
        """Return what a run has been through so far.

        Raises:
            RunError: If there is no such run.
        """
        known = self._histories.get(run_id)
        return self._known(self._find(run_id) if known is None else known[1].folder)

    def folders(self) -> list[RunFolder]:
        """Return the folders of all runs, newest first; on a Space the recorded one stands last."""
        return run_folders(self._settings)

    def all(self) -> list[History]:
        """Return what each run has been through so far, in the order of `folders`."""
        return [self._known(folder) for folder in self.folders()]

    def active(self) -> History | None:
        """Return the run that trains now, if it is one of this studio's."""
        job = self._accelerator.holder()
        if job is None or job.kind != "training" or job.visitor != self._settings.visitor:
            return None
        try:
            history = self.history(job.names[0])
        except RunError:
            return None
        return None if history.is_over else history

    def is_recorded(self, folder: RunFolder) -> bool:
        """Return whether a run was shipped with the program and cannot be changed."""
        return folder.path.parent == RECORDED

    def adapter(self, history: History) -> Path:
        """Return the folder of a run's newest adapter.

        Raises:
            RunError: If it has none.
        """
        adapter = history.folder.newest_adapter()
        if adapter is None:
            raise RunError("run.no_adapter", run=history.folder.id, status=history.status)
        return adapter

    def create(self, recipe: Recipe) -> RunFolder:
        """Make the folder of a new run; files and model folders are noted by their whole path.

        Raises:
            RunError: If the disk is full.
        """
        files = [str(Path(file).expanduser().resolve()) for file in recipe.data.files]
        found = model_folder(recipe.model.source)
        model = replace(recipe.model, source=str(found)) if found else recipe.model
        try:
            complete = replace(recipe.with_files(files), model=model)
            created = run_folder.create(self._settings.runs, complete)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise RunError("run.disk_full", home=str(self._settings.home)) from error
            raise
        if self._settings.most_runs:
            housekeeping.keep_newest(self._settings.runs, self._settings.most_runs)
        return created

    def _find(self, run_id: str) -> RunFolder:
        if self._settings.space_id and run_id in {item.id for item in run_folder.listed(RECORDED)}:
            return run_folder.find(RECORDED, run_id)
        return run_folder.find(self._settings.runs, run_id)

    def _known(self, folder: RunFolder) -> History:
        """Return a run's history with what is new; of a folder that is gone nothing is known.

        One that was deleted may have left its name to another.
        """
        try:
            recipe = folder.recipe.stat()
        except FileNotFoundError as error:
            raise RunError("run.unknown", run=folder.id) from error
        written = recipe.st_ino, recipe.st_mtime_ns
        known = self._histories.get(folder.id)
        if known is None or known[0] != written:
            known = self._histories[folder.id] = written, History(folder)
        return known[1].update()
