"""Keeps the trouble of a tracker, which is somebody else's program, out of a training."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from lora_studio.errors import RunError
from lora_studio.runs.events import EventWriter
from lora_studio.training.trackers import TRACKERS

log = logging.getLogger(__name__)

CALLBACKS = {
    TensorBoardCallback: TRACKERS["tensorboard"].title,
    TrackioCallback: TRACKERS["trackio"].title,
    WandbCallback: TRACKERS["wandb"].title,
}


class Tracking(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Hands events on to the library's callback of a tracker, until that one fails.

    Then a warning event says so and the training goes on without it: days of training are worth
    more than the curves of a service that cannot be reached.

    Args:
        callback: The library's.
        title: What the tracker calls itself.
        events: Where to.
    """

    def __init__(self, callback: TrainerCallback, title: str, events: EventWriter) -> None:
        self._callback: TrainerCallback | None = callback
        self._title = title
        self._events = events

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Open the tracker's run."""
        self._hand_on("on_train_begin", args, state, control, more)

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Send the numbers of a step or an evaluation."""
        self._hand_on("on_log", args, state, control, more)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Say that there is a checkpoint; by default no tracker takes it."""
        self._hand_on("on_save", args, state, control, more)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Close the tracker's run; it is not closed twice."""
        self._hand_on("on_train_end", args, state, control, more)
        self._callback = None

    def _hand_on(self, event: str, args: Any, state: Any, control: Any, more: Any) -> None:
        if self._callback is None:
            return
        try:
            getattr(self._callback, event)(args, state, control, **more)
        # Other people's programs, often over a network: nothing of theirs may end a training.
        except Exception as error:
            self._callback = None
            log.warning("%s failed", self._title, exc_info=True)
            cause = RunError(
                "training.tracker_failed", tracker=self._title, kind=type(error).__name__
            )
            self._events.write("warning", step=state.global_step, cause=cause.to_dict())


def keep_apart(trainer: Any, events: EventWriter) -> None:
    """Put each tracker that a trainer reports to where its trouble ends nothing."""
    callbacks = trainer.callback_handler.callbacks
    for at, callback in enumerate(callbacks):
        title = CALLBACKS.get(type(callback))
        if title is not None:
            callbacks[at] = Tracking(callback, title, events)


def close(trainer: Any) -> None:
    """Close what a training that was stopped between its steps left open."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Tracking):
            callback.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
