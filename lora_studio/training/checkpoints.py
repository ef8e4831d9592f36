"""When a training writes checkpoints, which of them stay, and which one's adapter is the result."""

from __future__ import annotations

import logging
import shutil
from copy import copy
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from lora_studio.runs.checkpoints import drop_old, is_whole, partial, seal
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import LAST_WRITTEN, WEIGHTS, RunFolder
from lora_studio.training.randomness import RandomStates

log = logging.getLogger(__name__)

OF_MEASURING = ("log_history", "best_metric", "best_global_step")
"""What an evaluation changes of the trainer's state."""


class Checkpoints(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes checkpoints whole or not at all, keeps the newest and the best, and stops in time.

    With several processes each calls every method; the first one writes.

    Args:
        trainer: A `Resumable`; its reporter stands before this callback.
        folder: The run's folder.
        events: Told of each `checkpoint` and of `early_stopped`.
        keep: How many of the newest checkpoints stay.
        patience: Ends the training after so many evaluations without a lower loss; None never.
        initial: PiSSA's untrained adapter, without which a checkpoint is of no use.
    """

    def __init__(
        self,
        trainer: Any,
        folder: RunFolder,
        events: EventWriter,
        *,
        keep: int,
        patience: int | None,
        initial: Path | None,
    ) -> None:
        self._trainer = trainer
        self._folder = folder
        self._events = events
        self._keep = keep
        self._patience = patience
        self._needs = [] if initial is None else [initial / WEIGHTS]
        self._random: RandomStates | None = None
        # Where memory runs out, a run goes on from the same checkpoint in the same process.
        self._made_up: dict[int, dict[str, Any]] = {}

    @classmethod
    def put_on(cls, trainer: Any, *about: Any, **more: Any) -> None:
        """Have a trainer write its checkpoints this way; arguments as above."""
        trainer.checkpoints = cls(trainer, *about, **more)
        trainer.add_callback(trainer.checkpoints)

    def train(self, start: int | None) -> None:
        """Train from the beginning, or on from the checkpoint of a step.

        Raises:
            RunError: If the checkpoint is of another model.
        """
        if start is None:
            self._trainer.train()
            return
        place = self._folder.checkpoint(start)
        state = TrainerState.load_from_json(str(place / LAST_WRITTEN))
        if state.global_step < state.max_steps:
            self._trainer.train(resume_from_checkpoint=str(place))
        else:  # it ended between the last step and the finished adapter
            self._trainer.state = state
            self._trainer.read_weights(place)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the count of tokens where it stood, and an evaluation that a stop cut short."""
        step = state.global_step
        if not step:
            return
        self._trainer.count_from(state.num_input_tokens_seen)
        is_due = self._trainer.eval_dataset is not None and step % state.eval_steps == 0
        if not is_due or step in _measured(state):
            return
        if step in self._made_up:
            vars(state).update(self._made_up[step])
            return
        self._trainer.measure()
        self._made_up[step] = {name: copy(getattr(state, name)) for name in OF_MEASURING}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the random states after each whole step: a stop may come within the next."""
        self._random = RandomStates.now()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Have the best one saved; after too many that are not better, end the training."""
        step, loss = state.global_step, (metrics or {}).get("eval_loss")
        if not step or loss is None:
            return
        best = state.best_global_step
        if best is None or loss < state.best_metric:
            control.should_save = True
            return
        misses = sum(measured > best for measured in _measured(state))
        if self._patience and misses >= self._patience and step < state.max_steps:
            control.should_training_stop = control.should_save = True
            self._events.write("early_stopped", step=step, best_step=best)

    def save(self) -> None:
        """Write the checkpoint of this step aside, give it its name, and make room."""
        trainer, step = self._trainer, self._trainer.state.global_step
        place = self._folder.checkpoint(step)
        aside, together = partial(place), trainer.accelerator.wait_for_everyone
        if place.exists():
            return
        is_first = trainer.args.should_save
        if is_first:
            shutil.rmtree(aside, ignore_errors=True)
        together()
        try:
            trainer.write_state(aside)
            together()
            size = seal(aside, needs=self._needs) if is_first else 0
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # on a full disk it is in the way
            raise
        if is_first:
            best = trainer.state.best_global_step
            aside.rename(place)
            drop_old(self._folder, keep=self._keep, best=best)
            self._events.write("checkpoint", step=step, bytes=size, best=best == step)
        together()
        if not is_first:  # on a machine with a folder of its own
            shutil.rmtree(aside, ignore_errors=True)

    def save_stopped(self) -> None:
        """Write the checkpoint of the last whole step, wherever after it the run was stopped."""
        if self._random is not None:
            self._random.put_back()
            self.save()

    def take_best(self) -> int | None:
        """Put the best measured weights in place of the last, if later ones measured worse.

        What was learned after the best measurement and not measured yet stays as it is.

        Returns:
            The step of the weights that were taken, None if the last ones stay.
        """
        trainer, state = self._trainer, self._trainer.state
        best = state.best_global_step
        if not best or trainer.is_fsdp_enabled or best >= max(_measured(state), default=0):
            return None
        place = self._folder.checkpoint(best)
        if not is_whole(place):
            log.warning("the best checkpoint, of step %s, is not whole: the last is taken", best)
            return None
        trainer.read_weights(place)
        return int(best)


def _measured(state: Any) -> list[int]:
    """Return the steps whose held-out loss was measured, but for the beginning."""
    steps = (entry["step"] for entry in state.log_history if "eval_loss" in entry)
    return [step for step in steps if step]
