"""Training: started or lined up, stopped, paused, resumed."""

from __future__ import annotations

import time

from lora_studio.cases.line import Line
from lora_studio.cases.planning import Planning
from lora_studio.cases.runs import Runs
from lora_studio.cases.workers import Workers
from lora_studio.errors import RunError
from lora_studio.recipe import Recipe
from lora_studio.runs import housekeeping, process
from lora_studio.runs.accelerator import Accelerator
from lora_studio.runs.checkpoints import newest_whole
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History

LEAVES_WITHIN_S = 3.0
"""How long a worker that only prepares may take to see that it is to stop."""
FORCED_S = 1.5
PATIENCE_S = 15.0
"""Who asks a run to stop again after so long does not want to wait for its step."""


class Training:
    """Starts, lines up, stops and resumes runs.

    Args:
        accelerator: What a training takes.
        planning: Checks a recipe first.
        runs: The runs of this person.
        workers: Starts their processes.
        line: Where a run waits that cannot start now.
    """

    def __init__(
        self, accelerator: Accelerator, planning: Planning, runs: Runs, workers: Workers, line: Line
    ) -> None:
        self._accelerator = accelerator
        self._planning = planning
        self._runs = runs
        self._workers = workers
        self._line = line

    def make_ready(self, recipe: Recipe) -> None:
        """Have a worker wait for a recipe that will probably be trained; see `Workers`."""
        self._workers.make_ready(recipe)

    def start(self, recipe: Recipe, *, token: str | None = None) -> str:
        """Start a training in a process of its own and return the run's id.

        Everything that can be checked without the model is checked first; only then is a loaded
        chat model given up.

        Raises:
            ModelError: If this is a Space that lends itself to the starter model only.
            RecipeError: If the recipe cannot work on this machine.
            RunError: If another job has the accelerator, naming it, or the disk is full.
        """
        self._planning.check(recipe)
        with self._accelerator.guard():
            self._workers.free_accelerator()
            return self._begin(recipe, token)

    def submit(self, recipe: Recipe, *, token: str | None = None) -> str:
        """Start a training, or line it up where it cannot start now; return the run's id.

        Raises:
            StudioError: As `start` and `line_up`.
        """
        self._planning.check(recipe)
        with self._accelerator.guard():
            if self._workers.get_accelerator():
                return self._begin(recipe, token)
            return self._put_in_line(recipe, token)

    def line_up(self, recipe: Recipe, *, token: str | None = None) -> str:
        """Make a run that `Line.start_next` starts when its turn has come; return its id.

        Args:
            recipe: What to train.
            token: Kept in this process and nowhere else: whoever starts the run after it has
                ended does so without.

        Raises:
            StudioError: As `start`, but for a busy accelerator.
            RunError: If this is a Space for everybody and a run of this visitor waits already.
        """
        self._planning.check(recipe)
        return self._put_in_line(recipe, token)

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
        self._planning.check(recipe)
        with self._accelerator.guard():
            self._refuse_unended(run_id)  # somebody else may have been quicker
            if self._workers.get_accelerator():
                self._workers.launch(folder, recipe, token, resume=True)
                return
            self._line.refuse_second()
            self._line.join(folder, token)

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

    def _begin(self, recipe: Recipe, token: str | None) -> str:
        """Start a run of a recipe that was checked, on a free accelerator; return its id."""
        folder = self._runs.create(recipe)
        self._workers.launch(folder, recipe, token)
        return folder.id

    def _put_in_line(self, recipe: Recipe, token: str | None) -> str:
        self._line.refuse_second()
        folder = self._runs.create(recipe)
        self._line.join(folder, token)
        return folder.id

    def _broken_off(self, run_id: str) -> RunFolder:
        """Return the folder of a run that can go on, else say why it cannot."""
        history = self._runs.history(run_id)
        if self._runs.is_recorded(history.folder):
            raise RunError("run.read_only")
        self._refuse_unended(run_id)
        if history.status == "finished":
            raise RunError("run.is_over", run=run_id)
        if history.resumable is None or newest_whole(history.folder) is None:
            raise RunError("run.no_checkpoint", run=run_id)
        return history.folder

    def _refuse_unended(self, run_id: str) -> None:
        waiting = self._line.waiting()
        if run_id in waiting:
            place = waiting.index(run_id) + 1
            raise RunError("queue.waits_already", run=run_id, place=place)
        if not self._runs.history(run_id).is_over:
            raise RunError("run.still_runs", run=run_id)

    def _end(self, run_id: str, wish: process.Wish) -> None:
        history = self._runs.history(run_id)
        folder = history.folder
        if self._runs.is_recorded(folder):
            raise RunError("run.read_only")
        if history.is_over:
            raise RunError("run.is_over", run=run_id)
        if self._left_line(run_id):
            return
        insists = process.stop_asked_s(folder) > PATIENCE_S
        process.request_stop(folder, wish)
        if wish == "discard":
            process.end(folder)
            housekeeping.drop_results(folder)
        elif insists:
            process.end(folder, grace_s=FORCED_S)
        elif not _left_by_itself(history):
            process.end(folder, grace_s=FORCED_S, unless=lambda: not _prepares(history))

    def _left_line(self, run_id: str) -> bool:
        """Take a run out of the line, unless it does not wait or its turn came this moment."""
        if run_id not in self._line.waiting():
            return False
        try:
            self._line.remove(run_id)
        except RunError:
            return False
        return True


def _prepares(history: History) -> bool:
    return history.update().status in ("queued", "preparing")


def _left_by_itself(history: History) -> bool:
    """Give a worker that prepares a moment to leave; one that trains stops at its next step."""
    deadline = time.monotonic() + LEAVES_WITHIN_S
    while _prepares(history):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
