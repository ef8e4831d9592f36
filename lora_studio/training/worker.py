"""The worker process: `python -m lora_studio.training.worker RUN_DIR [--resume]`, or `--stand-by`.

It reads the run's recipe, trains, and writes events; nothing else passes between it and the
program that started it. Stopping is asked for by the run's `stop` file.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_studio.errors import RunError
from lora_studio.hardware import QUANTISED, default_precision, probe
from lora_studio.recipe import Recipe
from lora_studio.runs import checkpoints, process
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.standby import FLAG
from lora_studio.settings import Settings
from lora_studio.training import ranks
from lora_studio.training.failures import explain
from lora_studio.training.standby import wait_for_run

log = logging.getLogger(__name__)

RESUME = "--resume"
BITSANDBYTES = "bitsandbytes"
LOOK_FOR_STOP_S = 0.3
PROGRESS_EVERY_S = 0.2
PREPARING_S = 120.0
HARD_LIMIT = 2
"""A run that may train so long ends at twice the time after that, be it within its first step."""


class Preparation:
    """Announces the stages before the first step, and ends the process if asked to in one.

    A download or a load has no step boundary to stop at, so a thread watches the flag and ends
    the process: nothing is trained yet, so nothing is lost.
    """

    def __init__(self, folder: RunFolder, events: EventWriter) -> None:
        self._folder = folder
        self._events = events
        self._over, self._turn = threading.Event(), threading.Lock()
        self._last = ("", 0.0)
        if ranks.leads_machine():
            threading.Thread(target=self._watch, daemon=True).start()

    def stage(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Write a stage event; of the progress within one, five a second at most."""
        name, when = self._last
        now = time.monotonic()
        if stage == name and done < total and now - when < PROGRESS_EVERY_S:
            return
        self._last = (stage, now)
        self._events.write("stage", stage=stage, done=done, total=total)

    def over(self) -> None:
        """From here on the trainer looks at the flag itself."""
        with self._turn:  # a thread that is about to end the process does so before any step
            self._over.set()

    def leave(self) -> None:
        """End the process; a run that was resumed only to be paused again is paused."""
        is_paused = self._folder.stop_wish() == "pause" and bool(self._folder.checkpoint_steps())
        _leave(self._events, **({"paused": True} if is_paused else {}))

    def asked_to_end(self) -> None:
        """Do as SIGTERM asks: end at once, or where steps would be lost, pause."""
        if not self._over.is_set() or self._folder.stop_wish() == "discard":
            self.leave()
        elif self._folder.stop_wish() is None:
            process.request_stop(self._folder, "pause")

    def _watch(self) -> None:
        while not self._over.wait(LOOK_FOR_STOP_S):
            with self._turn:
                if not self._over.is_set() and self._folder.stop.exists():
                    self.leave()


def run(
    folder: RunFolder,
    recipe: Recipe,
    events: EventWriter,
    settings: Settings,
    *,
    start: int | None = None,
) -> None:
    """Train what the recipe says, from preparing to the saved adapter.

    With `start`, go on from the checkpoint of that step.
    """
    preparation = Preparation(folder, events)
    signal.signal(signal.SIGTERM, lambda *_: preparation.asked_to_end())
    limit = _hard_limit(events, settings.max_training_s)
    preparation.stage("start")
    # The heavy imports happen behind the first stage, so that the page shows it meanwhile.
    with _spared(recipe):
        from lora_studio.training.session import Session

    session = Session(recipe, settings, preparation.stage, start=start)
    reporter = session.build(folder, events)
    preparation.over()
    session.train()
    limit.cancel()
    wish = ranks.agreed_wish(folder)
    # A fresh adapter changes nothing: before the first step there is nothing to keep.
    if wish == "discard" or (wish is not None and session.steps == 0):
        events.write("stopped", kept=False)
        return
    if wish is not None or reporter.timed_out:
        session.save_stopped()
    if wish == "pause":
        events.write("stopped", kept=False, paused=True)
        return
    events.write("stage", stage="save")
    adapter = session.save(folder)
    if ranks.is_first():
        about = {"bytes": _size(adapter), "best_step": session.best_step}
        events.write("saved", adapter=adapter.name, **about)
    if wish is not None or reporter.timed_out:
        events.write("stopped", kept=True, timed_out=reporter.timed_out)
    else:
        events.write("finished")


