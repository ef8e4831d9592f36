"""What the table says of a run or an adapter that its files tell, read again only when they change.

What was read of one that is over is kept in a file, so that a studio of hundreds of runs is listed
at once after a restart too. The file may be deleted at any time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lora_studio.adapters.configuration import CONFIG, WEIGHTS
from lora_studio.errors import StudioError
from lora_studio.files import size_of, write_whole
from lora_studio.library.names import ORIGIN, PEFT, read_origin
from lora_studio.models.starter import NAME as STARTER_NAME
from lora_studio.recipe import Recipe
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import ENDED, History
from lora_studio.settings import STARTER

SPARSE = 30
"""Of a run's steps only one in 2**30 is looked at: the first and the last."""
Stamp = list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One row of the table, as the files tell."""

    base: str = "?"
    """The base's name, without its folder."""
    source: str = ""
    """The base as a recipe says it; empty where that cannot be read."""
    data: str = ""
    """What it learned from: names of files, without folders and endings."""
    r: int | None = None
    lora_alpha: int | None = None
    steps: int | None = None
    """Optimizer steps that were done; None for what no run here made."""
    status: str = ""
    """As `runs.history.Status`; empty for what no run here made."""
    loss: float | None = None
    """Held-out loss of the adapter that was kept, nats per token."""
    bytes: int = 0
    """Of all its files."""
    created: float = 0.0
    """Seconds since 1970."""
    has_adapter: bool = False
    """Whether there is an adapter to use."""
    labels: int = 0
    """So many classes it sorts texts into; 0 if it writes."""
    problem: str | None = None
    """Key of the sentence why its files cannot be read."""


class FactsBook:
    """Reads facts and remembers them.

    Args:
        file: Where those of what is over are kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[Stamp, Facts]] | None = None
        self._open: dict[str, tuple[int, History]] = {}
        """Of runs that go on, with when their recipe was written, in nanoseconds."""
        self._lock = threading.Lock()

    def of(self, runs: Iterable[RunFolder], adapters: Iterable[Path]) -> dict[Path, Facts]:
        """Return the facts of each folder that is still there."""
        with self._lock:
            before = self._read() if self._known is None else self._known
            kept: dict[str, tuple[Stamp, Facts]] = {}
            found: dict[Path, Facts] = {}
            for run in runs:
                with suppress(FileNotFoundError):  # it was deleted a moment ago
                    found[run.path] = self._of_run(run, before, kept)
            for folder in adapters:
                with suppress(FileNotFoundError):
                    found[folder] = _of_adapter(folder, before, kept)
            self._open = {key: one for key, one in self._open.items() if Path(key) in found}
            if kept != before:
                self._write(kept)
            self._known = kept
            return found

    def _of_run(
        self,
        run: RunFolder,
        before: dict[str, tuple[Stamp, Facts]],
        kept: dict[str, tuple[Stamp, Facts]],
    ) -> Facts:
        key = str(run.path)
        stamp = _stamp(
            run.recipe, run.events, run.process, run.queued, run.stop, run.adapter, run.checkpoints
        )
        known = before.get(key)
        if known is not None and known[0] == stamp:
            kept[key] = known
            return known[1]
        going_on = self._open.get(key)
        if going_on is None or going_on[0] != stamp[0]:
            going_on = self._open[key] = stamp[0], History(run, thinnings=SPARSE)
        facts = read_run(going_on[1].update())
        if facts.status in ENDED:
            kept[key] = stamp, facts
            self._open.pop(key, None)
        return facts

    def _read(self) -> dict[str, tuple[Stamp, Facts]]:
        try:
            said = json.loads(self._file.read_text(encoding="utf-8"))
            known = {one.name for one in fields(Facts)}
            return {
                key: (stamp, Facts(**facts))
                for key, (stamp, facts) in said.items()
                if facts.keys() == known  # not those of another version
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _write(self, kept: dict[str, tuple[Stamp, Facts]]) -> None:
        rows = {key: (stamp, asdict(facts)) for key, (stamp, facts) in kept.items()}
        with suppress(OSError):  # a full disk: it is read anew next time
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps(rows))


def read_run(history: History) -> Facts:
    """Return what a run's files say of it."""
    run = history.folder
    common: dict[str, Any] = {
        "steps": history.step,
        "status": history.status,
        "loss": kept_loss(history),
        "bytes": size_of(run.path),
        "created": run.recipe.stat().st_mtime,
        "has_adapter": run.newest_adapter() is not None,
        "labels": len(history.plan.get("labels") or ()),
    }
    try:
        recipe = run.read_recipe()
    except StudioError:
        return Facts(**common, problem="library.broken_recipe")
    return Facts(
        **common,
        base=base_name(recipe.model.source),
        source=recipe.model.source,
        data=data_name(recipe),
        r=recipe.adapter.r,
        lora_alpha=recipe.adapter.lora_alpha,
    )


def kept_loss(history: History) -> float | None:
    """Return the held-out loss of the adapter that a run kept, or of its last evaluation."""
    evals = [entry for entry in history.evals if entry.get("step")]
    best = history.saved.get("best_step")
    chosen = [entry for entry in evals if entry["step"] == best] or evals
    return chosen[-1]["loss"] if chosen else None


def base_name(source: str) -> str:
    """Return a base's name as a person knows it."""
    if source == STARTER:
        return STARTER_NAME
    return Path(source).name or source if Path(source).is_absolute() else source


def data_name(recipe: Recipe) -> str:
    """Return what a run learned from, in a few words."""
    names = [Path(file).stem for file in recipe.data.files]
    return ", ".join([*names, *filter(None, [recipe.data.hub.repo_id])])


def _of_adapter(
    folder: Path,
    before: dict[str, tuple[Stamp, Facts]],
    kept: dict[str, tuple[Stamp, Facts]],
) -> Facts:
    key, stamp = str(folder), _stamp(folder / ORIGIN, folder / PEFT, folder / PEFT / WEIGHTS)
    known = before.get(key)
    if known is None or known[0] != stamp:
        known = stamp, read_adapter(folder)
    kept[key] = known
    return known[1]


def read_adapter(folder: Path) -> Facts:
    """Return what the files of an adapter say that no run here made."""
    common: dict[str, Any] = {
        "bytes": size_of(folder),
        "created": (folder / ORIGIN).stat().st_mtime,
        "has_adapter": (folder / PEFT / WEIGHTS).is_file(),
    }
    try:
        origin = read_origin(folder)
        config = json.loads((folder / PEFT / CONFIG).read_text(encoding="utf-8"))
        r, alpha = (int(config[name]) for name in ("r", "lora_alpha"))
    except (StudioError, OSError, ValueError, TypeError, LookupError):
        return Facts(**common, problem="library.broken_origin")
    return Facts(
        **common | {"created": origin.created or common["created"]},
        base=base_name(origin.source),
        source=origin.source,
        r=r,
        lora_alpha=alpha,
        labels=len(origin.labels),
    )


def _stamp(*files: Path) -> Stamp:
    """Return what changes with any of these files and folders; the first of them must be there."""
    found = [files[0].stat().st_mtime_ns]
    for file in files:
        try:
            about = file.stat()
            found += [about.st_mtime_ns, about.st_size]
        except FileNotFoundError:
            found += [0, 0]
    return found
