"""One real pass over the longest batch before the first step: does it fit, and what does it take?

It leaves nothing behind: no gradient, no random number drawn, no counter moved. So a run with it
and one without have the same losses bit for bit.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
import torch
from transformers import TrainerCallback

from lora_studio.errors import RunError
from lora_studio.runs.events import EventWriter
from lora_studio.training.failures import asked_for, is_out_of_memory
from lora_studio.training.remedies import Remedy

SELF = Path("/proc/self")
Offers = Callable[[], list[Remedy]]

RESET_PEAK = "5"
"""What proc(5) wants in `clear_refs` to set VmHWM back to the present."""


class Rehearsal(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Probes the longest batch when the trainer is ready, before anything else happens.

    Args:
        trainer: As `probe_step`, and the rest.
    """

    def __init__(self, trainer: Any, events: EventWriter, offers: Offers) -> None:
        self._asked = (trainer, events, offers)

    @classmethod
    def put_first(cls, trainer: Any, events: EventWriter, offers: Offers) -> None:
        """Have a trainer begin with a rehearsal."""
        trainer.callback_handler.callbacks.insert(0, cls(trainer, events, offers))

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Probe."""
        probe_step(*self._asked)


def probe_step(trainer: Any, events: EventWriter, offers: Offers) -> int:
    """Pass the longest batch forward and backward; write and return the peak in bytes.

    On CUDA it is the allocator's peak, elsewhere the process's resident memory. To be called when
    the trainer has prepared its model, as in `on_train_begin`.

    Args:
        trainer: The trainer; its optimizer is not touched.
        events: Told of `rehearsed`: peak_bytes, rows, tokens, seconds.
        offers: Asked for what to change when it does not fit.

    Raises:
        RunError: If memory runs out, with what to try again with.
    """
    batch, rows, length = longest_batch(trainer)
    start = time.monotonic()
    failed: BaseException | None = None
    with _untouched(trainer), _bounded(), _watched() as peak:
        try:
            labels = torch.tensor(batch["labels"].numel())
            trainer.training_step(trainer.model_wrapped, batch, labels)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Its traceback would hold on to every tensor of the pass.
            failed = error.with_traceback(None)
    taken = peak()
    if failed is not None:
        raise RunError(
            "training.out_of_memory_in_rehearsal",
            asked=asked_for(failed),
            batch=rows,
            length=length,
            remedies=offers(),
        ) from failed
    seconds = round(time.monotonic() - start, 3)
    events.write("rehearsed", peak_bytes=taken, rows=rows, tokens=rows * length, seconds=seconds)
    return taken


def longest_batch(trainer: Any) -> tuple[dict[str, Any], int, int]:
    """Return the batch of the longest rows as the trainer's collator makes it.

    With it go the number of its rows and the tokens of the longest.
    """
    data = trainer.train_dataset
    lengths = pc.list_value_length(data.with_format("arrow")[:]["input_ids"]).to_numpy()
    rows = np.argsort(-lengths, kind="stable")[: trainer.args.per_device_train_batch_size]
    return trainer.data_collator([data[int(row)] for row in rows]), len(rows), int(lengths[rows[0]])


@contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """Put back gradients, counters and the states of all random generators."""
    python, numpy_, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    is_training = trainer.model.training
    try:
        with trainer.uncounted():
            yield
    finally:
        trainer.model.zero_grad(set_to_none=True)
        trainer.model.train(is_training)
        random.setstate(python)
        np.random.set_state(numpy_)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _bounded() -> Iterator[None]:
    """Let an allocation beyond the machine's free memory fail; else Linux ends the process.

    `RLIMIT_DATA` counts private memory that can be written (setrlimit(2)).
    """
    if sys.platform != "linux" or torch.cuda.is_available():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _status("VmData") + psutil.virtual_memory().available
    if soft != resource.RLIM_INFINITY:
        bound = min(bound, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _watched() -> Iterator[Any]:
    """Give a function that returns the peak of memory inside the block, once it is left."""
    found = 0
    reset_peak()
    try:
        yield lambda: found
    finally:
        found = peak_bytes()


def reset_peak() -> None:
    """Have `peak_bytes` count from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (SELF / "clear_refs").exists():
        (SELF / "clear_refs").write_text(RESET_PEAK, encoding="ascii")


def peak_bytes() -> int:
    """Return the highest memory since it was last set back; where that is unknown, the present."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if (SELF / "status").exists():
        return _status("VmHWM")
    return int(psutil.Process().memory_info().rss)


def _status(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    for line in (SELF / "status").read_text(encoding="utf-8").splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0]) * 1024
    return 0
