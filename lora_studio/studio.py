"""The use cases: what the page and the command line call, and nothing they must know beneath it.

It imports no heavy library. What needs one runs in a child process (`isolated=True`, the page)
or is imported when it is first used (the command line).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from lora_studio.adapters.archive import zip_adapter
from lora_studio.chat.request import Pane, Sampling
from lora_studio.child import Child, InProcess
from lora_studio.errors import ModelError, RecipeError, RunError, StudioError
from lora_studio.exports.script import write_script
from lora_studio.hardware import (
    Hardware,
    free_memory,
    probe,
    resolve_precision,
)
from lora_studio.models.description import ModelInfo
from lora_studio.outlook import Outlook, look_ahead
from lora_studio.prediction import calibration
from lora_studio.prediction.memory import Place
from lora_studio.recipe import Recipe
from lora_studio.recipes.library import Library
from lora_studio.runs import folder as run_folder
from lora_studio.runs import housekeeping, process
from lora_studio.runs.accelerator import Accelerator, Job
from lora_studio.runs.checkpoints import newest_whole
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.runs.queue import Dispatcher, Queue
from lora_studio.runs.standby import StandBy
from lora_studio.settings import STARTER, Settings
from lora_studio.training.remedies import Remedies, Remedy
from lora_studio.wording import ASSETS

log = logging.getLogger(__name__)

RECORDED = ASSETS / "recorded"
SCRIPT = "train.py"
"""What an exported recipe's script is called."""
MOST_VISITORS = 500
"""So many visitors' studios are held in memory; what is on disk is found again."""
SPARE_BYTES = 3_000_000_000
"""A worker waits only where so much RAM is free beyond what its run would take."""
LEAVING_S = 15.0
"""How long a worker may take from its last event to its end."""
LEAVES_WITHIN_S = 3.0
"""How long a worker that only prepares may take to see that it is to stop."""
FORCED_S = 1.5
PATIENCE_S = 15.0
"""Who asks a run to stop again after so long does not want to wait for its step."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What everybody on this machine shares: the hardware and the two heavy processes."""

    hardware: Hardware
    bench: Child | InProcess
    """Serves a `Workbench`."""
    chat: Child | InProcess
    """Serves a chat `Engine`."""
    accelerator: Accelerator
    answering: threading.Lock
    """Held from loading a chat model to the last word of its answer."""
    ready: StandBy | None = None
    """Has a worker wait for the next training, in an app."""

    @classmethod
    def open(cls, settings: Settings, *, isolated: bool) -> Self:
        """Look at the hardware; start nothing yet.

        Args:
            settings: Where things live.
            isolated: Whether heavy libraries run in child processes (the page) or in this one
                (the command line).

        Raises:
            StudioError: If nothing can be kept in the home folder.
        """
        _make_home(settings.home)
        serve = Child if isolated else InProcess
        return cls(
            hardware=probe(),
            bench=serve("lora_studio.workbench:Workbench", settings),
            chat=serve("lora_studio.chat.engine:Engine"),
            accelerator=Accelerator(settings.home),
            answering=threading.Lock(),
            ready=StandBy() if isolated and settings.ready_worker else None,
        )


