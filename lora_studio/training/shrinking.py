"""Where memory runs out: fewer rows per forward pass and as many more passes, so the same step.

The library's own `auto_find_batch_size` begins anew with half the rows per step; here the rows of
a step stay those of the recipe, and training goes on from the last whole step.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import torch

from lora_studio.errors import StudioError
from lora_studio.runs.events import EventWriter
from lora_studio.training import ranks
from lora_studio.training.failures import is_out_of_memory

log = logging.getLogger(__name__)

IN_REHEARSAL = "training.out_of_memory_in_rehearsal"
OF_BATCHES = ("load", "initialise", "train", "evaluate")
"""The last stage announced before a batch is tried, in the rehearsal too; an answer or a save that
does not fit would not fit with fewer rows either."""


def train_within_memory(
    trainer: Any, events: EventWriter, start: int | None, stage: Callable[[], str]
) -> None:
    """Train as `Checkpoints.train` does, and where memory runs out go on with smaller batches.

    Args:
        trainer: A `Loop` with its checkpoints.
        events: Told of each change as a `warning`.
        start: Go on from the checkpoint of this step; None begins.
        stage: Asked for the stage that a run is in.

    Raises:
        BaseException: What training raises, but for memory that a smaller batch may save; where
            several processes train together that too, as they would have to shrink as one.
    """
    while True:
        try:
            trainer.checkpoints.train(start)
        except Exception as error:
            if not (_is_of_batches(error, stage) and _can_shrink(trainer)):
                raise
            log.info("memory ran out: %s", error)
            # Its traceback holds on to every tensor of the pass.
            error.__traceback__ = None
        else:
            return
        start = _shrink(trainer, events, start)


def smaller(rows: int, passes: int) -> tuple[int, int]:
    """Return fewer rows and more passes of the same product: by 2, or the least that divides."""
    factor = next(number for number in range(2, rows + 1) if rows % number == 0)
    return rows // factor, passes * factor


def _is_of_batches(error: Exception, stage: Callable[[], str]) -> bool:
    if getattr(error, "key", "") == IN_REHEARSAL:
        return True
    return is_out_of_memory(error) and stage() in OF_BATCHES


def _can_shrink(trainer: Any) -> bool:
    return trainer.args.per_device_train_batch_size > 1 and not ranks.is_shared()


def _shrink(trainer: Any, events: EventWriter, start: int | None) -> int | None:
    """Give the trainer smaller batches; return the step to go on from, None to begin."""
    args, step = trainer.args, int(trainer.state.global_step)
    rows = args.per_device_train_batch_size
    fewer, passes = smaller(rows, args.gradient_accumulation_steps)
    args.per_device_train_batch_size = args.per_device_eval_batch_size = fewer
    args.gradient_accumulation_steps = passes
    trainer._train_batch_size = fewer  # noqa: SLF001 - where the library's loader reads it
    trainer.model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    cause = StudioError("training.batch_halved", rows=rows, fewer=fewer, passes=passes)
    events.write("warning", step=step, cause=cause.to_dict())
    if step == (start or 0):
        return start
    trainer.checkpoints.save_stopped()
    return step
