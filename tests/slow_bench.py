"""What a workshop's child holds in tests: an export that takes its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.exports.whole import written_whole


class Bench:
    """Exports a folder with a file in it."""

    def __init__(self) -> None:
        self.is_stopped = threading.Event()

    def stop(self) -> None:
        self.is_stopped.set()

    def export(self, target: Path, silent_s: float) -> Iterator[dict[str, Any]]:
        with written_whole(target, needed=0, replaces=True) as partial:
            partial.mkdir()
            yield {"stage": "merge", "done": 0, "total": 2}
            (partial / "half").write_text("half")
            yield {"stage": "merge", "done": 1, "total": 2}
            time.sleep(silent_s)
            if self.is_stopped.is_set():
                raise StudioError("shipping.stopped")
            yield {"stage": "verify", "done": 0, "total": 1}
        yield {"stage": "verify", "done": 1, "total": 1}
        yield {"result": "whole"}
