"""A person's studio: the use cases put together; what the page and the command line call.

It imports no heavy library. What needs one runs in a child process (`isolated=True`, the page)
or is imported when it is first used (the command line).
"""

from __future__ import annotations

import threading

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.answers import Answers
from lora_studio.cases.data import Data
from lora_studio.cases.judging import Judging
from lora_studio.cases.library import Keeping
from lora_studio.cases.line import Line
from lora_studio.cases.loading import Loading
from lora_studio.cases.machine import Machine
from lora_studio.cases.measurements import Measurements
from lora_studio.cases.models import Models
from lora_studio.cases.planning import Planning
from lora_studio.cases.retrying import Retrying
from lora_studio.cases.runs import Runs
from lora_studio.cases.scripts import Scripts
from lora_studio.cases.shipping import Shipping
from lora_studio.cases.shrinking import Shrinking
from lora_studio.cases.training import Training
from lora_studio.cases.workers import Workers
from lora_studio.recipes.library import Library
from lora_studio.runs import housekeeping
from lora_studio.settings import Settings

MOST_VISITORS = 500
"""So many visitors' studios are held in memory; what is on disk is found again."""


class Studio:
    """One person's studio: their runs, on a machine they may share with others.

    Args:
        settings: Where their things are.
        machine: What they work on.
    """

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self.settings = settings
        self.hardware = machine.hardware
        self.models = Models(settings, machine.bench)
        self.data = Data(self.models, machine.bench)
        self.planning = Planning(settings, machine, self.models)
        self.recipes = Library.of(settings)
        self.scripts = Scripts(self.models, self.data, self.planning, machine.hardware.device)
        self.runs = Runs(settings, machine.accelerator)
        self.workers = Workers(settings, machine, self.planning, self.runs)
        self.line = Line(
            settings, machine, self.planning, self.runs, self.workers,
            line_of=lambda visitor: self.for_visitor(visitor).line,
        )  # fmt: skip
        self.training = Training(
            machine.accelerator, self.planning, self.runs, self.workers, self.line
        )
        self.retrying = Retrying(
            machine.hardware, self.models, self.planning, self.runs, self.training
        )
        self.adapters = Adapters(settings, machine)
        self.shipping = Shipping(settings, self.adapters, machine.workshop)
        self.library = Keeping(settings, machine, self.runs, self.adapters)
        self.loading = Loading(settings, machine, self.models, self.workers)
        self.answers = Answers(machine, self.adapters, self.loading)
        self.judging = Judging(settings, machine.hardware, self.adapters, self.answers)
        self.measurements = Measurements(settings, machine, self.runs, self.adapters, self.loading)
        self.shrinking = Shrinking(self.adapters, self.measurements)
        self._machine = machine
        self._visitors: dict[str, Studio] = {}
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

    def close(self) -> None:
        """End the child processes; runs go on unless the settings say otherwise."""
        self.line.close()
        self._machine.close()
        if self.settings.stop_runs_on_exit:
            waiting = self.line.waiting()  # they go on waiting, for the next start of the app
            for history in self.runs.all():
                if not history.is_over and history.folder.id not in waiting:
                    self.training.stop(history.folder.id, keep=True)
