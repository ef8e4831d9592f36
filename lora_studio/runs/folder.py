"""One run's folder: what lies where.

runs/<id>/
  recipe.yaml     written once, complete
  data/           fingerprint and the encoded split as Arrow
  process.json    pid and start time of the worker
  events.jsonl    append-only, one JSON object a line
  stdout.log      the worker's output
  stop            flag: "keep", "discard" or "pause"
  queued          its place in the line, while it waits for the accelerator
  checkpoints/    what the trainer saved on the way
  adapter/        the result, in PEFT's format
"""

from __future__ import annotations

import itertools
import re
import shutil
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import RecipeError, RunError, StudioError
from lora_studio.files import write_whole
from lora_studio.recipe import Recipe
from lora_studio.recipes.upgrade import read_recipe

WEIGHTS = "adapter_model.safetensors"
LAST_WRITTEN = "trainer_state.json"
"""What the trainer writes into a checkpoint when all else is there."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run; nothing is read or written except by the methods that say so."""

    path: Path

    @property
    def id(self) -> str:
        """The run's name on the command line and the page."""
        return self.path.name

    @property
    def recipe(self) -> Path:
        """The recipe file."""
        return self.path / "recipe.yaml"

    @property
    def data(self) -> Path:
        """The encoded rows."""
        return self.path / "data"

    @property
    def process(self) -> Path:
        """Who trains it."""
        return self.path / "process.json"

    @property
    def events(self) -> Path:
        """What happened."""
        return self.path / "events.jsonl"

    @property
    def stdout(self) -> Path:
        """What the worker printed."""
        return self.path / "stdout.log"

    @property
    def stop(self) -> Path:
        """The stop flag."""
        return self.path / "stop"

    @property
    def queued(self) -> Path:
        """The note of a run that waits in the line."""
        return self.path / "queued"

    @property
    def checkpoints(self) -> Path:
        """What the trainer saved on the way."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The result."""
        return self.path / "adapter"

    def failure(self, rank: int) -> Path:
        """What a process that trained with others said when it failed."""
        return self.path / f"failed-{rank}.json"

    def failures(self) -> list[Path]:
        """Return what processes said that failed, the first one's first."""
        return sorted(self.path.glob("failed-*.json"), key=lambda file: file.stat().st_mtime)

    def read_recipe(self) -> Recipe:
        """Read the run's recipe.

        Raises:
            RecipeError: If it is none that this version can read.
            OSError: If it is gone or may not be read.
        """
        try:
            text = self.recipe.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            problem = StudioError("recipes.unreadable", file=str(self.recipe))
            raise RecipeError.of([problem]) from error
        return read_recipe(text)

    def waits(self) -> bool:
        """Return whether the run stands in the line and nobody has started it yet."""
        return self.queued.exists() and not self.process.exists()

    def stop_wish(self) -> str | None:
        """Return `keep`, `discard` or `pause` if somebody asked the run to stop, else None."""
        try:
            return self.stop.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step lies, if there is one."""
        return self.checkpoints / f"checkpoint-{step}"

    def checkpoint_steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(
            int(last.parent.name.removeprefix("checkpoint-"))
            for last in self.checkpoints.glob(f"checkpoint-*/{LAST_WRITTEN}")
            if (last.parent / WEIGHTS).is_file()
        )

    def newest_adapter(self) -> Path | None:
        """Return the finished adapter, else the last checkpoint, else None."""
        if (self.adapter / WEIGHTS).is_file():
            return self.adapter
        steps = self.checkpoint_steps()
        return self.checkpoint(steps[-1]) if steps else None


def create(runs: Path, recipe: Recipe) -> RunFolder:
    """Make a new run folder named after the recipe and write the recipe into it."""
    runs.mkdir(parents=True, exist_ok=True)
    stem = slug(recipe.name or _data_name(recipe))
    for number in itertools.count(1):
        folder = RunFolder(runs / f"{stem}-{number}")
        try:
            folder.path.mkdir()
        except FileExistsError:
            continue
        try:
            write_whole(folder.recipe, recipe.to_yaml())
        except OSError:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        return folder
    raise AssertionError  # pragma: no cover - the count has no end


def find(runs: Path, run_id: str) -> RunFolder:
    """Return the folder of a run by its id.

    The id is compared with the names that exist and never joined to a path.

    Raises:
        RunError: If there is no such run.
    """
    for folder in listed(runs):
        if folder.id == run_id:
            return folder
    raise RunError("run.unknown", run=run_id)


def listed(runs: Path) -> list[RunFolder]:
    """Return every run folder, newest first."""
    return [RunFolder(file.parent) for file in newest_first(runs.glob("*/recipe.yaml"))]


def newest_first(files: Iterable[Path]) -> list[Path]:
    """Return files by when they were written; one that was deleted a moment ago is left out.

    Those written at the same time stand in an order of their own, which stays.
    """
    found = []
    for file in files:
        with suppress(FileNotFoundError):
            found.append((file.stat().st_mtime_ns, file))
    return [file for _, file in sorted(found, reverse=True)]


def slug(name: str) -> str:
    """Turn a name into a folder name of letters of any script, digits and dashes."""
    words = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", name).lower()).strip("-_")
    return words[:40].rstrip("-_") or "run"


def _data_name(recipe: Recipe) -> str:
    return Path(recipe.data.files[0]).stem if recipe.data.files else "run"
