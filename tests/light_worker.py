"""A worker that imports nothing heavy and trains nothing: it takes a run as the real one does.

It writes down the environment that it has then, and waits to be told to stop.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.training import standby, worker

ENVIRONMENT = "environment.json"


def run(folder: RunFolder, _recipe: object, events: EventWriter, *_: Any, **__: Any) -> None:
    (folder.path / ENVIRONMENT).write_text(json.dumps(dict(os.environ)), encoding="utf-8")
    sys.stdout.write("a line of its own\n")
    events.write("stage", stage="train")
    while not folder.stop.exists():
        time.sleep(0.02)
    events.write("stopped", kept=False)


if __name__ == "__main__":
    standby.WHOLE = standby.WITHOUT_CUDA = ("json",)  # type: ignore[assignment]
    worker.run = run  # type: ignore[assignment]
    sys.exit(worker.main(sys.argv[1:]))
