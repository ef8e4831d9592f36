"""Worker processes: who may start one, and what it is told."""

from __future__ import annotations

import time
from contextlib import suppress

from lora_studio.cases.machine import Machine
from lora_studio.cases.planning import Planning
from lora_studio.cases.runs import Runs
from lora_studio.errors import RunError
from lora_studio.prediction.estimate import Estimate
from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.accelerator import Job
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.queue import Queue
from lora_studio.settings import Settings

SPARE_BYTES = 3_000_000_000
"""A worker waits only where so much RAM is free beyond what its run would take."""
LEAVING_S = 15.0
"""How long a worker may take from its last event to its end."""


class Workers:
    """Starts the processes that train, one at a time on the accelerator.

    Args:
        settings: What a worker is told.
        machine: Where it runs.
        planning: What a run takes.
        runs: Says whether a worker has said its last word.
    """

    def __init__(
        self, settings: Settings, machine: Machine, planning: Planning, runs: Runs
    ) -> None:
        self._settings = settings
        self._planning = planning
        self._runs = runs
        self._machine = machine
        self._accelerator = machine.accelerator
        self._queue = Queue(settings)

    def make_ready(self, recipe: Recipe) -> None:
        """Have a worker wait for a recipe that will probably be trained, so that it begins sooner.

        It waits in an app only, beside no other job, and where there is memory to spare. This
        device is measured first: who imports meanwhile makes it look slow. Where that cannot be,
        runs start as they do without.
        """
        ready = self._machine.ready
        if ready is None or not self._planning.is_calibrated(recipe):
            return
        with suppress(OSError), self._accelerator.guard().acquire(timeout=0):
            if self._accelerator.holder() is not None or self._queue.waiting():
                return
            found = self._planning.outlook(recipe).estimate
            if found is None or self._machine.free_memory() < found.memory.needed + SPARE_BYTES:
                ready.dismiss()
                return
            environment = self.environment(None) | self.allocation(found)
            process.make_ready(ready, environment=environment)

    def launch(
        self, folder: RunFolder, recipe: Recipe, token: str | None, *, resume: bool = False
    ) -> None:
        """Start a run's worker and give it the accelerator, which nobody else holds."""
        if resume:
            folder.stop.unlink(missing_ok=True)
        estimate = self._planning.outlook(recipe).estimate
        environment = self.environment(token) | self.allocation(estimate)
        pid = process.start(
            folder, environment=environment, resume=resume, ready=self._machine.ready
        )
        self._accelerator.assign(Job("training", (folder.id,), self._settings.visitor), pid)

    def get_accelerator(self) -> bool:
        """Free the accelerator for a training, unless somebody waits for it or has it.

        Returns:
            Whether a training may take it now.
        """
        if self._queue.waiting():
            return False
        try:
            self.free_accelerator()
        except RunError:
            return False
        return True

    def free_accelerator(self) -> None:
        """Give up a loaded chat model, and see that no other job has the accelerator.

        Raises:
            RunError: If another job has it, naming it.
        """
        self._let_leave()
        self._refuse_while_another_visitor()
        self._accelerator.check_long(self._settings.visitor)
        self._machine.chat.close()  # a training may need every byte
        if self._accelerator.is_mine():
            self._accelerator.clear()
        self._accelerator.check(self._settings.visitor)

    def refuse_while_busy(self) -> None:
        """Raise RunError if a training or measurement is busy, naming it only to who owns it."""
        self._let_leave()
        self._accelerator.check_long(self._settings.visitor)

    def allocation(self, estimate: Estimate | None) -> dict[str, str]:
        """Return what a worker must be told to take no more memory than it needs, if it must."""
        if self._machine.hardware.device != "cpu":
            return {}
        has_room = estimate is not None and estimate.memory.has_room(estimate.place.free)
        return {} if has_room else dict(process.ALLOCATION)

    def environment(self, token: str | None) -> dict[str, str]:
        """Return what the worker must know beside this process's environment."""
        # How a run of a visitor ends is not for the owner of a Space for everybody to hear.
        webhook = None if self._settings.is_showcase else self._settings.webhook
        environment = {
            "LORA_STUDIO_HOME": str(self._settings.home),
            "LORA_STUDIO_MAX_TRAINING_S": str(self._settings.max_training_s or ""),
            "HF_TOKEN": self._settings.token_for(token) or "",
            "LORA_STUDIO_WEBHOOK": webhook or "",
        }
        if self._settings.offline:
            environment["HF_HUB_OFFLINE"] = "1"
        return environment

    def _refuse_while_another_visitor(self) -> None:
        job = self._accelerator.holder()
        if job is not None and job.visitor != self._settings.visitor:
            self._accelerator.check(self._settings.visitor)

    def _let_leave(self) -> None:
        """Wait for a worker that has said its last word to end, which gives back its memory."""
        deadline = time.monotonic() + LEAVING_S
        while time.monotonic() < deadline:
            job = self._accelerator.holder()
            if job is None or job.kind != "training" or job.visitor != self._settings.visitor:
                return
            try:
                if not self._runs.history(job.names[0]).is_over:
                    return
            except RunError:
                return
            time.sleep(0.05)