def main(arguments: list[str]) -> int:
    """Run the worker; return 0 when finished, stopped or not needed, 1 when failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if arguments == [FLAG]:
        given = wait_for_run()
        if given is None:
            return 0
        arguments = given
    folder = RunFolder(Path(arguments[0]))
    settings = Settings.from_environment()
    with ranks.open_events(folder) as events:
        if settings.webhook and ranks.is_first():
            from lora_studio.training.notices import Webhook

            events.at_end = Webhook(settings.webhook, folder, events).tell
        signal.signal(signal.SIGTERM, lambda *_: _leave(events))
        if ranks.is_shared():
            ranks.watch_launcher(lambda: _end_with_others(folder, events))
        recipe = Recipe()
        try:
            recipe = folder.read_recipe()
            start = _step_to_resume(folder, events) if RESUME in arguments else None
            run(folder, recipe, events, settings, start=start)
            ranks.part()
        # The outermost: every end of a run is an event.
        except Exception as error:
            log.exception("the run failed")
            _fail(folder, events, error, recipe)
            return 1
    return 0


@contextmanager
def _spared(recipe: Recipe) -> Iterator[None]:
    """Hide bitsandbytes from what is imported in the block, where no weight is quantised.

    PEFT imports it wherever it is installed, which takes a fifth of a worker's start (peft 0.21.2,
    tuners/lora/bnb.py).
    """
    asked = recipe.precision
    precision = default_precision(probe()) if asked == "auto" else asked
    if precision in QUANTISED or BITSANDBYTES in sys.modules:
        yield
        return
    absent: Any = None  # so importlib takes it for absent
    sys.modules[BITSANDBYTES] = absent
    try:
        yield
    finally:
        del sys.modules[BITSANDBYTES]


def _step_to_resume(folder: RunFolder, events: EventWriter) -> int:
    """Return the step of the newest whole checkpoint, and forget what came after it.

    Raises:
        RunError: If there is none.
    """
    step = checkpoints.newest_whole(folder)
    if step is None:
        raise RunError("run.no_checkpoint", run=folder.id)
    if ranks.is_first():
        checkpoints.drop_after(folder, step)
    events.write("resumed", step=step)
    return step


def _leave(events: EventWriter, **how: bool) -> None:
    """End the process now, with those it has started; whoever ends it already goes on with it."""
    if not events.write("stopped", kept=False, **how):
        return
    process.end_children()
    ranks.leave(0)


def _fail(folder: RunFolder, events: EventWriter, error: Exception, recipe: Recipe) -> None:
    """Write why the run failed: of processes that trained together, the one that failed first."""
    if ranks.is_loss_of_another(error):
        cause = ranks.loss_of_another(folder)
    else:
        cause = explain(error, recipe)
        ranks.report(folder, cause)
    events.write("failed", cause=cause.to_dict())


def _end_with_others(folder: RunFolder, events: EventWriter) -> None:
    """Write why the launcher ends this process: somebody asked, or another process is gone."""
    if events.is_over:
        return
    if folder.stop_wish() is not None and not folder.failures():
        events.write("stopped", kept=False)
    else:
        events.write("failed", cause=ranks.loss_of_another(folder).to_dict())


def _hard_limit(events: EventWriter, seconds: int | None) -> threading.Timer:
    """End the process when the time is up twice over: a single step can be that long."""
    timer = threading.Timer(
        PREPARING_S + HARD_LIMIT * (seconds or 0), _leave, [events], kwargs={"timed_out": True}
    )
    timer.daemon = True
    if seconds is not None and ranks.leads_machine():
        timer.start()
    return timer


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
