"""The line: runs that wait for the accelerator, and whose turn it is."""

from __future__ import annotations

from collections.abc import Callable

from lora_studio.cases.machine import Machine
from lora_studio.cases.planning import Planning
from lora_studio.cases.runs import Runs
from lora_studio.cases.workers import Workers
from lora_studio.errors import RunError, StudioError
from lora_studio.files import reason_of
from lora_studio.runs.accelerator import LONG
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.queue import Dispatcher, Queue
from lora_studio.settings import Settings


class Line:
    """The runs that wait for the accelerator.

    Args:
        settings: Whose line it is.
        machine: Whose accelerator.
        planning: Checks a run once more at its turn.
        runs: The runs of this person.
        workers: Starts the next.
        line_of: Finds the line of a visitor of a Space, whose turn it may be.
    """

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        planning: Planning,
        runs: Runs,
        workers: Workers,
        line_of: Callable[[str], Line],
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._accelerator = machine.accelerator
        self._planning = planning
        self._runs = runs
        self._workers = workers
        self._line_of = line_of
        self._queue = Queue(settings)
        self._tokens: dict[str, str] = {}
        self._dispatcher: Dispatcher | None = None

    def close(self) -> None:
        """Start nobody any more; who waits goes on waiting."""
        if self._dispatcher is not None:
            self._dispatcher.close()

    def waiting(self) -> list[str]:
        """Return the ids of this studio's runs that wait, the next first."""
        waiting = self._queue.waiting()
        return [run.folder.id for run in waiting if run.visitor == self._settings.visitor]

    def would_wait(self) -> bool:
        """Return whether a run that is submitted now is lined up; own answers make room for it."""
        job = self._accelerator.holder()
        is_own = self._accelerator.is_mine() and job and job.visitor == self._settings.visitor
        makes_room = is_own and job and job.kind not in LONG
        return bool(self._queue.waiting()) or (job is not None and not makes_room)

    def join(self, folder: RunFolder, token: str | None) -> None:
        """Put a run at the end of the line, with the token that is to be there at its turn."""
        if token:
            self._tokens[folder.id] = token
        self._queue.add(folder)

    def refuse_second(self) -> None:
        """Raise RunError if a Space lines up one run of each visitor and one waits already."""
        if self._settings.is_showcase and self.waiting():
            raise RunError("queue.one_each", run=self.waiting()[0])

    def reorder(self, run_id: str, *, to: int) -> None:
        """Move a waiting run to a place among this studio's, from 0, the next to start.

        Raises:
            RunError: If there is no such run or it does not wait.
        """
        run = self._waiting(run_id)
        self._queue.move(run, to=to, visitor=self._settings.visitor)

    def remove(self, run_id: str) -> None:
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
            self._machine.chat.close()  # a training may need every byte
            for run in self._queue.waiting():
                owner = self._line_of(run.visitor) if run.visitor else self
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
            self._planning.check(recipe)
            self._workers.launch(folder, recipe, token, resume=folder.events.exists())
        except (StudioError, OSError) as error:
            cause = error if isinstance(error, StudioError) else _unstartable(error)
            with EventWriter(folder.events) as events:
                events.write("failed", cause=cause.to_dict())
            return False
        return True

    def keep_dispatching(self) -> None:
        """Start whoever is next whenever the accelerator is free, until `close`."""
        self._dispatcher = Dispatcher(self.start_next)

    def _waiting(self, run_id: str) -> RunFolder:
        folder = self._runs.history(run_id).folder
        if run_id not in self.waiting():
            raise RunError("queue.not_waiting", run=run_id)
        return folder


def _unstartable(error: OSError) -> RunError:
    return RunError("queue.not_started", reason=reason_of(error))