class Studio:
    """One person's studio: their runs, on a machine they may share with others."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self.settings = settings
        self.hardware = machine.hardware
        self._machine = machine
        self._bench = machine.bench
        self._chat = machine.chat
        self._accelerator = machine.accelerator
        self._ready = machine.ready
        self._histories: dict[str, History] = {}
        self._lighter: dict[str, tuple[tuple[Any, ...], list[Remedy]]] = {}
        self._visitors: dict[str, Studio] = {}
        self._queue = Queue(settings)
        self._tokens: dict[str, str] = {}
        self._dispatcher: Dispatcher | None = None
        self._lock = threading.Lock()

    def for_visitor(self, visitor: str) -> Studio:
        """Return the studio of one visitor of a Space, whose runs nobody else sees."""
        mine = self.settings.for_visitor(visitor)
        housekeeping.note_seen(mine.private)
        with self._lock:
            studio = self._visitors.pop(visitor, None)
            if studio is None:
                if self.settings.is_showcase:
                    housekeeping.drop_unseen(self.settings.visitors)
                studio = Studio(mine, self._machine)
            self._visitors[visitor] = studio  # who was seen last stands last
            if len(self._visitors) > MOST_VISITORS:
                self._visitors.pop(next(iter(self._visitors)))
            return studio

    def fetch_starter(self) -> None:
        """Bring the starter model to this machine, so that the first question need not wait."""
        try:
            for _ in self._bench.stream("fetch", source=STARTER):
                pass
        except StudioError as error:
            log.warning("%s", error)

    def close(self) -> None:
        """End the child processes; runs go on unless the settings say otherwise."""
        if self._dispatcher is not None:
            self._dispatcher.close()
        if self._ready is not None:
            self._ready.dismiss()
        self._chat.close()
        self._bench.close()
        if self.settings.stop_runs_on_exit:
            waiting = self.queue()  # they go on waiting, for the next start of the app
            for history in self.runs():
                if not history.is_over and history.folder.id not in waiting:
                    self.stop(history.folder.id, keep=True)

    # Models and data

    def inspect(self, source: str, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Describe a base model: what it is made of and which modules can have an adapter.

        Yields:
            `{"stage", "done", "total"}` while it works, at last `{"result": ModelInfo}`.

        Raises:
            ModelError: If it cannot be found, fetched or read.
        """
        self._check_source(source)
        known = self.known_model(source)
        if known is not None:
            yield {"result": known}
            return
        for event in self._bench.stream("inspect", source=source, token=token):
            if "result" not in event:
                yield event
                continue
            self._remember(source, event["result"])
            yield {"result": ModelInfo.from_dict(event["result"])}

    def known_model(self, source: str) -> ModelInfo | None:
        """Return a model's description if it was made before; the starter's is shipped."""
        file = ASSETS / "starter.json" if source == STARTER else self._info_file(source)
        try:
            return ModelInfo.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def preview(self, recipe: Recipe, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Encode a recipe's data without training.

        Yields:
            `{"stage", "done", "total"}` while it works, at last `{"result": report}`, the plain
            values of `lora_studio.data.report.Report`.

        Raises:
            StudioError: If the model or the data cannot be used.
        """
        self._check_source(recipe.model.source)
        _refuse(_file_problems(recipe))
        yield from self._bench.stream("preview", recipe=recipe, token=token)

    def rows(
        self,
        recipe: Recipe,
        part: str,
        page: int = 1,
        search: str = "",
        *,
        token: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Show ten rows of a recipe's data.

        Args:
            recipe: As in `preview`.
            part: `train`, `evaluation` or `skipped`.
            page: Which ten, from 1.
            search: Only rows that contain this.
            token: For a gated model or dataset.

        Yields:
            As `preview`; the result is that of `lora_studio.data.prepared.Prepared.page`.

        Raises:
            StudioError: As `preview`.
        """
        self._check_source(recipe.model.source)
        _refuse(_file_problems(recipe))
        asked = {"recipe": recipe, "part": part, "page": page, "search": search}
        yield from self._bench.stream("rows", **asked, token=token)

    def nf4(self, source: str, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Show what 4-bit NF4 does to one weight of a model, fetching the model where needed.

        Yields:
            As `preview`; the result is the plain values of
            `lora_studio.models.weights_histogram.WeightsHistogram`.

        Raises:
            ModelError: If it cannot be found, fetched or read, or is already quantised.
        """
        self._check_source(source)
        yield from self._bench.stream("nf4", source=source, token=token)

    def precision(self, recipe: Recipe) -> str:
        """Return the number format a recipe would use here.

        Raises:
            ModelError: If this machine cannot use the one that is asked for.
        """
        return resolve_precision(recipe.precision, self.hardware)

    # Recipes

    @property
    def recipes(self) -> Library:
        """The recipes that this person saved."""
        return Library.of(self.settings)

    def script(self, recipe: Recipe, language: str = "en") -> str:
        """Return a recipe as a Python script that runs without this program.

        Raises:
            RecipeError: If it starts in a way that no script is written for, or the model does
                not have what it names.
            ModelError: If this machine cannot use its number format.
        """
        info = self.known_model(recipe.model.source)
        precision = self.precision(recipe)
        return write_script(recipe, precision=precision, info=info, language=language)

    def export(
        self, recipe: Recipe, folder: Path, language: str = "en", *, token: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Write a recipe's script into a folder, with the rows it trains on and the recipe.

        Yields:
            As `preview`; the result is that of `lora_studio.exports.rows.write_rows`.

        Raises:
            StudioError: As `script` and `preview`, or if the folder does not take it.
        """
        self._check_source(recipe.model.source)
        _refuse(_file_problems(recipe))
        if self.known_model(recipe.model.source) is None:
            for event in self.inspect(recipe.model.source, token=token):
                if "result" not in event:
                    yield event
        text = self.script(recipe, language)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SCRIPT).write_text(text, encoding="utf-8")
            (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
            device = self.hardware.device
            yield from self._bench.stream(
                "write_rows", recipe=recipe, folder=folder, device=device, token=token
            )
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise RunError("exports.not_written", folder=str(folder), reason=reason) from error

    # Before a run

    def outlook(self, recipe: Recipe, report: Mapping[str, Any] | None = None) -> Outlook:
        """Say what can be said of a run before it starts, in a few milliseconds.

        Time is known once `calibrate` has been called on this machine, steps once the data is.

        Args:
            recipe: What is trained.
            report: The result of `preview`, where there is one.
        """
        # The RAM that is free changes by the minute; asking a GPU takes longer than a slider waits.
        free = self._free_memory() if self.hardware.device == "cpu" else None
        width = self._width(recipe)
        return look_ahead(
            recipe,
            self.known_model(recipe.model.source),
            self.hardware,
            report,
            free=free,
            rate=calibration.known(self.settings.cache, self.hardware, width) if width else None,
        )

    def calibrate(self, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """Measure this device for a second, unless it was measured today.

        Yields:
            As `inspect`; the result is FLOP a second.
        """
        width = Place.of(self.hardware, self.precision(recipe)).width
        if not calibration.is_due(self.settings.cache, self.hardware, width):
            yield {"result": calibration.known(self.settings.cache, self.hardware, width)}
            return
        asked = {"device": self.hardware.device, "width": width}
        for event in self._bench.stream("calibrate", **asked):
            if "result" in event:
                calibration.keep(self.settings.cache, self.hardware, width, event["result"])
            yield event

    def make_ready(self, recipe: Recipe) -> None:
        """Have a worker wait for a recipe that will probably be trained, so that it begins sooner.

        It waits in an app only, beside no other job, and where there is memory to spare. This
        device is measured first: who imports meanwhile makes it look slow. Where that cannot be,
        runs start as they do without.
        """
        width = self._width(recipe)
        if self._ready is None or width is None:
            return
        if calibration.is_due(self.settings.cache, self.hardware, width):
            return
        with suppress(OSError), self._accelerator.guard().acquire(timeout=0):
            if self._accelerator.holder() is not None or self._queue.waiting():
                return
            found = self.outlook(recipe).estimate
            if found is None or self._free_memory() < found.memory.needed + SPARE_BYTES:
                self._ready.dismiss()
                return
            environment = self._worker_environment(None) | self._allocation(recipe)
            process.make_ready(self._ready, environment=environment)

    def _free_memory(self) -> int:
        """Return the RAM in bytes that a training could take; a worker that waits makes room."""
        return free_memory() + (self._ready.held_bytes if self._ready is not None else 0)

    def _width(self, recipe: Recipe) -> int | None:
        """Return the bytes of a number that is computed with, None for what cannot be used here."""
        try:
            return Place.of(self.hardware, self.precision(recipe)).width
        except ModelError:
            return None

    # Runs

    def start(self, recipe: Recipe, *, token: str | None = None) -> str:
        """Start a training in a process of its own and return the run's id.

        Everything that can be checked without the model is checked first; only then is a loaded
        chat model given up.

        Raises:
            ModelError: If this is a Space that lends itself to the starter model only.
            RecipeError: If the recipe cannot work on this machine.
            RunError: If another job has the accelerator, naming it, or the disk is full.
        """
        self._check(recipe)
        with self._accelerator.guard():
            self._free_accelerator()
            folder = self._create(recipe)
            self._launch(folder, recipe, token)
        return folder.id

    def resume(self, run_id: str, *, token: str | None = None) -> None:
        """Let a run that was broken off go on from its newest whole checkpoint, to its own end.

        Where it cannot now, it is lined up, and goes on when its turn has come.

        Raises:
            ModelError: As `start`.
            RecipeError: As `start`, as when a file is gone.
            RunError: If there is no such run, it is not over or waits already, it has finished or
                was dropped, no checkpoint of it is whole, or as `line_up`.
        """
        folder = self._broken_off(run_id)
        recipe = folder.read_recipe()
        self._check(recipe)
        with self._accelerator.guard():
            self._refuse_unended(run_id)  # somebody else may have been quicker
            if self._gets_accelerator():
                self._launch(folder, recipe, token, resume=True)
                return
            self._refuse_second_in_line()
            self._join(folder, token)

    def stop(self, run_id: str, *, keep: bool) -> None:
        """Stop a run at its next step and keep what it learned, or end it at once and drop it.

        A run that waits in the line leaves it. One that trained is ended by force only when it is
        dropped, or when it is asked a second time and did not stop for a while: what its last
        checkpoint holds is left.

        Raises:
            RunError: If there is no such run or it is over.
        """
        self._end(run_id, "keep" if keep else "discard")

    def pause(self, run_id: str) -> None:
        """Stop a run at its next step with a checkpoint, so that it can be resumed; else as `stop`.

        Raises:
            RunError: If there is no such run or it is over.
        """
        self._end(run_id, "pause")

    # The line

    def submit(self, recipe: Recipe, *, token: str | None = None) -> str:
        """Start a training, or line it up where it cannot start now; return the run's id.

        Raises:
            StudioError: As `start` and `line_up`.
        """
        self._check(recipe)
        with self._accelerator.guard():
            if not self._gets_accelerator():
                return self.line_up(recipe, token=token)
            folder = self._create(recipe)
            self._launch(folder, recipe, token)
        return folder.id

    def line_up(self, recipe: Recipe, *, token: str | None = None) -> str:
        """Make a run that `start_next` starts when its turn has come; return its id.

        Args:
            recipe: What to train.
            token: Kept in this process and nowhere else: whoever starts the run after it has
                ended does so without.

        Raises:
            StudioError: As `start`, but for a busy accelerator.
            RunError: If this is a Space for everybody and a run of this visitor waits already.
        """
        self._check(recipe)
        self._refuse_second_in_line()
        folder = self._create(recipe)
        self._join(folder, token)
        return folder.id

    def queue(self) -> list[str]:
        """Return the ids of this studio's runs that wait, the next first."""
        waiting = self._queue.waiting()
        return [run.folder.id for run in waiting if run.visitor == self.settings.visitor]

    def would_wait(self) -> bool:
        """Return whether a run that is submitted now is lined up; own answers make room for it."""
        job = self._accelerator.holder()
        makes_room = self._accelerator.is_mine() and job and job.visitor == self.settings.visitor
        return bool(self._queue.waiting()) or (job is not None and not makes_room)

    def reorder(self, run_id: str, *, to: int) -> None:
        """Move a waiting run to a place among this studio's, from 0, the next to start.

        Raises:
            RunError: If there is no such run or it does not wait.
        """
        run = self._waiting(run_id)
        self._queue.move(run, to=to, visitor=self.settings.visitor)

    def unqueue(self, run_id: str) -> None:
        """Take a run out of the line; it stays among the runs, as it was before it waited.

        Raises:
            RunError: If there is no such run or it does not wait.
        """
        with self._queue.guard():
            run = self._waiting(run_id)
            if not run.events.exists():
                with EventWriter(run.events) as events:
                    events.write("stopped", kept=False, unqueued=True)
            self._queue.remove(run)

    def start_next(self) -> str | None:
        """Start the first in line if the accelerator is free; return its id.

        A run that cannot start fails with the reason, and the one behind it is tried.
        """
        if not self._queue.waiting() or self._accelerator.holder() is not None:
            return None
        with self._accelerator.guard(), self._queue.guard():
            if self._accelerator.holder() is not None:
                return None
            self._chat.close()  # a training may need every byte
            for run in self._queue.waiting():
                owner = self.for_visitor(run.visitor) if run.visitor else self
                has_started = owner.start_lined_up(run.folder)
                self._queue.remove(run.folder)
                if has_started:
                    return run.folder.id
        return None

    def start_lined_up(self, folder: RunFolder) -> bool:
        """Start a run whose turn has come; return False where it cannot, which its events tell.

        One that has begun before goes on. The caller has seen to it that the accelerator is free
        and stays so.
        """
        token = self._tokens.pop(folder.id, None)
        try:
            recipe = folder.read_recipe()
            self._check(recipe)
            self._launch(folder, recipe, token, resume=folder.events.exists())
        except (StudioError, OSError, UnicodeDecodeError) as error:
            cause = error if isinstance(error, StudioError) else _unstartable(error)
            with EventWriter(folder.events) as events:
                events.write("failed", cause=cause.to_dict())
            return False
        return True

    def keep_dispatching(self) -> None:
        """Start whoever is next whenever the accelerator is free, until `close`."""
        self._dispatcher = Dispatcher(self.start_next)

    # Another try

    def remedies(self, run_id: str) -> list[Remedy]:
        """Return what a run that failed can be tried again with, what changes least first.

        The worker proposes settings with its last word; of one that left none, memory is what
        most often ran out.

        Raises:
            RunError: If there is no such run.
        """
        history = self.history(run_id)
        if history.status == "lost":
            return self._less_memory(history)
        cause = history.cause
        return list(cause.values.get("remedies", ())) if cause is not None else []

    def retry(self, run_id: str, changes: Sequence[str], *, token: str | None = None) -> str:
        """Train the recipe of a run that is over with other settings; return the new run's id.

        Args:
            run_id: The run, which stays as it is.
            changes: As `Recipe.changed` takes them.
            token: For a gated model or dataset.

        Raises:
            RunError: If there is no such run or it goes on.
            StudioError: As `submit`.
        """
        history = self.history(run_id)
        if not history.is_over:
            raise RunError("run.not_over", run=run_id)
        return self.submit(history.folder.read_recipe().changed(changes), token=token)

    def history(self, run_id: str) -> History:
        """Return what a run has been through so far.

        Raises:
            RunError: If there is no such run.
        """
        known = self._histories.get(run_id)
        return self._known(self._find(run_id) if known is None else known.folder)

    def folders(self) -> list[RunFolder]:
        """Return the folders of all runs, newest first; on a Space the recorded one stands last."""
        folders = run_folder.listed(self.settings.runs)
        if self.settings.space_id:
            folders += run_folder.listed(RECORDED)
        return folders

    def runs(self) -> list[History]:
        """Return what each run has been through so far, in the order of `folders`."""
        return [self._known(folder) for folder in self.folders()]

    def active(self) -> History | None:
        """Return the run that trains now, if it is one of this studio's."""
        job = self._accelerator.holder()
        if job is None or job.kind != "training" or job.visitor != self.settings.visitor:
            return None
        try:
            history = self.history(job.name)
        except RunError:
            return None
        return None if history.is_over else history

    def is_recorded(self, folder: RunFolder) -> bool:
        """Return whether a run was shipped with the program and cannot be changed."""
        return folder.path.parent == RECORDED

    def archive(self, run_id: str, target: Path) -> Path:
        """Zip a run's adapter into the folder `target` and return the file.

        Raises:
            RunError: If the run has no adapter.
        """
        return zip_adapter(self._adapter(self.history(run_id)), target / f"{run_id}.zip")

    def xray(self, run_id: str, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Look into a run's adapter: where it changed the model, and in how many directions.

        Yields:
            As `preview`; the result is the plain values of `lora_studio.adapters.xray.Xray`.

        Raises:
            RunError: If the run has no adapter.
            StudioError: If adapter or base cannot be read.
        """
        history = self.history(run_id)
        adapter, source = self._adapter(history), history.folder.read_recipe().model.source
        yield from self._bench.stream("xray", adapter=adapter, source=source, token=token)

    # Answers

    def ask(
        self,
        run_id: str,
        panes: Sequence[Pane],
        sampling: Sampling,
    ) -> Iterator[dict[str, Any]]:
        """Answer with the base and the adapter of a run out of one loaded model.

        Args:
            run_id: Whose base, precision and adapter to use. In a pane the adapter goes by
                the run's id, the base by None.
            panes: Who answers what.
            sampling: How.

        Yields:
            `{"stage", "done", "total"}` while the model is fetched and loaded, then the engine's
            events, see `lora_studio.chat.engine.Engine.generate`.

        Raises:
            StudioError: If the run has no adapter, or a training has the accelerator.
        """
        if self.labels(run_id):
            raise StudioError("chat.only_classes")

        def answers() -> Iterator[dict[str, Any]]:
            yield from self._chat.stream("generate", panes=list(panes), sampling=sampling)

        yield from self._loaded(run_id, answers)

    def labels(self, run_id: str) -> list[str]:
        """Return the classes a run sorts texts into, in their order; none if it writes.

        Raises:
            RunError: If there is no such run.
        """
        return list(self.history(run_id).plan.get("labels") or ())

    def classify(self, run_id: str, text: str) -> Iterator[dict[str, Any]]:
        """Say how likely each class is for a text, to the base and to the adapter of a run.

        Args:
            run_id: Whose base, precision and adapter to use; the base's head is the untrained
                one that the run began with.
            text: What is sorted.

        Yields:
            `{"stage", "done", "total"}` while the model is fetched and loaded, at last
            `{"labels", "base", "adapter"}`: names, and probabilities in the same order.

        Raises:
            StudioError: As `ask`, or if the run does not sort texts into classes.
        """
        labels = self.labels(run_id)
        if not labels:
            raise StudioError("chat.no_classes")

        def found() -> Iterator[dict[str, Any]]:
            base, adapter = self._chat.call("classify", text=text, adapters=[None, run_id])
            yield {"labels": labels, "base": base, "adapter": adapter}

        yield from self._loaded(run_id, found)

    def _loaded(
        self, run_id: str, work: Callable[[], Iterator[dict[str, Any]]]
    ) -> Iterator[dict[str, Any]]:
        """Load a run's base and adapter, then do some work with them; nobody comes in between."""
        history = self.history(run_id)
        adapter = self._adapter(history)
        recipe = history.folder.read_recipe()
        asked = history.plan.get("precision", recipe.precision)
        precision = resolve_precision(asked, self.hardware)
        self._refuse_while_training()
        base = ""
        for event in self._bench.stream("fetch", source=recipe.model.source):
            base = event.get("result", "")
            if not base:
                yield event
        yield {"stage": "load", "done": 0, "total": 0}
        job = Job("compare", run_id, self.settings.visitor)
        # One at a time from loading to the last word: a visitor's load must not slip in between.
        with self._machine.answering:
            with self._accelerator.guard():
                self._refuse_while_training()
                self._accelerator.assign(job, os.getpid())
            try:
                self._chat.call(
                    "load",
                    model_folder=base,
                    precision=precision,
                    device=self.hardware.device,
                    adapters={run_id: str(adapter)},
                    labels=self.labels(run_id),
                    seed=recipe.seed,
                )
                yield from work()
            finally:
                self._accelerator.release(job)

    def stop_answering(self) -> None:
        """Stop what is being answered at the next token, if it is this studio's question."""
        job = self._accelerator.holder()
        if job is not None and job.visitor == self.settings.visitor:
            self._chat.interrupt("stop")

    # Beneath

    def _check(self, recipe: Recipe) -> None:
        """Check everything that can be checked without the model."""
        self._check_source(recipe.model.source)
        if self.settings.space_id and recipe.launch.num_machines > 1:
            _refuse([StudioError("launch.not_on_space")])
        _refuse([*_file_problems(recipe), *self.outlook(recipe).problems])

    def _broken_off(self, run_id: str) -> RunFolder:
        """Return the folder of a run that can go on, else say why it cannot."""
        history = self.history(run_id)
        if self.is_recorded(history.folder):
            raise RunError("run.read_only")
        self._refuse_unended(run_id)
        if history.status == "finished":
            raise RunError("run.is_over", run=run_id)
        if history.resumable is None or newest_whole(history.folder) is None:
            raise RunError("run.no_checkpoint", run=run_id)
        return history.folder

    def _refuse_unended(self, run_id: str) -> None:
        waiting = self.queue()
        if run_id in waiting:
            place = waiting.index(run_id) + 1
            raise RunError("queue.waits_already", run=run_id, place=place)
        if not self.history(run_id).is_over:
            raise RunError("run.still_runs", run=run_id)

    def _refuse_second_in_line(self) -> None:
        if self.settings.is_showcase and self.queue():
            raise RunError("queue.one_each", run=self.queue()[0])

    def _join(self, folder: RunFolder, token: str | None) -> None:
        """Put a run at the end of the line, with the token that is to be there at its turn."""
        if token:
            self._tokens[folder.id] = token
        self._queue.add(folder)

    def _gets_accelerator(self) -> bool:
        """Free the accelerator for a training, unless somebody waits for it or has it."""
        if self._queue.waiting():
            return False
        try:
            self._free_accelerator()
        except RunError:
            return False
        return True

    def _free_accelerator(self) -> None:
        """Give up a loaded chat model, and see that no other job has the accelerator."""
        self._let_leave()
        self._refuse_while_another_visitor()
        if not self._accelerator.is_taken_by("training"):
            self._chat.close()  # a training may need every byte
        if self._accelerator.is_mine():
            self._accelerator.clear()
        self._accelerator.check(self.settings.visitor)

    def _launch(
        self, folder: RunFolder, recipe: Recipe, token: str | None, *, resume: bool = False
    ) -> None:
        """Start a run's worker and give it the accelerator, which nobody else holds."""
        if resume:
            folder.stop.unlink(missing_ok=True)
        environment = self._worker_environment(token) | self._allocation(recipe)
        pid = process.start(folder, environment=environment, resume=resume, ready=self._ready)
        self._accelerator.assign(Job("training", folder.id, self.settings.visitor), pid)

    def _waiting(self, run_id: str) -> RunFolder:
        folder = self.history(run_id).folder
        if run_id not in self.queue():
            raise RunError("queue.not_waiting", run=run_id)
        return folder

    def _end(self, run_id: str, wish: process.Wish) -> None:
        history = self.history(run_id)
        folder = history.folder
        if self.is_recorded(folder):
            raise RunError("run.read_only")
        if history.is_over:
            raise RunError("run.is_over", run=run_id)
        if run_id in self.queue():
            self.unqueue(run_id)
            return
        insists = process.stop_asked_s(folder) > PATIENCE_S
        process.request_stop(folder, wish)
        if wish == "discard":
            process.end(folder)
            housekeeping.drop_results(folder)
        elif insists or not _left_by_itself(history):
            process.end(folder, grace_s=FORCED_S)

    def _less_memory(self, history: History) -> list[Remedy]:
        """Return changes after which a lost run takes less; the page asks again and again."""
        folder, precision = history.folder, history.plan.get("precision")
        file = folder.data / "report.json"
        basis = precision, _written_ns(folder.recipe), _written_ns(file)
        known = self._lighter.get(folder.id)
        if known is not None and known[0] == basis:
            return known[1]
        recipe = folder.read_recipe()
        info = self.known_model(recipe.model.source)
        if info is None:
            return []
        found = Remedies(
            info=info,
            recipe=recipe,
            hardware=self.hardware,
            precision=precision or self.outlook(recipe).precision,
            report=_read_report(file),
        ).less_memory()
        self._lighter[folder.id] = basis, found
        return found

    def _check_source(self, source: str) -> None:
        if self.settings.is_showcase and source != STARTER:
            raise ModelError("page.space_only_starter")

    def _refuse_while_another_visitor(self) -> None:
        job = self._accelerator.holder()
        if job is not None and job.visitor != self.settings.visitor:
            self._accelerator.check(self.settings.visitor)

    def _refuse_while_training(self) -> None:
        self._let_leave()
        if self._accelerator.is_taken_by("training"):
            self._accelerator.check(self.settings.visitor)

    def _let_leave(self) -> None:
        """Wait for a worker that has said its last word to end, which gives back its memory."""
        deadline = time.monotonic() + LEAVING_S
        while time.monotonic() < deadline:
            job = self._accelerator.holder()
            if job is None or job.kind != "training" or job.visitor != self.settings.visitor:
                return
            try:
                if not self.history(job.name).is_over:
                    return
            except RunError:
                return
            time.sleep(0.05)

    def _find(self, run_id: str) -> RunFolder:
        if self.settings.space_id and run_id in {item.id for item in run_folder.listed(RECORDED)}:
            return run_folder.find(RECORDED, run_id)
        return run_folder.find(self.settings.runs, run_id)

    def _known(self, folder: RunFolder) -> History:
        """Return a run's history with what is new; of a folder that is gone nothing is known."""
        known = self._histories.get(folder.id)
        if known is None or not known.folder.recipe.exists():
            if not folder.recipe.exists():
                raise RunError("run.unknown", run=folder.id)
            known = self._histories[folder.id] = History(folder)
        return known.update()

    def _adapter(self, history: History) -> Path:
        adapter = history.folder.newest_adapter()
        if adapter is None:
            raise RunError("run.no_adapter", run=history.folder.id, status=history.status)
        return adapter

    def _create(self, recipe: Recipe) -> RunFolder:
        if self.settings.most_runs:
            housekeeping.keep_newest(self.settings.runs, self.settings.most_runs - 1)
        files = [str(Path(file).expanduser().resolve()) for file in recipe.data.files]
        found = _model_folder(recipe.model.source)
        model = replace(recipe.model, source=str(found)) if found else recipe.model
        try:
            complete = replace(recipe.with_files(files), model=model)
            return run_folder.create(self.settings.runs, complete)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise RunError("run.disk_full", home=str(self.settings.home)) from error
            raise

    def _worker_environment(self, token: str | None) -> dict[str, str]:
        """Return what the worker must know beside this process's environment.

        A Space's own token is its owner's: a visitor comes with one, or with none.
        """
        own = None if self.settings.space_id else self.settings.hub_token
        # How a run of a visitor ends is not for the owner of a Space for everybody to hear.
        webhook = None if self.settings.is_showcase else self.settings.webhook
        environment = {
            "LORA_STUDIO_HOME": str(self.settings.home),
            "LORA_STUDIO_MAX_TRAINING_S": str(self.settings.max_training_s or ""),
            "HF_TOKEN": token or own or "",
            "LORA_STUDIO_WEBHOOK": webhook or "",
        }
        if self.settings.offline:
            environment["HF_HUB_OFFLINE"] = "1"
        return environment

    def _allocation(self, recipe: Recipe) -> dict[str, str]:
        """Return what a worker must be told to take no more memory than it needs, if it must."""
        if self.hardware.device != "cpu":
            return {}
        found = self.outlook(recipe).estimate
        has_room = found is not None and found.memory.has_room(found.place.free)
        return {} if has_room else dict(process.ALLOCATION)

    def _remember(self, source: str, found: dict[str, Any]) -> None:
        file = self._info_file(source)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")

    def _info_file(self, source: str) -> Path:
        folder = _model_folder(source)
        config = folder / "config.json" if folder else None
        # A folder may come to hold another model; it is known as long as it stays as it was.
        stamp = f"{config} {config.stat().st_mtime_ns}" if config and config.is_file() else source
        name = sha256(stamp.encode()).hexdigest()[:24]
        return self.settings.cache / "models" / f"{name}.json"


def _make_home(home: Path) -> None:
    """Make the home folder, if it is not there.

    Raises:
        StudioError: If that cannot be, or nothing can be written into it.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        code = 0 if os.access(home, os.W_OK) else errno.EACCES
    except OSError as error:
        code = error.errno or errno.EIO
    if code:
        raise StudioError("settings.home_unusable", home=str(home), reason=os.strerror(code))


def _model_folder(source: str) -> Path | None:
    """Return the folder that a model's source names, None for a Hub id and the starter model."""
    try:
        folder = Path(source.strip()).expanduser()
        return folder.resolve() if source.strip() != STARTER and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long for a path, or the home of nobody
        return None


def _written_ns(file: Path) -> int | None:
    """Return when a file was last written, None if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _read_report(file: Path) -> dict[str, Any] | None:
    """Return the report of a run's data, None where there is none or its writer was killed."""
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return report


def _left_by_itself(history: History) -> bool:
    """Give a worker that prepares a moment to leave; one that trains stops at its next step."""
    deadline = time.monotonic() + LEAVES_WITHIN_S
    while history.update().status in ("queued", "preparing"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _unstartable(error: Exception) -> RunError:
    reason = error.strerror if isinstance(error, OSError) else None
    return RunError("queue.not_started", reason=reason or type(error).__name__)


def _refuse(problems: Sequence[StudioError]) -> None:
    if problems:
        raise RecipeError.of(problems)


def _exists(file: str) -> bool:
    try:
        return Path(file).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _file_problems(recipe: Recipe) -> list[StudioError]:
    problems: list[StudioError] = [
        StudioError("run.file_missing", file=file)
        for file in recipe.data.files
        if not _exists(file)
    ]
    if not recipe.data.has_source:
        problems.append(StudioError("run.no_data"))
    return problems
