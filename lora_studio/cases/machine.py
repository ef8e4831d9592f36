"""What everybody on a machine shares: its hardware and the processes beside the page."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lora_studio.cases.workshop import Workshop
from lora_studio.chat.tickets import Tickets
from lora_studio.chat.turns import Turns
from lora_studio.child import Child, InProcess
from lora_studio.errors import StudioError
from lora_studio.hardware import Hardware, free_memory, probe
from lora_studio.runs.accelerator import Accelerator
from lora_studio.runs.standby import StandBy
from lora_studio.settings import Settings

WORKBENCH = "lora_studio.workbench:Workbench"


@dataclass(frozen=True, slots=True)
class Machine:
    """What everybody on this machine shares: the hardware and the two heavy processes."""

    hardware: Hardware
    bench: Child | InProcess
    """Serves a `Workbench`."""
    chat: Child | InProcess
    """Serves a chat `Engine`."""
    accelerator: Accelerator
    answering: Turns
    """Who uses the chat model, from loading it to the last word of an answer, and who is next."""
    workshop: Workshop
    """Exports, and brings to the Hub."""
    tickets: Tickets = field(default_factory=Tickets)
    """Of those who ask it."""
    bases: dict[tuple[int | None, str], Path] = field(default_factory=dict)
    """Where the bases lie that a chat process has loaded, by its pid and their source."""
    ready: StandBy | None = None
    """Has a worker wait for the next training, in an app."""

    @classmethod
    def open(cls, settings: Settings, *, isolated: bool) -> Self:
        """Look at the hardware; start nothing yet.

        Args:
            settings: Where things live.
            isolated: Whether heavy libraries run in child processes (the page) or in this one
                (the command line).

        Raises:
            StudioError: If nothing can be kept in the home folder.
        """
        _make_home(settings.home)
        serve = Child if isolated else InProcess
        return cls(
            hardware=probe(),
            bench=serve(WORKBENCH, settings),
            chat=serve("lora_studio.chat.engine:Engine"),
            accelerator=Accelerator(settings.home),
            answering=Turns(),
            workshop=Workshop(lambda: serve(WORKBENCH, settings)),
            ready=StandBy() if isolated and settings.ready_worker else None,
        )

    def free_memory(self) -> int:
        """Return the RAM in bytes that a training could take; a worker that waits makes room."""
        return free_memory() + (self.ready.held_bytes if self.ready is not None else 0)

    def close(self) -> None:
        """End the processes that serve this one."""
        if self.ready is not None:
            self.ready.dismiss()
        self.workshop.close()
        self.chat.close()
        self.bench.close()


def _make_home(home: Path) -> None:
    """Make the home folder, if it is not there.

    Raises:
        StudioError: If that cannot be, or nothing can be written into it.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        code = 0 if os.access(home, os.W_OK) else errno.EACCES
    except OSError as error:
        code = error.errno or errno.EIO
    if code:
        raise StudioError("settings.home_unusable", home=str(home), reason=os.strerror(code))
