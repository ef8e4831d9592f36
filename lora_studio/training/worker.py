"""The worker process: `python -m lora_studio.training.worker RUN_DIR`.

It reads the run's recipe, trains, and writes events; nothing else passes between it and the
program that started it. Stopping is asked for by the run's `stop` file.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from lora_studio.recipe import Recipe
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.settings import Settings
from lora_studio.training.failures import explain

log = logging.getLogger(__name__)

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
        self._over = threading.Event()
        self._last = ("", 0.0)
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
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_FOR_STOP_S):
            if self._folder.stop.exists():
                self._events.write("stopped", kept=False)
                os._exit(0)


def run(folder: RunFolder, recipe: Recipe, events: EventWriter, settings: Settings) -> None:
    """Train what the recipe says, from preparing to the saved adapter."""
    preparation = Preparation(folder, events)
    limit = _hard_limit(events, settings.max_training_s)
    preparation.stage("start")
    # The heavy imports happen behind the first stage, so that the page shows it meanwhile.
    from lora_studio.training.session import Session

    session = Session(recipe, settings, preparation.stage)
    reporter = session.build(folder, events)
    preparation.over()
    session.train()
    limit.cancel()
    # A fresh adapter changes nothing: before the first step there is nothing to keep.
    if reporter.stopping and (session.steps == 0 or folder.stop_wish() == "discard"):
        events.write("stopped", kept=False)
        return
    events.write("stage", stage="save")
    adapter = session.save(folder)
    events.write("saved", adapter=adapter.name, bytes=_size(adapter))
    if reporter.stopping or reporter.timed_out:
        events.write("stopped", kept=True, timed_out=reporter.timed_out)
    else:
        events.write("finished")


def main(arguments: list[str]) -> int:
    """Run the worker; return 0 when finished or stopped, 1 when failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    folder = RunFolder(Path(arguments[0]))
    settings = Settings.from_environment()
    with EventWriter(folder.events) as events:
        signal.signal(signal.SIGTERM, lambda *_: _leave(events))
        recipe = Recipe()
        try:
            recipe = folder.read_recipe()
            run(folder, recipe, events, settings)
        # The outermost: every end of a run is an event.
        except Exception as error:
            log.exception("the run failed")
            events.write("failed", cause=explain(error, recipe).to_dict())
            return 1
    return 0


def _leave(events: EventWriter, *, timed_out: bool = False) -> None:
    events.write("stopped", kept=False, timed_out=timed_out)
    os._exit(0)


def _hard_limit(events: EventWriter, seconds: int | None) -> threading.Timer:
    """End the process when the time is up twice over: a single step can be that long."""
    timer = threading.Timer(
        PREPARING_S + HARD_LIMIT * (seconds or 0), _leave, [events], kwargs={"timed_out": True}
    )
    timer.daemon = True
    if seconds is not None:
        timer.start()
    return timer


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
