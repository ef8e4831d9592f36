"""Which of a training's processes this is, what they agree on, and how they end together.

`accelerate launch` names each process by RANK and LOCAL_RANK; one that was started alone has
neither and agrees with itself. Only the first process of a machine writes to the run's folder,
and only the first of all writes the adapter.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from filelock import FileLock

from lora_studio.errors import RunError, StudioError, from_dict
from lora_studio.files import write_whole
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder

LOOK_FOR_LAUNCHER_S = 0.3
WISHES = (None, "keep", "pause", "discard")
"""What may be asked of a run, the strongest last."""
LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "ncclremoteerror",
    "remote process",
)
"""Words of what gloo and NCCL raise where another process is gone."""


def rank() -> int:
    """Return this process's number among those of all machines."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Return whether this process writes the adapter and answers the prompts."""
    return rank() == 0


def leads_machine() -> bool:
    """Return whether this process writes the events of its machine's run folder."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def is_shared() -> bool:
    """Return whether other processes train with this one."""
    return "RANK" in os.environ


def agreed(wish: bool) -> bool:  # noqa: FBT001 - a yes or no is all there is to say
    """Return on all processes whether any of them wishes it; every one of them has to ask."""
    return bool(_together(float(wish), "MAX"))


def total(number: float) -> float:
    """Return the sum over all processes; every one of them has to ask."""
    return _together(number, "SUM")


def agreed_wish(folder: RunFolder) -> str | None:
    """Return the strongest wish that any machine's run folder holds, the same on all processes."""
    wish = folder.stop_wish() if leads_machine() else None
    return WISHES[int(_together(float(WISHES.index(wish)), "MAX"))]


def _together(number: float, operation: str) -> float:
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return number
    device = "cpu" if distributed.get_backend() == "gloo" else torch.cuda.current_device()
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.all_reduce(shared, getattr(distributed.ReduceOp, operation))
    return float(shared)


class SilentWriter(EventWriter):
    """Takes the events of a process that has nothing to say."""

    def __init__(self) -> None:  # no file is opened
        self.at_end = None
        self._ending = threading.Lock()

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        """Write nothing."""

    def close(self) -> None:
        """There is nothing to close."""


def open_events(folder: RunFolder) -> EventWriter:
    """Return what this process writes its events to."""
    return EventWriter(folder.events) if leads_machine() else SilentWriter()


def leave(code: int) -> None:
    """End this process now; the launcher ends the others."""
    if is_shared():
        with suppress(ProcessLookupError):
            os.kill(os.getppid(), signal.SIGTERM)
    os._exit(code)


def watch_launcher(when_asked: Callable[[], None]) -> None:
    """Have this process end with its launcher, whatever it waits for.

    A signal's handler waits for the interpreter, which may be deep in a library that waits for a
    process that is gone; so SIGTERM is taken by a thread. To be called before there are others.

    Args:
        when_asked: Called by that thread when SIGTERM comes; the process ends when it returns.
    """
    launcher = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_signal() -> None:
        signal.sigwait({signal.SIGTERM})
        when_asked()
        os._exit(1)

    def wait_for_launcher() -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK_FOR_LAUNCHER_S)
        os._exit(1)

    for wait in (wait_for_signal, wait_for_launcher):
        threading.Thread(target=wait, daemon=True).start()


def report(folder: RunFolder, cause: StudioError) -> None:
    """Leave word of what ended this process, where another one writes the events."""
    if leads_machine():
        return
    write_whole(folder.failure(rank()), json.dumps(cause.to_dict()))


def loss_of_another(folder: RunFolder) -> StudioError:
    """Return why the processes of a run end: what one of them said, or that it is gone."""
    for file in folder.failures():
        return from_dict(json.loads(file.read_text(encoding="utf-8")))
    return RunError("launch.process_lost")


def is_loss_of_another(error: BaseException) -> bool:
    """Return whether an exception says that another process is gone."""
    text = f"{type(error).__name__}: {error}".lower()
    return is_shared() and any(words in text for words in LOST)


def part() -> None:
    """Let go of the other processes at the end of a training."""
    if is_shared():
        from torch import distributed

        distributed.destroy_process_group()


def in_turn(folder: RunFolder) -> AbstractContextManager[Any]:
    """Return a lock under which a machine's processes fetch and encode one after the other.

    The second finds what the first has made, in the caches that keep it.
    """
    return FileLock(folder.path / "turn.lock") if is_shared() else nullcontext()
